"""Next tokens, blocks and masked diffusion at equal FLOPs, on sentences of a grammar: their loss, and what they write
(arXiv 2503.09573, 2406.07524)."""

from typing import Any

import jax
import numpy as np

from experiments import small
from experiments.languages import grammar
from experiments.study import Cell, Derived, Gate, Measured, Metric, Relation, Results, Study, derived_result
from lm import config
from lm.config import Sampling
from lm.generation.diffusion import fill
from lm.generation.engine import Engine, Request
from lm.models.transformer import Transformer
from lm.saved import Saved
from lm.types import TokenStream

LOSS, WRITTEN = "heldout/loss", "unbroken"
OBJECTIVES = {
    "causal": ("next token", config.Causal()),
    "block_4": ("blocks of 4", config.BlockDiffusion(4)),
    "block_16": ("blocks of 16", config.BlockDiffusion(16)),
    "masked": ("masked diffusion", config.MaskedDiffusion()),
}
SENTENCES = 96  # that are written
LONGEST = 72  # tokens of one, bos and its end included
END, UNKNOWN = -1, -2  # of a sentence; a word that is none of the grammar's
# How masked diffusion writes: name -> label, order of filling, steps (None: one for each word).
WAYS: dict[str, tuple[str, Any, int | None]] = {
    "steps_1": ("written in 1 step", "random", 1),
    "steps_4": ("written in 4 steps", "random", 4),
    "steps_16": ("written in 16 steps", "random", 16),
    "steps_all": ("a step a word", "random", None),
    "confident": ("a step a word, the surest first", "confidence", None),
}


def study(seeds: int = 3, budget: float = 1.5e12) -> Study:
    language = grammar.language()
    assert language.entropy is not None
    cells = {}
    for name, (label, objective) in OBJECTIVES.items():
        model = small.model("decoder", width=64, layers=2, vocab_size=language.vocab_size)
        twice = isinstance(objective, config.BlockDiffusion)  # a row holds the text and its noised copy
        length = small.LENGTH * (1 + twice)
        run = small.run(model, objective, data=language.data(decoder_length=length))
        cells[name] = Cell(label, run, measure={"causal": continued, "masked": filled}.get(name))
    source = "arXiv 2503.09573"
    relations = (
        Relation("next token < blocks of 4", LOSS, "causal", "block_4", source=source),
        Relation("blocks of 4 < blocks of 16", LOSS, "block_4", "block_16", source=source),
        Relation("blocks of 4 < masked diffusion", LOSS, "block_4", "masked", source=source),
        Relation("blocks of 16 < masked diffusion", LOSS, "block_16", "masked", source=source, primary=False),
        Relation("written a word a step > all words at once", WRITTEN, "steps_all", "steps_1", source="arXiv 2406.07524"),
        Relation("written in 16 steps > in 4", WRITTEN, "steps_16", "steps_4", source="arXiv 2406.07524", primary=False),
        Relation("surest first > in random order", WRITTEN, "confident", "steps_all", source="arXiv 2502.09992", primary=False),
        Relation("next tokens > a step a word", WRITTEN, "causal", "steps_all", primary=False),
    )
    metrics = (
        Metric(LOSS, "held-out loss, or its bound", higher=False, lines={"single words": grammar.UNIGRAM}, unit="nats a word"),
        Metric(WRITTEN, "share of a written sentence before its first error"),
        Metric("variety", "entropy of the written words", higher=None, unit="nats"),
    )
    gate = Gate("the model knows more than the frequencies of words", LOSS, at_most=grammar.UNIGRAM - 0.5)
    title = "Next tokens, blocks and masked diffusion at equal FLOPs (arXiv 2503.09573)"
    derived = {name: Derived(f"masked diffusion, {label}", ("masked",)) for name, (label, _, _) in WAYS.items()}
    how: dict[str, Any] = dict(derive=ways, derived=derived, gates=(gate,))
    return Study("diffusion", title, cells, seeds, metrics, relations, "flops", budget, **how)


def ways(results: Results) -> Results:
    """Says which losses are bounds, and gives each way in which masked diffusion writes a result of its own."""
    for seed, result in small.flag_bounds(results).get("masked", {}).items():
        for name in WAYS:
            found = {metric: result["metrics"].get(f"{name}/{metric}") for metric in (WRITTEN, "variety")}
            metrics = {metric: value for metric, value in found.items() if value is not None}
            results.setdefault(name, {})[seed] = derived_result(metrics)
    return results


# ------------------------------------------------------------------------------------------------------------ writing


def filled(trained: Saved) -> Measured:
    """Sentences as long as the first held-out ones, filled in from masks alone at temperature 1, in each of `WAYS`."""
    tokenizer: Any = trained.tokenizer()
    sizes = np.array([len(words) + 2 for words in grammar.heldout()[:SENTENCES]])  # with bos and eos
    within = np.arange(LONGEST) < sizes[:, None]
    masked = within & (np.arange(LONGEST) > 0)
    tokens = np.where(masked, tokenizer.mask_id, np.where(within, tokenizer.bos_id, 0)).astype(np.int32)
    positions = np.where(within, np.arange(LONGEST), 0).astype(np.int32)
    stream = TokenStream(tokens, positions, within.astype(np.int32))
    never = np.arange(trained.model.vocab_size) == tokenizer.mask_id
    metrics = {}
    for name, (_, order, steps) in WAYS.items():
        settings: dict[str, Any] = dict(steps=steps or LONGEST, order=order, temperature=1.0, forbidden=never)
        out = fill(Transformer(trained.model), trained.params(), stream, masked, jax.random.key(0), **settings)
        texts = [row[1:size].tolist() for row, size in zip(np.asarray(out), sizes, strict=True)]
        metrics |= {f"{name}/{metric}": value for metric, value in judged(tokenizer, texts).items()}
    return Measured(metrics)


def continued(trained: Saved) -> Measured:
    """Sentences from their beginning, at temperature 1, up to their end or LONGEST tokens."""
    tokenizer: Any = trained.tokenizer()
    begin = Request(np.array([tokenizer.bos_id], np.int32), LONGEST - 1, Sampling(), samples=SENTENCES)
    settings: dict[str, Any] = dict(slots=SENTENCES, length=LONGEST, eos=[tokenizer.eos_id])
    (written,) = Engine(Transformer(trained.model), trained.params(), **settings).write([begin])
    return Measured(judged(tokenizer, [[w.token for w in sentence] for sentence in written]))


def judged(tokenizer: Any, texts: list[list[int]]) -> dict[str, float]:
    """Of sentences with their ends: `unbroken` is the mean share of a sentence that comes before its first error (1: a sentence
    of the grammar), `variety` the entropy of all their words."""
    known = {int(tokenizer.encode(word)[0]): i for i, word in enumerate(grammar.names())} | {tokenizer.eos_id: END}
    sentences = [[known.get(token, UNKNOWN) for token in text] for text in texts]
    words = [word for sentence in sentences for word in sentence if word >= 0]
    p = np.bincount(words) / max(len(words), 1)
    return {
        WRITTEN: float(np.mean([unbroken(sentence) for sentence in sentences])),
        "variety": float(-(p[p > 0] * np.log(p[p > 0])).sum()),
    }


def unbroken(sentence: list[int]) -> float:
    """The share of a sentence, of words of the grammar and END, that comes before its first error. END is one where words are
    still to come, and all that stands behind it."""
    stack, rules = [0], grammar.made().rules
    for place, word in enumerate(sentence):
        if word == END and not stack:
            return (place + 1) / len(sentence)
        if not stack or word not in (known := rules[stack.pop()]):
            return place / len(sentence)
        stack += reversed(known[word][1])
    return len(sentence) / (len(sentence) + 1)  # it does not end
