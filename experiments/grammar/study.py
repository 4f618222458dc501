"""Sentences of a grammar whose entropy is exact: how near a causal model comes to it, a planted null and a planted effect."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments import small
from experiments.languages import grammar
from experiments.pictures import COLOURS, pyplot
from experiments.study import Cell, Derived, Metric, Relation, Results, Study, derived_result
from lm import config

NATS, EXCESS, ACCURACY = "grammar/nats_a_word", "grammar/excess", "sentence/accuracy"
NOISE = 0.2  # of the leaves' words, which are half of all words
PARTS = {"sixteenth": 16, "quarter": 4}  # cells that have this part of the steps
WITHIN, SAME = 0.05, 0.02  # nats a word: near the entropy; as near as another
ENTROPY = "entropy"  # the derived result: the grammar itself as the model


def study(seeds: int = 3, steps: int = 1200) -> Study:
    languages = {
        "plain": grammar.language(),
        "renamed": grammar.language(renamed=True, sample=1),
        "noisy": grammar.language(noise=NOISE),
    }
    labels = {"plain": "grammar", "renamed": "grammar, words renamed", "noisy": f"grammar, {NOISE:.0%} of the leaves replaced"}

    def cell(name: str, label: str, steps: int) -> Cell:
        language = languages[name]
        model = small.model("decoder", width=64, layers=2, vocab_size=language.vocab_size)
        run = small.run(model, config.Causal(), steps=steps, batch_size=16, data=language.data(decoder_length=small.LENGTH))
        return Cell(label, run, {"language": name, "steps": str(steps)}, items=dict(language.items))

    cells = {name: cell(name, label, steps) for name, label in labels.items()}
    for name, part in PARTS.items():
        cells[name] = cell("plain", f"grammar, 1/{part} of the steps", steps // part)
    entropy = {name: language.entropy for name, language in languages.items()}
    assert entropy["plain"] is not None and entropy["noisy"] is not None
    known = entropy["noisy"] - entropy["plain"]
    relations = (
        Relation("four times the steps come nearer to the entropy", EXCESS, "plain", "quarter", planted="effect"),
        Relation(
            f"the model is within {WITHIN} nats a word of the entropy",
            NATS,
            "plain",
            ENTROPY,
            kind="equivalent",
            margin=WITHIN,
            source="arXiv 2305.13673",
        ),
        Relation("renamed words are as near", EXCESS, "renamed", "plain", kind="equivalent", margin=SAME, planted="null"),
        Relation("noise is found", NATS, "plain", "noisy", planted="effect"),
        Relation(
            f"noise costs the {known:.3f} nats a word that it must",
            EXCESS,
            "noisy",
            "plain",
            kind="equivalent",
            margin=SAME,
            planted="effect",
        ),
    )
    metrics = (
        Metric(EXCESS, "above the grammar's own", higher=False, lines={"entropy": 0.0}, unit="nats a word"),
        Metric(
            NATS,
            "held-out sentences",
            higher=False,
            lines={"entropy": entropy["plain"], "entropy with noise": entropy["noisy"]},
            unit="nats a word",
        ),
        Metric(ACCURACY, "words that are the most likely"),
    )
    title = "Sentences of a grammar, against its exact entropy (arXiv 2305.13673)"
    return Study(
        "grammar",
        title,
        cells,
        seeds,
        metrics,
        relations,
        derive=above_the_truth,
        derived={ENTROPY: Derived("the grammar itself")},
        analyse=partial(plot, {name: cells[name].run.train.steps for name in (*PARTS, "plain")}),
    )


def above_the_truth(results: Results) -> Results:
    """Adds to each cell the nats a word of the held-out sentences, and those above the grammar's own nats of the very same
    sentences; and the grammar itself as a result. An item is a sentence, divided by the mean length of all."""
    for name, seeds in list(results.items()):
        noise = NOISE if name == "noisy" else 0.0
        truth, words = grammar.truth(noise), np.mean([len(s) for s in grammar.heldout(noise)])
        for seed, result in seeds.items():
            nats = np.asarray(result.get("items", {}).get("sentence/nats", ()), float)
            if not len(nats):  # diverged
                continue
            _add(result, NATS, nats / words)
            _add(result, EXCESS, (nats - truth) / words)
            if name == "plain":
                itself = derived_result({})
                _add(itself, NATS, truth / words)
                results.setdefault(ENTROPY, {})[seed] = itself
    return results


def _add(result: dict[str, Any], metric: str, items: np.ndarray) -> None:
    result["metrics"][metric], result["items"][metric] = float(items.mean()), items.tolist()


def plot(steps: Mapping[str, int], results: Results, folder: Path) -> str:
    """Draws the nats a word above the entropy over the steps of these cells, a line a seed. Returns the Markdown section."""
    figure, axis = pyplot().subplots(figsize=(5.5, 3.6), layout="constrained")
    for seed in sorted({seed for name in steps for seed in results.get(name, {})}):
        found = {n: results.get(name, {}).get(seed, {}).get("metrics", {}).get(EXCESS) for name, n in steps.items()}
        points = [(n, excess) for n, excess in found.items() if excess is not None]
        axis.plot([x for x, _ in points], [y for _, y in points], "o-", color=COLOURS[0], lw=0.8, ms=4, alpha=0.7)
    axis.set(xscale="log", yscale="log", xlabel="steps", ylabel="nats a word above the grammar's entropy")
    axis.set_xticks([], minor=True)
    axis.set_xticks(list(steps.values()), list(map(str, steps.values())))
    axis.grid(alpha=0.3)
    figure.savefig(folder / "steps.png", dpi=130)
    pyplot().close(figure)
    return "## Distance from the entropy\n\nA line is a seed.\n\n![nats above the entropy by steps](steps.png)\n"
