"""Lines of eight words that a known taste judges: what a reward model learns from judgements, and what it misses, is known.

A line follows a Markov chain, and begins after a word of its prompt. Its gold reward is a random function of its words and of
their neighbours, less DULL times the square of the number of repeated words, which few lines of the chain have many of; with
mean 0 and deviation 1 over these. Of two lines the better one is preferred with probability
sigmoid(SHARP * (gold - gold)).
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from experiments import languages

WORDS = [f"w{i}" for i in range(16)]
SIZE = 8  # words of a line
PROMPTS, HELDOUT = 400, 64
SHARP = 2.0
DULL = 0.3
LENGTH, ANSWER = 12, SIZE + 4  # tokens of a prompt in a conversation, and of an answer with its end


@lru_cache
def language(pairs: tuple[int, ...] = (150, 3000), lines: int = 4000, seed: int = 0) -> languages.Language:
    """Files of records: `written` and `heldout_written`, a prompt and a line of the chain, to learn to write; `pairs<n>` and
    `heldout_pairs`, a prompt with a chosen and a rejected line; `prompts` and `heldout_prompts`."""
    rng = np.random.default_rng([seed, 1])
    prompts = [f"go {WORDS[rng.integers(len(WORDS))]} {WORDS[rng.integers(len(WORDS))]}" for _ in range(PROMPTS + HELDOUT)]
    taught, held = prompts[:PROMPTS], prompts[PROMPTS:]
    of = lambda some, count: [some[i] for i in rng.integers(len(some), size=count)]
    written = lambda some, count: [{"question": q, "answer": line(q, rng)} for q in of(some, count)]
    items = {
        "written": written(taught, lines),
        "heldout_written": written(held, 200),
        "prompts": [{"question": q, "answer": "go"} for q in dict.fromkeys(taught)],
        "heldout_prompts": [{"question": q, "answer": "go"} for q in dict.fromkeys(held)],
        "heldout_pairs": [_judged(q, rng) for q in of(held, 500)],
    }
    items |= {f"pairs{count}": [_judged(q, rng) for q in of(taught, count)] for count in pairs}
    words = " ".join(["go", *WORDS])
    return languages.write("tastes", [words] * 8, [words], items=items)


def gold(texts: Sequence[str]) -> np.ndarray:
    """float64 [n]: the gold reward of lines; 0 is that of a mean line of the chain. A word that is missing or too many, or not
    of the language, costs a standard deviation."""
    found = []
    for text in texts:
        ids = [WORDS.index(word) for word in text.split() if word in WORDS]
        wrong = abs(len(ids) - SIZE) + len(text.split()) - len(ids)
        found.append(_scaled(ids[:SIZE]) - wrong)
    return np.array(found)


def line(prompt: str, rng: np.random.Generator) -> str:
    at, out = WORDS.index(prompt.split()[-1]), []
    for _ in range(SIZE):
        at = int(rng.choice(len(WORDS), p=_chain()[at]))
        out.append(WORDS[at])
    return " ".join(out)


def _judged(prompt: str, rng: np.random.Generator) -> dict[str, str]:
    one, other = line(prompt, rng), line(prompt, rng)
    first, second = gold([one, other])
    better = rng.random() < 1 / (1 + np.exp(-SHARP * (first - second)))
    chosen, rejected = (one, other) if better else (other, one)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


@lru_cache
def _chain() -> np.ndarray:
    """float64 [words, words]: probabilities of the next word."""
    logits = np.random.default_rng(2).normal(size=(len(WORDS), len(WORDS)))
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


@lru_cache
def _taste() -> tuple[np.ndarray, np.ndarray]:
    """What words [words] and neighbours [words, words] are worth, before the scale."""
    rng = np.random.default_rng(3)
    return rng.normal(size=len(WORDS)), rng.normal(size=(len(WORDS), len(WORDS)))


def _raw(ids: Sequence[int]) -> float:
    words, neighbours = _taste()
    liked = sum(words[i] for i in ids) + sum(neighbours[i, j] for i, j in zip(ids, ids[1:], strict=False))
    return float(liked - DULL * (len(ids) - len(set(ids))) ** 2)


@lru_cache
def _scale() -> tuple[float, float]:
    """Mean and deviation of the raw reward over 4,000 lines of the chain."""
    rng = np.random.default_rng(4)
    raw = [_raw([WORDS.index(w) for w in line(f"go {WORDS[i % len(WORDS)]}", rng).split()]) for i in range(4000)]
    return float(np.mean(raw)), float(np.std(raw))


def _scaled(ids: Sequence[int]) -> float:
    mean, deviation = _scale()
    return (_raw(ids) - mean) / deviation
