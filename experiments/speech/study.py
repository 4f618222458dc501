"""What a language model mends in speech that was heard: hypotheses of a recogniser, put in order; see README.md."""

import itertools
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments.study import Cell, Derived, Gate, Measured, Metric, Relation, Results, Study, derived_result
from lm import config, recipes
from lm.evaluation import text_scores
from lm.evaluation.reranking import LanguageModel
from lm.evaluation.text_scores import Hypothesis
from lm.generation.transcriber import Transcriber
from lm.models.transformer import Transformer
from lm.saved import Saved
from lm.types import Example, TokenStream

WER, MENDED, BEAMS, BATCH = "wer", "mended", 16, 50
VOCAB, WIDTH = 512, 96
TUNED, TESTED = "valid", "test"  # sources: utterances whose weight is tuned, and those that are judged
ORDERS = {
    "greedy": "the likeliest path",
    "beam": "search, no language model",
    "untrained": "search, an untrained language model",
    "reranked": "search, the language model",
    "oracle": "the best of the search's texts",
    "majority": "the most frequent sentence of the training, whatever is said",
}
DECAYING = config.Schedule("wsd", warmup=0.05, final=0.0)


def source(name: str, use: Any, format: Any = "speech") -> config.Source:
    return config.Source("generated", f"spoken/{name}", format=format, use=use)


def settings(steps: int, batch_size: int, rate: float) -> dict[str, Any]:
    return dict(
        optimizer=config.Optimizer(learning_rate=rate, schedule=DECAYING),
        train=config.Train(steps=steps, batch_size=batch_size),
        checkpoint=config.Checkpoint(every=None, keep=1, keep_best=False),
        evaluate=config.Evaluate(every=None, batch_size=BATCH),
        log=config.Log(samples=(), tensorboard=False),
    )


def conformer(blocks: int = 4) -> config.Model:
    """A Conformer of so many blocks, each four letters of the pattern."""
    half = config.Block(ffn=config.Mlp(2 * WIDTH, "silu", bias=True), scale=0.5, dropout=0.1)
    parts = {
        "F": half,
        "A": config.Block(config.Attention(2), dropout=0.1),
        "C": config.Block(mixer=config.Convolution(15), dropout=0.1),
        "G": replace(half, norm_at=("in", "out")),
    }
    stem = config.Frames(400, strides=(2, 2))
    stack = config.Stack(4 * blocks, parts, "FACG", config.Rope(), final_norm=False, stem=stem)
    return config.Model(VOCAB, WIDTH, stack, head=config.Head(tied=False, bias=True))


def recogniser(utterances: int, steps: int) -> config.Run:
    uses = {f"train/{utterances}": "train", TUNED: "holdout", TESTED: "holdout"}
    sources = {name.partition("/")[0]: source(name, use) for name, use in uses.items()}
    data = config.Data(sources, dedup=config.Dedup(False, None), tokenizer=config.Tokenizer(vocab_size=VOCAB), on_long="skip")
    recipe = config.Transcribe(hide_bands=15, hide_frames=25, beams=BEAMS, language_model="unset", weight=0.0)
    how = settings(steps, 16, 3e-3) | dict(evaluate=config.Evaluate(every=None, rows=BATCH, batch_size=BATCH))
    return config.Run(conformer(), data, recipe=recipe, **how)  # all utterances are tested by `measured`


def of_text(sentences: int, steps: int) -> config.Run:
    block = config.Block(config.Attention(3), config.Mlp(4 * WIDTH), config.Norm("rms"))
    model = config.Model(VOCAB, WIDTH, decoder=config.Stack(2, {"L": block}, position=config.Rope()))
    sources = {"said": source(f"text/{sentences}", "both", "text")}
    tokenizer = config.Tokenizer(vocab_size=VOCAB)
    data = config.Data(sources, dedup=config.Dedup(True, None), tokenizer=tokenizer, decoder_length=64)
    return config.Run(model, data, **settings(steps, 32, 3e-3))


def study(seeds: int = 4, utterances: int = 1500, steps: int = 900, sentences: int = 20_000, text_steps: int = 400) -> Study:
    cells = {
        "text": Cell("language model", of_text(sentences, text_steps)),
        "heard": Cell(
            "Conformer under CTC",
            recogniser(utterances, steps),
            reads={"recipe.language_model": "text"},
            measure=measured,
        ),
    }
    derived = {name: Derived(label, ("heard", "text")) for name, label in ORDERS.items()}
    relations = (
        Relation("with the language model < without", WER, "reranked", "beam"),
        Relation("with the language model < with an untrained one", WER, "reranked", "untrained", primary=False),
        Relation("search < the likeliest path", WER, "beam", "greedy", primary=False),
        Relation("with the language model < the most frequent sentence", WER, "reranked", "majority", primary=False),
    )
    metrics = (Metric(WER, "word errors to a word of 400 held-out utterances", higher=False),)
    gates = (
        Gate("most words are heard", f"beam/{WER}", at_most=0.6, cells=("heard",)),
        Gate("the texts of a search differ: the best of them is better", f"room/{WER}", at_least=0.01, cells=("heard",)),
    )
    how: dict[str, Any] = dict(derive=orders, derived=derived, analyse=mended, gates=gates)
    return Study("speech", "Speech that is heard, and a language model", cells, seeds, metrics, relations, **how)


# ---------------------------------------------------------------------------------------------------------- measuring


def measured(heard: Saved) -> Measured:
    """`<order>/wer` of each of ORDERS on the tested utterances, with the errors of each; the weights are tuned on others."""
    assert heard.run is not None and isinstance(heard.run.recipe, config.Transcribe)
    hypotheses, greedy = read(heard)
    texts = [one.text for one in hypotheses]
    prior = LanguageModel.open(heard.run.recipe.language_model or "", name="recipe.language_model")
    log_probs = {"reranked": prior.log_probs(texts), "untrained": untrained(prior, heard.run.train.seed).log_probs(texts)}
    names = list(dict.fromkeys(one.utterance for one in hypotheses))
    tuned, tested = ([name for name in names if name.startswith(split)] for split in (TUNED, TESTED))
    weights = {name: text_scores.tuned(hypotheses, list(of), tuned) for name, of in log_probs.items()}
    orders = {name: text_scores.order(hypotheses, list(log_probs[name]), weight) for name, weight in weights.items()}
    orders["beam"] = text_scores.order(hypotheses, list(log_probs["reranked"]), 0.0)
    chosen = {name: [hypotheses[of[utterance][0]] for utterance in tested] for name, of in orders.items()}
    chosen["greedy"] = [greedy[utterance] for utterance in tested]
    chosen["oracle"] = [min((hypotheses[i] for i in orders["beam"][name]), key=wrong) for name in tested]
    often = most_frequent(heard)
    chosen["majority"] = [replace(one, text=often) for one in chosen["beam"]]
    words = np.mean([len((one.reference or "").split()) for one in chosen["beam"]])
    items = {f"{name}/{WER}": np.array([wrong(one) for one in some]) / words for name, some in chosen.items()}
    metrics = {name: float(values.mean()) for name, values in items.items()}
    metrics |= {f"{name}/weight": weight for name, weight in weights.items()}
    metrics[f"room/{WER}"] = metrics[f"beam/{WER}"] - metrics[f"oracle/{WER}"]
    pairs = zip(chosen["beam"], chosen["reranked"], strict=True)
    shown = [(a.reference, a.text, b.text) for a, b in pairs if wrong(a) and not wrong(b)]
    return Measured(metrics, items, {MENDED: json.dumps(shown)})


def wrong(one: Hypothesis) -> int:
    """Its word errors."""
    return text_scores.distance(one.text.split(), (one.reference or "").split())


def read(heard: Saved) -> tuple[list[Hypothesis], dict[str, Hypothesis]]:
    """The texts that a search finds in each held-out utterance; and by utterance that of the likeliest path."""
    run: Any = heard.run
    recipe = recipes.recipe(run)
    data = recipe.data(run, progress=False)
    rows: Any = recipe.rows(run, data)["holdout"]
    said = {name: data.records(name, "holdout") for name in data.holdout}
    params = heard.params(device=jax.local_devices()[0])
    made = Transcriber(Transformer(run.model), data.tokenizer, run.recipe.answer, BEAMS)
    found, best = list[Hypothesis](), dict[str, Hypothesis]()
    for first in range(0, rows.count, BATCH):
        index = np.arange(first, first + BATCH)  # blank past the last
        stream = rows.rows(index).example.encoder
        readings, paths = (replace(made, beams=beams)(params, stream) for beams in (BEAMS, 1))
        for utterance, some, (path,) in zip(rows.utterances(index), readings, paths, strict=True):
            if utterance is None:
                continue
            name, reference = "{}/{}".format(*utterance), said[utterance[0]][utterance[1]].text
            found += [Hypothesis(name, one.text, one.log_prob, reference) for one in some]
            best[name] = Hypothesis(name, path.text, path.log_prob, reference)
    return found, best


def untrained(prior: LanguageModel, seed: int) -> LanguageModel:
    """The same model with the parameters that it begins with."""
    tokens = np.zeros((1, 4), np.int32)
    example = Example(None, TokenStream(tokens, tokens, tokens + 1), None, None)
    params = jax.tree.map(lambda x: x, prior.model.init(jax.random.key(seed), example)["params"])
    from flax import linen as nn

    return replace(prior, params=nn.unbox(params))


def most_frequent(heard: Saved) -> str:
    """The sentence that is said most often in the training."""
    run: Any = heard.run
    data = recipes.recipe(run).data(run, progress=False)
    return Counter(record.text for record in data.records("train", "train")).most_common(1)[0][0]


# ---------------------------------------------------------------------------------------------------------- the report


def orders(results: Results) -> Results:
    """Adds a cell for each of ORDERS, with its word errors. What was mended is no remark on a figure, and leaves the flags."""
    for seed, result in results.get("heard", {}).items():
        result[MENDED] = json.loads(result["flags"].pop(MENDED, "[]"))
        for name in ORDERS if result["metrics"] else ():  # a diverged run has none
            key = f"{name}/{WER}"
            made = derived_result({WER: result["metrics"][key]}, {WER: result["items"][key]})
            results.setdefault(name, {})[seed] = made
    return results


def mended(results: Results, folder: Path) -> str:
    """A table of sentences that the language model mends in most seeds, as Markdown."""
    runs = [result for result in results.get("heard", {}).values() if result["metrics"]]
    of_runs = [row for result in runs for row in sorted({tuple(row) for row in result[MENDED]})]
    weights = ", ".join(f"{result['metrics']['reranked/weight']:.3g}" for result in runs)
    rows = [f"| {said} | {before} | {len(list(same))} of {len(runs)} |" for (said, before, _), same in grouped(of_runs)]
    head = "| said, and with the language model | heard without it | seeds |\n|---|---|---|\n"
    return f"Sentences that the language model mends (its weights: {weights}).\n\n" + head + "\n".join(rows[:SHOWN]) + "\n"


SHOWN = 20  # sentences


def grouped(rows: list[tuple[str, ...]]) -> list[tuple[tuple[str, ...], list[tuple[str, ...]]]]:
    """Equal rows together, the most frequent first."""
    groups = [(key, list(same)) for key, same in itertools.groupby(sorted(rows))]
    return sorted(groups, key=lambda group: (-len(group[1]), group[0]))
