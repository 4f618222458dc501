"""The held-out figures that trials may be judged by: which way is better, and between which runs they compare."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lm import config
from lm.config import resolve
from lm.config.data import OWN_SPLIT
from lm.errors import UserError, nearest

# Of these more is better, of those below less. The figures in neither (tokens, items, majority, kl) do not rank models.
HIGHER = (
    *("accuracy", "accuracy_replaced", "accuracy_kept", "exact", "f1", "reward"),
    *("margin", "reward_chosen", "reward_good", "log_prob_chosen", "log_prob_good"),
)
LOWER = (
    *("loss", "nll", "perplexity", "bits_per_byte", "bits_per_byte_bound", "model_loss", "generator_loss", "divergence", "ece"),
    *("reward_rejected", "reward_bad", "log_prob_rejected", "log_prob_bad"),
)
# What the held-out texts are, and what is asked about them: no figure compares where these differ.
TESTED = (
    *("data.sources", "data.clean", "data.dedup", "data.holdout", "evaluate.rows"),
    *("recipe.compare", "recipe.develop"),
)
# What a figure in nats, a token or a reward is measured by. Bits per byte, exact matches, F1, and accuracies of whole answers
# do not depend on these.
UNITS = ("objective", "recipe", "data.tokenizer")
FREE = ("bits_per_byte", "bits_per_byte_bound", "exact", "f1")


def higher(metric: str) -> bool:
    """Whether more of a figure is better: `accuracy`, `SOURCE/accuracy`, `reward/GRADER`. UserError if that is not known."""
    if not known(metric):
        raise UserError(f"--metric={metric}: no figure that trials can be ranked by{nearest(_name(metric), (*HIGHER, *LOWER))}")
    return _name(metric) not in LOWER


def known(metric: str) -> bool:
    """Whether trials can be ranked by it."""
    return _name(metric) in (*HIGHER, *LOWER) or metric.startswith("reward/")


def _name(metric: str) -> str:
    """The figure, without the source or the offset (`later_1_accuracy`) that it is of."""
    return re.sub(r"^later_\d+_", "", metric.split("/")[-1])


def default(runs: Sequence[config.Run]) -> str:
    """The held-out figure that runs are judged by unless the user says: bits per byte, where all have them."""
    figures = dict.fromkeys(map(_of_run, runs))
    if len(figures) > 1 or ("loss" in figures and any(run.objective != runs[0].objective for run in runs)):
        raise UserError(
            f"trials have no figure in common that is a loss of the same text ({', '.join(figures)}): give --metric"
        )
    return next(iter(figures))


def _of_run(run: config.Run) -> str:
    from lm.objectives import factors

    match run.recipe:
        case config.Policy():
            return "reward"
        case config.Preference() | config.Reward():
            return "accuracy"
        case config.Finetune():
            return "nll"
        case config.Pretrain() if not run.data.after:
            kind = factors(run.model.architecture, run.objective)
            return "bits_per_byte_bound" if kind == "bound" else "bits_per_byte" if kind else "loss"
    return "loss"


def check(metric: str, runs: Sequence[config.Run]) -> None:
    """UserError if a figure is none, if the runs hold nothing out, or if it does not compare between them."""
    higher(metric)
    for run in runs:
        own = any(source.use == "holdout" or source.kind in OWN_SPLIT for source in run.data.sources.values())
        if not run.data.holdout and not own and not getattr(run.recipe, "develop", None):
            raise UserError("data.holdout=0 holds nothing out to judge trials by: give --config.data.holdout=0.05")
    sizes = {run.evaluate.batch_size or run.train.batch_size for run in runs}
    if len(sizes) > 1 and any(map(_of_batches, runs)):
        raise UserError(
            "trials are tested in batches of different sizes, and figures of contrastive and kto are of all rows of a batch: "
            f"give --config.evaluate.batch_size={min(sizes)} to all"
        )
    units = _units(metric, runs)
    for key in sorted({key for run in runs[1:] for key in resolve.diff(runs[0], run)}):
        if _within(key, TESTED) and not re.fullmatch(r"data\.sources\..*\.weight", key):
            raise UserError(
                f"trials that differ in {key} are tested on other data or by another measure, so that no figure compares: "
                f"give all the same, as --config.{key}"
            )
        if _within(key, units):
            raise UserError(
                f"'{metric}' does not compare between trials that differ in {key}, on which its scale depends: "
                f"{_cure(metric, runs)}"
            )


def _units(metric: str, runs: Sequence[config.Run]) -> Sequence[str]:
    """The sections of the config that set the scale of a figure."""
    if _name(metric) == "reward" or metric.startswith("reward/"):
        return ("recipe.graders",)
    return () if _name(metric) in FREE or (_name(metric) == "accuracy" and _of_answers(runs)) else UNITS


def _within(key: str, sections: Sequence[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def _of_answers(runs: Sequence[config.Run]) -> bool:
    """Whether an accuracy is a share of records or of pairs, not of tokens. That of KTO is of single answers."""
    judged = all(isinstance(run.recipe, config.Finetune | config.Preference | config.Reward) for run in runs)
    return judged and len({getattr(run.recipe, "method", None) == "kto" for run in runs}) == 1


def _of_batches(run: config.Run) -> bool:
    """Whether a row's figure depends on the rows beside it."""
    return isinstance(run.objective, config.Contrastive) or getattr(run.recipe, "method", None) == "kto"


def _cure(metric: str, runs: Sequence[config.Run]) -> str:
    """A figure that does compare, where there is one."""
    if _of_answers(runs):
        how = {getattr(run.recipe, "how", None) for run in runs}
        return "give --metric=" + ("exact, or accuracy of classes" if how == {"text"} else "accuracy")
    if all(isinstance(run.recipe, config.Policy) for run in runs):
        return "give --metric=exact"
    found = {_of_run(run) for run in runs}
    if len(found) == 1 and (one := found.pop()) in FREE:
        return f"give --metric={one}"
    return "leave it out of --over"


# ---------------------------------------------------------------------------------------------------------------- results


def lacking(metric: str, heldout: Iterable[str]) -> str:
    """Says that a trial has not the figure, and which it has."""
    found = [name for name in heldout if known(name)]
    if not found:
        return "the runs have no held-out figures: hold out data (config.data.holdout)"
    cure = "; the same command with another --metric trains none of it again"
    return f"the runs have no held-out '{metric}', but {', '.join(found)}{cure}"


def judged(result: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """The result with `metrics`, the one figure that it is judged by, if it has that; else `flags` say that it "diverged", or
    "lacks" it."""
    if "diverged" in result["flags"]:
        return {**result, "metrics": {}}
    if metric not in result["heldout"]:
        return {**result, "metrics": {}, "flags": {"lacks": metric}}
    value = float(result["heldout"][metric])
    if not math.isfinite(value):
        return {**result, "metrics": {}, "flags": {"diverged": f"held-out {metric} is {value}"}}
    return {**result, "metrics": {metric: value}}


def left(why: str) -> dict[str, Any]:
    """The outcome of a trial that is not done."""
    return {"metrics": {}, "ledger": {}, "flags": {"left": why}}
