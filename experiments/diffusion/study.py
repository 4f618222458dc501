"""Next tokens, blocks and masked diffusion at equal FLOPs, on sentences of a grammar: their loss, and what they write
(arXiv 2503.09573, 2406.07524)."""

from typing import Any

import jax
import numpy as np

from experiments import small
from experiments.languages import grammar
from experiments.study import Cell, Gate, Measured, Metric, Relation, Results, Study
from lm import config
from lm.generation.decoding import generate, left_padded
from lm.generation.diffusion import fill
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
UNIGRAM = 3.54  # nats a word by the frequencies of single words, the end of a sentence among them
SENTENCES = 96  # that are written
LONGEST = 72  # tokens of one, bos and its end included
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
        architecture = "encoder" if name == "masked" else "decoder"
        model = small.model(architecture, width=64, layers=2, vocab_size=language.vocab_size)
        length = 2 * small.LENGTH if isinstance(objective, config.BlockDiffusion) else small.LENGTH  # the text stands there twice
        run = small.run(model, objective, data=language.data(**{f"{architecture}_length": length}))
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
        Metric(LOSS, "held-out loss, or its bound", higher=False, lines={"single words": UNIGRAM}, unit="nats a word"),
        Metric(WRITTEN, "share of a written sentence before its first error"),
        Metric("variety", "entropy of the written words", higher=None, unit="nats"),
    )
    gate = Gate("the model knows more than the frequencies of words", LOSS, at_most=UNIGRAM - 0.3, cells=tuple(OBJECTIVES))
    title = "Next tokens, blocks and masked diffusion at equal FLOPs (arXiv 2503.09573)"
    derived = {name: f"masked diffusion, {label}" for name, (label, _, _) in WAYS.items()}
    how: dict[str, Any] = dict(derive=ways, derived=derived, gates=(gate,))
    return Study("diffusion", title, cells, seeds, metrics, relations, "flops", budget, **how)


def ways(results: Results) -> Results:
    """Gives each way in which masked diffusion writes a result of its own."""
    for seed, result in results.get("masked", {}).items():
        for name in WAYS:
            found = {metric: result["metrics"].get(f"{name}/{metric}") for metric in (WRITTEN, "variety")}
            metrics = {metric: value for metric, value in found.items() if value is not None}
            made: dict[str, Any] = {"metrics": metrics, "items": {}, "flags": {}, "ledger": {}, "curve": []}
            results.setdefault(name, {})[seed] = made
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
        metrics |= {f"{name}/{metric}": value for metric, value in judged(tokenizer, np.asarray(out)).items()}
    return Measured(metrics)


def continued(trained: Saved) -> Measured:
    """Sentences from their beginning, at temperature 1."""
    tokenizer: Any = trained.tokenizer()
    begin = left_padded([np.array([tokenizer.bos_id], np.int32)] * SENTENCES)
    settings: dict[str, Any] = dict(new_tokens=LONGEST - 1, temperature=1.0, eos_id=tokenizer.eos_id)
    out = generate(Transformer(trained.model), trained.params(), begin, jax.random.key(0), **settings)
    return Measured(judged(tokenizer, np.concatenate([np.asarray(begin.tokens), np.asarray(out)], axis=1)))


def judged(tokenizer: Any, rows: np.ndarray) -> dict[str, float]:
    """Of sentences int32 [N, T], each with bos and, where it ends, eos: `unbroken` is the mean share of a sentence, its end
    included, that comes before its first error (1: a sentence of the grammar), `variety` the entropy of all their words."""
    known = {int(tokenizer.encode(word)[0]): i for i, word in enumerate(grammar.names())}
    shares, words = [], list[int]()
    for row in rows.tolist():
        text = row[1 : row.index(tokenizer.eos_id)] if tokenizer.eos_id in row else row[1:]
        sentence = [known.get(token, -1) for token in text]
        words += [word for word in sentence if word >= 0]
        shares.append(unbroken(sentence, ends=len(text) < len(row) - 1))
    p = np.bincount(words) / max(len(words), 1)
    return {WRITTEN: float(np.mean(shares)), "variety": float(-(p[p > 0] * np.log(p[p > 0])).sum())}


def unbroken(sentence: list[int], *, ends: bool) -> float:
    """The share of the words and the end that come before the first error."""
    stack, rules = [0], grammar.made().rules
    for place, word in enumerate(sentence):
        if not stack or word not in (known := rules[stack.pop()]):
            return place / (len(sentence) + 1)
        stack += reversed(known[word][1])
    return 1.0 if ends and not stack else len(sentence) / (len(sentence) + 1)
