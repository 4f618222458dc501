"""Vectors of texts from an encoder, a decoder, and a decoder that was made an encoder (LLM2Vec, arXiv 2404.05961)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import small
from experiments.study import Cell, Gate, Measured, Metric, Relation, Study
from lm import config
from lm.data.corpus import packages
from lm.models.transformer import Transformer
from lm.saved import Saved
from lm.types import TokenStream

SET = "topics"  # of `lm.data.corpus.packages`: summaries of articles of an encyclopaedia, in eleven topics
TOPIC, HALVES, LOSS = "topic", "halves", "heldout/loss"
TRAIN, TEST, PAIRS = 2000, 1000, 500  # texts whose topics are learned, and asked; texts whose halves are matched
BATCH = 100
PENALTIES = 10.0 ** np.arange(-4.0, 3)  # of the ridge regression, a vector, of which one is chosen


def study(seeds: int = 3, budget: float = 6e12) -> Study:
    causal, masked, contrast = config.Causal(), config.Masked(rate=0.3), config.Contrastive()
    cells = {
        "none": cell("encoder, not trained", "encoder", masked, 0.0, floor=None),
        "encoder": cell("encoder", "encoder", masked, 1.0),
        "decoder": cell("decoder", "decoder", causal, 1.0),
        "before": cell("decoder, 0.7 of the budget", "decoder", causal, 0.7),
        "opened": cell("the same, read from both sides", "encoder", masked, 0.0, "before"),
        "adapted": cell("the same, then masked for 0.3", "encoder", masked, 0.3, "before"),
        "encoder_contrast": cell("encoder, then contrast", "encoder", contrast, 0.1, "encoder"),
        "decoder_contrast": cell("decoder, then contrast", "decoder", contrast, 0.1, "decoder"),
        "adapted_contrast": cell("decoder, then masked, then contrast", "encoder", contrast, 0.1, "adapted"),
    }
    source = dict(source="arXiv 2404.05961")
    contrasted = dict(source="arXiv 2104.08821", primary=False)
    relations = (
        Relation("topics by the encoder > by the decoder", TOPIC, "encoder", "decoder"),
        Relation("next tokens, then masked > next tokens alone", TOPIC, "adapted", "decoder", **source),
        Relation("then contrast > before it", TOPIC, "adapted_contrast", "adapted", **source),
        Relation("left to right > the same read from both sides", TOPIC, "before", "opened", primary=False, **source),
        Relation("masked, once opened > opened alone", TOPIC, "adapted", "opened", primary=False, **source),
        Relation("next tokens, then masked > masked alone", TOPIC, "adapted", "encoder", primary=False),
        Relation("encoder: then contrast > before it", TOPIC, "encoder_contrast", "encoder", **contrasted),
        Relation("decoder: then contrast > before it", TOPIC, "decoder_contrast", "decoder", **contrasted),
        Relation("halves by the decoder > by the encoder", HALVES, "decoder", "encoder", primary=False),
    )
    metrics = (
        Metric(TOPIC, "topics by a linear classifier", floor=True),
        Metric(HALVES, "second halves found", lines={"chance": 1 / PAIRS}),
        Metric(LOSS, "held-out loss of its objective", higher=False, comparable=False, unit="nats"),
    )
    gate = Gate(
        "more than the frequencies of tokens was learned", LOSS, at_most=5.0, cells=("encoder", "decoder", "before", "adapted")
    )
    title = "Vectors of texts from an encoder, a decoder, and a decoder made an encoder (arXiv 2404.05961)"
    return Study("vectors", title, cells, seeds, metrics, relations, "flops", budget, gates=(gate,))


def cell(
    label: str, to: str, objective: config.Objective, share: float, start: str | None = None, floor: str | None = "none"
) -> Cell:
    model = small.model(to, width=96, layers=2)
    stack: Any = getattr(model, to)
    how: dict[str, Any] = dict(batch_size=8)
    if isinstance(objective, config.Contrastive):  # dropout makes its two views of a text
        stack = replace(stack, blocks={"L": replace(stack.blocks["L"], dropout=0.1)})
        model = replace(model, **{to: stack})
        how = dict(batch_size=16, learning_rate=3e-4)
    data = config.Data(
        sources={SET: config.Source(kind="package", path=SET)},
        tokenizer=config.Tokenizer(vocab_size=small.VOCAB),
        **{f"{to}_length": small.LENGTH},
    )
    init_map = {"encoder": "decoder"} if start == "before" else {}
    run = small.run(model, objective, data=data, **how)
    return Cell(label, run, {}, start, share, measure=measured, floor=floor, init_map=init_map)


def measured(trained: Saved) -> Measured:
    """TOPIC: whether a held-out text's class is right. HALVES: whether its second half is found by the first."""
    assert trained.run is not None
    sets = packages.load(SET, trained.run.data.cache)
    train, test = sets["train"][:TRAIN], sets["holdout"][:TEST]
    words = [record.text.split() for record in test[:PAIRS]]
    first, second = (
        [" ".join(part) for part in some] for some in zip(*((w[: len(w) // 2], w[len(w) // 2 :]) for w in words), strict=True)
    )
    of = lambda texts: vectors(trained, texts)
    known, asked = ([record.text for record in some] for some in (train, test))
    labels, right = (np.array([record.label for record in some]) for some in (train, test))
    items = {TOPIC: classified(of(known), labels, of(asked)) == right, HALVES: matched(of(first), of(second))}
    return Measured({name: float(values.mean()) for name, values in items.items()}, items)


def vectors(trained: Saved, texts: Sequence[str]) -> np.ndarray:
    """float32 [N, D]: the mean of a text's hidden vectors, of at most LENGTH tokens with its ends."""
    tokenizer: Any = trained.tokenizer()
    rows = [[tokenizer.bos_id, *ids, tokenizer.eos_id][: small.LENGTH] for ids in tokenizer.encode_batch(texts)]
    sizes = np.array([len(row) for row in rows])
    within = (np.arange(small.LENGTH) < sizes[:, None]).astype(np.int32)
    tokens = np.zeros_like(within)
    tokens[within > 0] = np.concatenate(rows)
    network, params = Transformer(trained.model), trained.params()
    method = "encode" if trained.model.architecture == "encoder" else "decode"

    @jax.jit
    def read(tokens: jax.Array, within: jax.Array) -> jax.Array:
        stream = TokenStream(tokens, jnp.arange(small.LENGTH) * within, within)
        x: Any = network.apply({"params": params}, stream, method=method)
        return jnp.sum(x * within[..., None], axis=1) / jnp.sum(within, axis=1)[:, None]

    return np.concatenate([read(tokens[i : i + BATCH], within[i : i + BATCH]) for i in range(0, len(rows), BATCH)])


def matched(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """bool [N]: whether of all second halves that of the same text has the greatest cosine, once each side's mean is taken
    off."""
    unit = lambda x: (x - x.mean(0)) / np.linalg.norm(x - x.mean(0), axis=1, keepdims=True)
    return np.argmax(unit(first) @ unit(second).T, axis=1) == np.arange(len(first))


def classified(x: np.ndarray, labels: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """The classes of the vectors `asked` by ridge regression onto classes, its penalty the best for vectors left out of `x`."""
    classes, index = np.unique(labels, return_inverse=True)
    mean, scale = x.mean(0), x.std(0) + 1e-6
    fit = Ridge((x - mean) / scale, np.eye(len(classes))[index])
    best = max(PENALTIES * len(x), key=lambda penalty: (fit.left_out(penalty).argmax(1) == index).mean())
    return classes[fit.predicted((asked - mean) / scale, best).argmax(1)]


class Ridge:
    """Least squares of y [N, C] on x [N, D] and a constant that is not penalised."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.mean, self.centre, self.y = x.mean(0), y.mean(0), y
        self.u, self.s, self.vt = np.linalg.svd(x.astype(np.float64) - self.mean, full_matrices=False)

    def predicted(self, x: np.ndarray, penalty: float) -> np.ndarray:
        weights = self.vt.T @ ((self.s / (self.s**2 + penalty))[:, None] * (self.u.T @ (self.y - self.centre)))
        return (x - self.mean) @ weights + self.centre

    def left_out(self, penalty: float) -> np.ndarray:
        """float64 [N, C]: each row as the regression on all others predicts it, by its leverage."""
        shrunk = self.s**2 / (self.s**2 + penalty)
        fitted = self.centre + self.u @ (shrunk[:, None] * (self.u.T @ (self.y - self.centre)))
        leverage = (self.u**2 @ shrunk + 1 / len(self.y))[:, None]
        return (fitted - leverage * self.y) / (1 - leverage)
