"""Quality filters: what noise in the training data costs on clean text, how often it is written, and what filters win back."""

import json
from dataclasses import replace
from typing import Any

import numpy as np

from experiments import small
from experiments.quality import corpus
from experiments.study import Cell, Gate, Measured, Metric, Relation, Study
from lm import config
from lm.data.corpus.prepare import prepare
from lm.generation.engine import Engine, Request
from lm.models.transformer import Transformer
from lm.paths import expanded
from lm.saved import Saved

LOSS, MARKED = "heldout/loss", "written/marked"
NOISE, TEXT = "dropped/noise", "dropped/text"
SAMPLES, TOKENS = 256, 128  # texts that a model writes, and their tokens at most
MARGIN = 0.03  # nats a token, within which filtered text is as good as clean text
MUON = config.Optimizer("muon", 0.02, small.DECAYING, adam_learning_rate=0.005)
RULES = config.Quality(
    language=config.Language(), gopher=config.Gopher(), c4=config.C4(end_marks=False), fineweb=config.FineWeb()
)


def with_classifier(made: corpus.Corpus) -> config.Quality:
    examples = config.Source("jsonl", f"{made.folder}/examples.jsonl", format="labelled")
    c = RULES
    return config.Quality(c.language, c.gopher, c.c4, c.fineweb, config.Classifier(examples))


def study(seeds: int = 4, steps: int = 500) -> Study:
    """All cells read the same number of tokens, in the same tokenizer, and are measured on the same held-out passages."""
    made = corpus.corpus()
    datas = {
        "noisy": ("noisy text", made.data()),
        "rules": ("rules alone", made.data(quality=RULES)),
        "filtered": ("rules and a classifier", made.data(quality=with_classifier(made))),
        "clean": ("clean text", made.data("clean")),
    }
    model = small.model("decoder", layers=2, vocab_size=corpus.VOCAB)
    cells = {}
    for name, (label, data) in datas.items():
        run = replace(small.run(model, config.Causal(), steps=steps, data=data, evaluate_rows=512), optimizer=MUON)
        cells[name] = Cell(label, run, {"filters": label}, measure=measured)
    source = "FineWeb, arXiv 2406.17557, section 3"
    relations = (
        Relation("filtered > noisy, loss on clean text", LOSS, "filtered", "noisy", source=source),
        Relation("filtered > noisy, fewer errors written", MARKED, "filtered", "noisy"),
        Relation("filtered = clean, loss on clean text", LOSS, "filtered", "clean", kind="equivalent", margin=MARGIN),
        Relation("rules > noisy, loss on clean text", LOSS, "rules", "noisy", source=source, primary=False),
        Relation("rules > noisy, fewer errors written", MARKED, "rules", "noisy", primary=False),
        Relation("filtered > rules, loss on clean text", LOSS, "filtered", "rules", primary=False),
        Relation("filtered > rules, fewer errors written", MARKED, "filtered", "rules", primary=False),
    )
    metrics = (
        Metric(LOSS, "held-out loss on clean text", higher=False, unit="nats a token", lines={"single tokens": unigram(made)}),
        Metric(MARKED, "written texts with a planted error", higher=False, lines={"training data": corpus.SPOILED}),
        *(Metric(f"written/{kind}", f"written texts, {kind}", higher=False) for kind in corpus.KINDS),
        Metric(NOISE, "spoiled passages that are dropped"),
        Metric(TEXT, "clean passages that are dropped", higher=False),
    )
    gates = (
        Gate("the model knows more than the frequencies of tokens", LOSS, at_most=unigram(made) - 1),
        Gate("the model of noisy text writes planted errors", MARKED, at_least=0.1, cells=("noisy",)),
        Gate("the filters drop the noise", NOISE, at_least=0.8, cells=("filtered",)),
        Gate("the filters keep the text", TEXT, at_most=0.1, cells=("filtered", "rules")),
    )
    title = "Noisy text with and without quality filters"
    return Study("quality", title, cells, seeds, metrics, relations, gates=gates)


def unigram(made: corpus.Corpus) -> float:
    """Nats a token of the held-out passages under the frequencies of the clean training passages' tokens."""
    stores = prepare(made.data("clean"), progress=False)
    counts = np.ones(stores.tokenizer.vocab_size)
    train, held = stores.train["train"], stores.holdout["heldout"]
    every = lambda store: np.concatenate([store.document(i) for i in range(store.num_documents)])
    np.add.at(counts, every(train), 1)
    return float(-np.log(counts / counts.sum())[every(held)].mean())


def measured(trained: Saved) -> Measured:
    return Measured(written(trained) | dropped(trained))


def written(trained: Saved) -> dict[str, float]:
    """The shares of SAMPLES texts, written at temperature 1 from their beginning, with each kind of planted error."""
    tokenizer: Any = trained.tokenizer()
    begin = Request(np.array([tokenizer.bos_id], np.int32), TOKENS - 1, config.Sampling(), samples=SAMPLES)
    settings: dict[str, Any] = dict(slots=64, length=TOKENS, eos=[tokenizer.eos_id])
    (texts,) = Engine(Transformer(trained.model), trained.params(), **settings).write([begin])
    kinds = [corpus.kind_of(tokenizer.decode([w.token for w in text if w.token != tokenizer.eos_id])) for text in texts]
    shares = {f"written/{kind}": kinds.count(kind) / len(kinds) for kind in corpus.KINDS}
    return shares | {MARKED: sum(kind is not None for kind in kinds) / len(kinds)}


def dropped(trained: Saved) -> dict[str, float]:
    """The shares of spoiled and of clean training passages that the quality filters dropped; nothing where there are none."""
    assert trained.run is not None
    data = trained.run.data
    if data.quality == config.Quality():
        return {}
    with expanded(data.sources["train"].path).open(encoding="utf-8") as lines:
        spoiled = np.array([json.loads(line)["kind"] != "clean" for line in lines])
    gone = np.zeros(len(spoiled), bool)
    with (prepare(data, progress=False).path / "dropped.jsonl").open(encoding="utf-8") as lines:
        for one in map(json.loads, lines):
            if one["source"] == "train" and "." in one["reason"]:  # of a rule, not a duplicate
                gone[int(one["key"].rpartition(":")[2]) - 1] = True
    return {NOISE: float(gone[spoiled].mean()), TEXT: float(gone[~spoiled].mean())}
