"""What recipes that go on from a saved model have in common."""

from dataclasses import replace

from etils import epath

from lm import config, saved
from lm.data.own_template import own_template
from lm.errors import UserError
from lm.objectives import reads_prefix


def opened(run: config.Run, workdir: epath.Path | None) -> saved.Saved | None:
    """The model that a run starts from: that of its own checkpoint if it has one, since `train.init_from` may be gone by then.
    None if neither is there."""
    resumes = workdir is not None and saved.is_run(workdir)
    folder = workdir if resumes else run.train.init_from
    return None if folder is None else saved.open(folder, name="--workdir" if resumes else "train.init_from")


def has_prefix(model: config.Model, objective: config.Objective, before: config.Run | None) -> bool:
    """Whether a decoder reads what it answers from both sides: as in the run before if that was on records, or as its
    pretraining had it."""
    if before and (prefix := getattr(before.recipe, "prefix", None)) is not None:
        return prefix
    return model.architecture == "decoder" and reads_prefix(model.architecture, objective)


def with_head(model: config.Model, outputs: int, before: config.Model | None) -> config.Model:
    """The model with a head of so many outputs: that of the model `before`, which is trained further, or a new one.

    On a decoder it has no bias, as in the text classifiers of transformers, so that it is exported as one.
    """
    new = config.Head(tied=False, bias=model.architecture != "decoder", outputs=outputs)
    return replace(model, head=before.head if before else new)


def with_template(data: config.Data, begun: saved.Saved | None) -> config.Data:
    """The data with the chat template of the model before, that of its run or a converted model's own, unless it names one
    itself or has no conversations."""
    if begun is None or data.template or not data.conversations:
        return data
    return replace(data, template=own_template(begun) if begun.run is None else begun.run.data.template)


def unchanged(folder: str, digest: str | None, *, name: str, key: str) -> tuple[saved.Saved, str]:
    """A model that a run reads and does not keep, and the digest of its files. UserError if that is not the `digest` which the
    run's config has under `key`; None: it has none yet. `name` is the config key of the folder."""
    source = saved.open(folder, name=name)
    found = source.digest()
    if digest not in (None, found):
        raise UserError(
            f"{name}={folder} has the digest {found[:8]}, and {key}={digest[:8]}: give the model that this was, or leave {key} "
            "out"
        )
    return source, found


def check_records(run: config.Run) -> None:
    """UserError for settings that are of texts, not of records."""
    if run.data.after:
        raise UserError(f"data.after={run.data.after!r} is of texts; a record says what its answer is: leave it out")
    if run.evaluate.baselines:
        raise UserError("evaluate.baselines are models of text, not of records: set --config.evaluate.baselines=False")
