"""What a gold reward does while a proxy for it is optimised, by a policy and by the best of n (arXiv 2210.10760)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from experiments import small, tuned
from experiments.languages import tastes
from experiments.pictures import COLOURS, pyplot
from experiments.study import Cell, Derived, Gate, Measured, Metric, Relation, Results, Study, derived_result
from lm import config, saved
from lm.data.records import Pair
from lm.evaluation.rewards import Rewarder
from lm.saved import Saved

PAIRS = (150, 3000)
GOLD, PROXY, KL, RIGHT = "gold", "proxy", "kl", "heldout/accuracy"
SIZES: dict[str, Any] = dict(length=tastes.LENGTH, answer=tastes.ANSWER)
DRAWS, BEST = 300, (1, 2, 4, 8, 16, 32, 64, 128, 256)  # answers to each prompt, and n
STEPS, EVERY = 160, 20
ASKED = 32  # prompts that the best point is chosen by; as many others say what it is worth


def study(seeds: int = 3, steps: int = STEPS) -> Study:
    language = tastes.language(PAIRS)
    of = language.items
    written = tuned.run(config.Finetune("text", **SIZES), of["written"], of["heldout_written"], steps=300, learning_rate=3e-3)
    model = small.model("decoder", width=64, layers=2, vocab_size=language.vocab_size)
    data = replace(written.data, tokenizer=config.Tokenizer("word", language.vocab_size))
    cells = {"base": Cell("before", replace(written, model=model, data=data))}
    for pairs in PAIRS:
        judge = tuned.run(
            config.Reward(centre=0.01, **SIZES),
            of[f"pairs{pairs}"],
            of["heldout_pairs"],
            steps=200,
            batch_size=32,
            rows=500,
            format="preference",
        )
        cells[f"reward{pairs}"] = Cell(f"reward model of {pairs:,} pairs", judge, start="base", measure=best_of)
        grader = {"proxy": config.Grader("model", path="unset")}
        recipe = config.Policy("rloo", grader, group=8, kl="without", **SIZES)
        learn = tuned.run(recipe, of["prompts"], of["heldout_prompts"], steps=steps, batch_size=128, learning_rate=3e-4)
        learn = replace(learn, checkpoint=config.Checkpoint(every=EVERY, keep=steps // EVERY, keep_best=False))
        reads = {"recipe.graders.proxy.path": f"reward{pairs}"}
        cells[f"policy{pairs}"] = Cell(f"policy, {pairs:,} pairs", learn, start="base", reads=reads, measure=optimised)
    few, many = PAIRS
    source = "arXiv 2210.10760, figures 1 and 3"
    relations = (
        Relation(f"{few} pairs: gold has a peak before the policy's end", GOLD, f"peak{few}", f"policy{few}", source=source),
        Relation(f"at the end, {many:,} pairs > {few}", GOLD, f"policy{many}", f"policy{few}", source=source),
        Relation("the policy's proxy reward rises all the way", PROXY, f"policy{few}", f"peak{few}", primary=False),
        Relation(f"{few} pairs: the best of n has a peak before 256", GOLD, f"bestpeak{few}", f"best{few}", primary=False),
        Relation(f"the best of 256, {many:,} pairs > {few}", GOLD, f"best{many}", f"best{few}", primary=False),
        Relation(f"{few} pairs: the best of 256 > the policy's end", GOLD, f"best{few}", f"policy{few}", primary=False),
    )
    metrics = (
        Metric(GOLD, "gold reward", unit="deviations"),
        Metric(PROXY, "proxy reward", comparable=False),
        Metric(KL, "divergence from the model before", higher=None, unit="nats"),
        Metric(RIGHT, "accuracy on held-out pairs", lines={"chance": 0.5}),
    )
    gates = (Gate("the reward model has learned", RIGHT, at_least=0.55, cells=tuple(f"reward{n}" for n in PAIRS)),)
    derived = {}
    for n in PAIRS:
        derived[f"peak{n}"] = Derived(f"policy, {n:,} pairs, at its peak", (f"policy{n}",))
        derived[f"best{n}"] = Derived(f"best of {BEST[-1]}, {n:,} pairs", (f"reward{n}",))
        derived[f"bestpeak{n}"] = Derived(f"best of n, {n:,} pairs, at its peak", (f"reward{n}",))
    title = "Gold and proxy rewards as a proxy is optimised (arXiv 2210.10760)"
    more: dict[str, Any] = dict(gates=gates, derive=points, derived=derived, analyse=curves)
    return Study("overoptimisation", title, cells, seeds, metrics, relations, **more)


# ------------------------------------------------------------------------------------------------------ measuring


def best_of(judge: Saved) -> Measured:
    """`best/<n>/gold`, `/proxy` and `/kl` of the best of n answers by a reward model, with n of BEST, and `best/peak`, the n
    with the highest gold reward over half of the prompts; the figures are of the other half."""
    assert judge.run is not None and judge.run.train.init_from is not None
    before, rewarder = saved.open(judge.run.train.init_from), Rewarder(judge, batch_size=256)
    _, _, written, scored = _drawn(before, rewarder, samples=DRAWS)
    gold = np.stack([_best(*of) for of in zip(written, scored, strict=True)])  # [prompts, n]
    proxy = np.stack([_best(of, of) for of in scored])
    kl = [float(np.log(n) - (n - 1) / n) for n in BEST]
    return _measured("best", BEST, gold, proxy, np.broadcast_to(kl, gold.shape))


def optimised(policy: Saved) -> Measured:
    """`policy/<step>/...` of a policy's checkpoints, as `best_of` has them, and the figures of its end."""
    run = policy.run
    assert run is not None and isinstance(run.recipe, config.Policy) and run.train.init_from is not None
    rewarder = Rewarder(saved.open(run.recipe.graders["proxy"].path or ""), batch_size=256)
    before = saved.open(run.train.init_from)
    points, found = [before, *saved.last(policy.folder, run.train.steps // EVERY)[::-1]], []
    for point in points:
        prompts, drawn, written, scored = _drawn(point, rewarder, samples=16)
        found.append((written.mean(1), scored.mean(1), tuned.moved(point, before, prompts, drawn, **SIZES)))
    gold, proxy, kl = (np.stack(each, axis=1) for each in zip(*found, strict=True))
    steps = (0, *(point.step or 0 for point in points[1:]))
    measured = _measured("policy", steps, gold, proxy, kl)
    end = {name: measured.metrics[f"policy/{steps[-1]}/{name}"] for name in (GOLD, PROXY, KL)}
    return replace(measured, metrics={**measured.metrics, **end})


def _drawn(model: Saved, rewarder: Rewarder, *, samples: int) -> tuple[list[Pair], Any, np.ndarray, np.ndarray]:
    """The held-out prompts, answers that are drawn to them, and their gold and proxy rewards, [prompts, samples] each."""
    prompts = tuned.pairs(tastes.language(PAIRS).items["heldout_prompts"])
    drawn = tuned.answers(model, prompts, samples=samples, temperature=1.0, **SIZES)
    texts = [answer.text for of in drawn for answer in of]
    asked = [prompt.question for prompt in prompts for _ in range(samples)]
    scored = rewarder.scores(asked, texts, cut=True)
    return prompts, drawn, *(rewards.reshape(len(prompts), samples) for rewards in (tastes.gold(texts), scored))


def _best(values: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The expected value of the best of n of these draws by score, for each n of BEST: over all subsets of n, which needs no
    more draws (arXiv 2112.09332, appendix I)."""
    ordered, count = values[np.argsort(scores, kind="stable")], len(values)
    rank = np.arange(1, count + 1)
    found = []
    for n in BEST:
        # The share of subsets whose best is the draw at this rank: C(rank - 1, n - 1) / C(count, n).
        logs = np.array([_log_choose(r - 1, n - 1) for r in rank]) - _log_choose(count, n)
        found.append(float(np.sum(np.exp(logs) * ordered)))
    return np.array(found)


def _log_choose(n: int, k: int) -> float:
    return -np.inf if k > n else float(np.sum(np.log(np.arange(n - k + 1, n + 1))) - np.sum(np.log(np.arange(1, k + 1))))


def _measured(name: str, points: tuple[int, ...], gold: np.ndarray, proxy: np.ndarray, kl: np.ndarray) -> Measured:
    """Figures at each point from values [prompts, points]; the peak is chosen on half of the prompts."""
    peak = int(np.argmax(gold[:ASKED].mean(0)))
    metrics = {f"{name}/peak": float(points[peak])}
    for i, point in enumerate(points):
        for what, values in ((GOLD, gold), (PROXY, proxy), (KL, kl)):
            metrics[f"{name}/{point}/{what}"] = float(values[ASKED:, i].mean())
    return Measured(metrics)


# ------------------------------------------------------------------------------------------------------- judging


def points(results: Results) -> Results:
    """Gives the peaks, and the best of n, results of their own."""
    for pairs in PAIRS:
        for cell, name, last, peak in (
            (f"policy{pairs}", "policy", None, f"peak{pairs}"),
            (f"reward{pairs}", "best", f"best{pairs}", f"bestpeak{pairs}"),
        ):
            for seed, result in results.get(cell, {}).items():
                metrics = result["metrics"]
                at = lambda point, m=metrics, n=name: {what: m[f"{n}/{point:g}/{what}"] for what in (GOLD, PROXY, KL)}
                if f"{name}/peak" not in metrics:
                    continue
                results.setdefault(peak, {})[seed] = derived_result(at(metrics[f"{name}/peak"]))
                if last:
                    results.setdefault(last, {})[seed] = derived_result(at(BEST[-1]))
    return results


def curves(results: Results, folder: Path) -> str:
    """Draws gold and proxy rewards over the root of the divergence, a line a seed. Returns the Markdown section."""
    figure, axes = pyplot().subplots(1, len(PAIRS), figsize=(8.6, 3.6), sharey=True, layout="constrained")
    for axis, pairs in zip(axes, PAIRS, strict=True):
        for j, (cell, name, label) in enumerate(
            ((f"policy{pairs}", "policy", "policy"), (f"reward{pairs}", "best", "best of n"))
        ):
            for what, colour, style in ((GOLD, COLOURS[0], "-"), (PROXY, COLOURS[1], "--")):
                for i, result in enumerate(results.get(cell, {}).values()):
                    at = _line(result["metrics"], name, what)
                    said = None if i else f"{label}, {what}"
                    axis.plot(*at, style, marker="os"[j], color=colour, lw=0.9, ms=3, alpha=0.7, label=said)
        axis.set(title=f"{pairs:,} pairs", xlabel="root of the divergence, nats$^{1/2}$")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("reward (gold: deviations)")
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(frameon=False, fontsize=8)
    figure.savefig(folder / "curves.png", dpi=130)
    pyplot().close(figure)
    return "## Gold and proxy on the way\n\nA line is a seed.\n\n![gold and proxy rewards](curves.png)\n"


def _line(metrics: dict[str, float], name: str, what: str) -> tuple[list[float], list[float]]:
    """The roots of the divergences at the points of a policy or of the best of n, and what is measured there."""
    points = sorted({int(parts[1]) for key in metrics if (parts := key.split("/"))[0] == name and len(parts) == 3})
    at = lambda point, of: metrics[f"{name}/{point}/{of}"]
    return [max(0.0, at(p, KL)) ** 0.5 for p in points], [at(p, what) for p in points]
