"""Sequence to sequence as it began: one vector against attention, by the length of what is translated (arXiv 1409.0473, figure
2; 1409.3215)."""

from pathlib import Path
from typing import Any

import numpy as np

from experiments import small
from experiments.answers import scored
from experiments.languages import passages
from experiments.pictures import COLOURS, STYLES, pyplot, save
from experiments.study import Cell, Gate, Measured, Metric, Relation, Results, Study
from lm import config, recipes
from lm.config import Attention, Block, Bottleneck, Lstm, Model, Norm, Stack
from lm.errors import UserError
from lm.evaluation.labelled import Prompts
from lm.models.transformer import Transformer
from lm.saved import Saved

WIDTH, HIDDEN = 128, 256
LENGTH = passages.LONGEST + 2  # tokens of a passage with its ends
SHORT, LONG = "short/gain", "longest/gain"
KEPT = "kept/gain"  # share of the gain on short passages that there is on the longest
LOST = "lost/nats"  # nats a token that the longest passages cost more than short ones


def lstm(*, attention: bool, backward: bool = True) -> Model:
    """One layer each. With `attention` the encoder reads both ways and the decoder attends to all of its vectors, additively;
    without, its state at the end, of the source from its last word to its first if `backward`, is all that the decoder gets."""
    block = lambda direction, **more: Block(ffn=None, mixer=Lstm(HIDDEN, direction), norm=Norm("rms"), **more)
    size = passages.language().vocab_size
    if attention:
        cross = block("forward", attention=Attention(1, score="additive"), cross=True)
        return Model(size, WIDTH, encoder=Stack(1, {"L": block("both")}), decoder=Stack(1, {"L": cross}))
    encoder, last = ("backward", "first") if backward else ("forward", "last")
    stacks: dict[str, Any] = dict(encoder=Stack(1, {"L": block(encoder)}), decoder=Stack(1, {"L": block("forward")}))
    return Model(size, WIDTH, **stacks, bottleneck=Bottleneck(pool=last), join="prefix")


def run(model: Model) -> config.Run:
    """Trained on the answers alone, as a fine-tuning from scratch is."""
    language = passages.language()
    source = lambda name, use: config.Source("jsonl", language.items[name], format="pair", use=use)
    held_out = {name: source(name, "holdout") for name in passages.BINS}
    return config.Run(
        model,
        language.data(sources={"taught": source("taught", "train")} | held_out),
        config.Causal(),
        config.Optimizer(learning_rate=2e-3, schedule=small.DECAYING),
        config.Train(batch_size=32),
        config.Checkpoint(every=None, keep=1, keep_best=False),
        config.Evaluate(every=None, rows=1, batch_size=64),
        log=config.Log(samples=(), tensorboard=False),
        recipe=config.Finetune(how="text", length=LENGTH, answer=LENGTH - 1, prefix=False),
    )


def study(seeds: int = 3, budget: float = 2e12) -> Study:
    transformer = small.model("encoder_decoder", width=WIDTH, layers=2, vocab_size=passages.language().vocab_size)
    models = {
        "vector": ("LSTMs, one vector", lstm(attention=False)),
        "attention": ("LSTMs, additive attention", lstm(attention=True)),
        "transformer": ("transformer", transformer),
        "in_order": ("LSTMs, one vector, source in order", lstm(attention=False, backward=False)),
    }
    cells = {name: Cell(label, run(model), measure=measured) for name, (label, model) in models.items()}
    began = "1409.0473, figure 2"
    relations = (
        Relation("attention > one vector, 13 to 16 words", LONG, "attention", "vector", source=began),
        Relation("attention keeps more with length than one vector", KEPT, "attention", "vector", source=began),
        Relation("transformer > one vector, 13 to 16 words", LONG, "transformer", "vector", source="1706.03762, table 2"),
        Relation("attention loses fewer nats with length", LOST, "attention", "vector", source=began, primary=False),
        Relation("transformer > attention, 13 to 16 words", LONG, "transformer", "attention", primary=False),
        Relation("reversed source > in order, 13 to 16 words", LONG, "vector", "in_order", source="1409.3215", primary=False),
    )
    words = {name: f"{low} to {high} words" for name, (low, high) in passages.BINS.items()}
    metrics = [
        Metric(KEPT, f"share of the gain on {words['short']} that there is on {words['longest']}"),
        Metric(LOST, f"nats lost from {words['short']} to {words['longest']}", higher=False, unit="nats a token"),
    ]
    for name in passages.BINS:
        metrics.append(Metric(f"{name}/gain", f"chrF above that of another answer, {words[name]}"))
        metrics.append(Metric(f"{name}/chrf", f"chrF, {words[name]}", lines={"copying the source": copied(name)}))
        metrics.append(Metric(f"{name}/bleu", f"BLEU, {words[name]}"))
        metrics.append(Metric(f"{name}/nats", f"answers, {words[name]}", higher=False, unit="nats a token"))
    how: dict[str, Any] = dict(gates=(Gate("the source is read", SHORT, at_least=8.0),), analyse=by_length)
    title = "One vector against attention, by the length of the source"
    return Study("seq2seq", title, cells, seeds, tuple(metrics), relations, "flops", budget, **how)


def measured(model: Saved) -> Measured:
    """Of each length: `chrf`, the mean of the passages' chrF (sacrebleu), `gain`, by how much it is above the chrF of the same
    text against the answer to the next passage, `bleu` of the corpus, and `nats` a token of the answers; KEPT and LOST."""
    metrics: dict[str, float] = {}
    items: dict[str, np.ndarray] = {}
    for name, found in scored(model).items():
        items[f"{name}/nats"] = found.nats / found.tokens.mean()
    for name, (written, answers) in translated(model).items():
        items[f"{name}/chrf"] = np.array([chrf(*pair) for pair in zip(written, answers, strict=True)])
        blind = np.array([chrf(*pair) for pair in zip(written, answers[1:] + answers[:1], strict=True)])
        items[f"{name}/gain"] = items[f"{name}/chrf"] - blind
        metrics[f"{name}/bleu"] = bleu(written, answers)
    means = {name: float(values.mean()) for name, values in items.items()}
    metrics[KEPT] = means[LONG] / max(means[SHORT], 1.0)
    metrics[LOST] = means["longest/nats"] - means["short/nats"]
    return Measured(metrics | means, items)


def translated(model: Saved) -> dict[str, tuple[list[str], list[str]]]:
    """What the model writes, the likeliest word each time, and the answers, by length."""
    assert model.run is not None
    recipe = recipes.recipe(model.run)
    complete = recipe.complete(model.run, model.folder)
    data = recipe.data(complete, progress=False)
    rows: Any = recipe.rows(complete, data)["holdout"]
    index = np.arange(rows.count)
    written = Prompts(rows.builder, rows.prompts(index)).answers(Transformer(complete.model), model.params(), batch_size=32)
    records = {name: data.records(name, "holdout") for name in data.holdout}
    out: dict[str, tuple[list[str], list[str]]] = {name: ([], []) for name in records}
    for (name, number), text in zip(rows.records(index), written, strict=True):
        out[name][0].append(text)
        out[name][1].append(records[name][number].answer)
    return out


def chrf(text: str, answer: str) -> float:
    """chrF2 of one text, 0 to 100."""
    metrics = _sacrebleu()
    return float(metrics.CHRF().sentence_score(text, [answer]).score)


def bleu(texts: list[str], answers: list[str]) -> float:
    """BLEU of the corpus, 0 to 100; the words are cut already."""
    metrics = _sacrebleu()
    return float(metrics.BLEU(tokenize="none").corpus_score(texts, [answers]).score)


def copied(name: str) -> float:
    """chrF of the questions of a length as their own answers."""
    import json

    from lm.paths import expanded

    lines = expanded(passages.language().items[name]).read_text(encoding="utf-8").splitlines()
    return float(np.mean([chrf(record["question"], record["answer"]) for record in map(json.loads, lines)]))


def by_length(results: Results, folder: Path) -> str:
    """Draws chrF and BLEU over the words of the source, as figure 2 of 1409.0473 does. Returns the Markdown section."""
    names = {
        "vector": "one vector",
        "attention": "additive attention",
        "transformer": "transformer",
        "in_order": "one vector, in order",
    }
    figure, axes = pyplot().subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    for axis, score in zip(axes, ("chrf", "bleu"), strict=True):
        for i, (cell, label) in enumerate(names.items()):
            runs = [result["metrics"] for result in results.get(cell, {}).values() if result["metrics"]]
            values = np.array([[run[f"{name}/{score}"] for name in passages.BINS] for run in runs])
            if runs:
                axis.plot(range(len(passages.BINS)), values.mean(0), STYLES[i], marker="o", color=COLOURS[i], label=label)
                axis.fill_between(range(len(passages.BINS)), values.min(0), values.max(0), color=COLOURS[i], alpha=0.2, lw=0)
        axis.set_xticks(range(len(passages.BINS)), [f"{low}-{high}" for low, high in passages.BINS.values()])
        axis.set(xlabel="words of the source", ylabel={"chrf": "chrF2", "bleu": "BLEU"}[score], ylim=(0, 100))
        axis.grid(alpha=0.3)
    if axes[0].get_legend_handles_labels()[0]:
        axes[0].legend(frameon=False, loc="lower left")
    save(figure, folder / "by_length.png")
    return "## By length\n\nMeans over seeds; bands are their range.\n\n![chrF and BLEU by length](by_length.png)\n"


def _sacrebleu() -> Any:
    try:
        from sacrebleu import metrics
    except ImportError as error:
        raise UserError(f"BLEU and chrF need their library ({error}): pip install -e '.[harness]'") from None
    return metrics
