"""Sentences of a probabilistic context-free grammar whose entropy, and next-word distribution, are known exactly.

The grammar is simple in the sense of Korenjak and Hopcroft (1966): every rule is `A -> word B C ...`, and no two rules of a
symbol have the same word. So the words read so far determine the stack of symbols that are still to come, every sentence has
exactly one derivation, and the distribution of the next word is that of the rules of the topmost symbol. Unlike the grammars
of arXiv 2305.13673 it is never ambiguous, not even for a few words: the exactness is bought with an easier language.

Symbols have levels, as in that paper: a rule of level k has children of level k - 1, level 0 has none, so sentences are
finite. All symbols draw their words from one vocabulary, so that a word alone does not say where in the sentence one is.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np

from experiments.languages import Language, write

LEVELS = 4  # above the leaves
SYMBOLS = 4  # of each level but the topmost, which has one
RULES = 4  # of a symbol
LEAVES = 8  # words of a symbol of level 0
CHILDREN = (1, 2, 3)  # a rule has so many, equally likely
VOCABULARY = 64
NOISE = 16  # words that are nothing but noise
UNIGRAM = 3.54  # nats a word of the held-out sentences by the frequencies of single words, their ends among them
TRAIN, HELDOUT = 40_000, 1_000  # sentences
SEED = 0  # of the rules, and of the held-out sentences


@dataclass(frozen=True)
class Grammar:
    """`probs[a, r]` is the probability that symbol `a`, 0 being the first of a sentence, is rewritten by its rule `r`, which
    is `words[a, r]` followed by those of `children[a, r]` that are not -1. The words of a symbol's rules are distinct."""

    words: np.ndarray  # int64 [A, R]
    children: np.ndarray  # int64 [A, R, C]
    probs: np.ndarray  # float64 [A, R]; 0 for rules that there are not
    first_leaf: int  # symbols from this one on have no children

    def __post_init__(self) -> None:
        for a, row in enumerate(self.words):
            used = row[self.probs[a] > 0]
            if len(set(used.tolist())) < len(used):
                raise ValueError(f"two rules of symbol {a} have the same word, so sentences may have several derivations")

    @cached_property
    def rules(self) -> list[dict[int, tuple[float, list[int]]]]:
        """For each symbol: word -> log-probability of its rule, and the rule's children."""
        return [
            {int(w): (float(np.log(p)), [int(c) for c in below if c >= 0]) for w, p, below in zip(*row, strict=True) if p > 0}
            for row in zip(self.words, self.probs, self.children, strict=True)
        ]

    @cached_property
    def expected(self) -> np.ndarray:
        """float64 [A]: how often each symbol is expected in a sentence. Their sum is the expected number of words."""
        a = len(self.words)
        below = np.zeros((a, a))  # expected children of symbol i that are symbol j
        for i in range(a):
            for p, children in zip(self.probs[i], self.children[i], strict=True):
                np.add.at(below[i], children[children >= 0], p)
        return np.linalg.solve(np.eye(a) - below.T, np.eye(a)[0])

    @property
    def entropy(self) -> float:
        """Nats a word: the entropy of a sentence by its expected number of words. A sentence's end follows from its words."""
        logs = np.log(np.where(self.probs > 0, self.probs, 1.0))
        return float(self.expected @ -(self.probs * logs).sum(1) / self.expected.sum())

    def log_probs(self, sentence: list[int]) -> list[float]:
        """The exact log-probability of each word given those before it. ValueError if it is no sentence."""
        stack, out = [0], []
        for word in sentence:
            if not stack or word not in (rules := self.rules[stack.pop()]):
                raise ValueError(f"no sentence: word {word} at place {len(out)}")
            log_prob, children = rules[word]
            out.append(log_prob)
            stack += reversed(children)
        if stack:
            raise ValueError("no sentence: it is not finished")
        return out

    def sample(self, count: int, seed: int) -> list[list[int]]:
        """Sentences, drawn independently."""
        rng = np.random.default_rng(seed)
        ends = np.cumsum(self.probs, axis=1)
        ends = (ends / ends[:, -1:] + np.arange(len(ends))[:, None]).ravel()  # symbol `a` has the interval from a to a + 1
        stacks = np.zeros((count, 64), np.int64)  # the first entry is the first symbol
        heights, read = np.ones(count, np.int64), []
        alive = np.arange(count)
        while len(alive):
            heights[alive] -= 1
            top = stacks[alive, heights[alive]]
            rule = np.searchsorted(ends, top + rng.random(len(alive)), side="right") - top * self.probs.shape[1]
            column = np.full(count, -1)
            column[alive] = self.words[top, rule]
            read.append(column)
            for c in reversed(range(self.children.shape[2])):
                child = self.children[top, rule, c]
                more, child = alive[child >= 0], child[child >= 0]
                stacks[more, heights[more]] = child
                heights[more] += 1
            alive = alive[heights[alive] > 0]
        table = np.stack(read, axis=1)
        words = table[table >= 0].tolist()
        stops = np.cumsum((table >= 0).sum(1)).tolist()
        return [words[start:stop] for start, stop in zip([0, *stops], stops, strict=False)]


def draw(
    seed: int = SEED,
    *,
    levels: int = LEVELS,
    symbols: int = SYMBOLS,
    rules: int = RULES,
    leaves: int = LEAVES,
    vocabulary: int = VOCABULARY,
    child_counts: tuple[int, ...] = CHILDREN,
) -> Grammar:
    """A random grammar. The rules of a symbol have probabilities in proportion to 1, 1/2, 1/3, ..."""
    rng = np.random.default_rng(seed)
    total, widest = 1 + levels * symbols, max(rules, leaves)
    words, probs = np.zeros((total, widest), np.int64), np.zeros((total, widest))
    children = np.full((total, widest, max(child_counts)), -1)
    first_leaf = total - symbols
    for a in range(total):
        n = leaves if a >= first_leaf else rules
        words[a, :n] = rng.choice(vocabulary, n, replace=False)
        probs[a, :n] = 1 / np.arange(1, n + 1) / np.sum(1 / np.arange(1, n + 1))
        if a < first_leaf:
            below = 1 + (0 if a == 0 else (a - 1) // symbols + 1) * symbols  # the first symbol of the next level
            for r in range(n):
                size = rng.choice(child_counts)
                children[a, r, :size] = below + rng.integers(symbols, size=size)
    return Grammar(words, children, probs, first_leaf)


def noisy(grammar: Grammar, share: float, noise: range = range(VOCABULARY, VOCABULARY + NOISE)) -> Grammar:
    """The grammar of its sentences after a `share` of the words of leaves was replaced by words of `noise`, all equally likely.
    It is a simple grammar too, since leaves have no children, so its entropy is as exact."""
    leaf = np.arange(len(grammar.words)) >= grammar.first_leaf
    more = ((0, 0), (0, len(noise)))
    words, probs = np.pad(grammar.words, more), np.pad(grammar.probs, more)
    words[leaf, -len(noise) :] = noise
    probs[leaf] *= 1 - share
    probs[leaf, -len(noise) :] = share / len(noise)
    return replace(grammar, words=words, probs=probs, children=np.pad(grammar.children, (*more, (0, 0)), constant_values=-1))


@cache
def made(noise: float = 0.0) -> Grammar:
    return noisy(draw(), noise) if noise else draw()


def names(renamed: bool = False) -> list[str]:
    """The written form of each word; `renamed`: in another order."""
    plain = [f"w{i:02d}" for i in range(VOCABULARY + NOISE)]
    return [plain[i] for i in np.random.default_rng(SEED + 1).permutation(len(plain))] if renamed else plain


@cache
def heldout(noise: float = 0.0) -> list[list[int]]:
    return made(noise).sample(HELDOUT, SEED + 2)


@cache
def truth(noise: float = 0.0) -> np.ndarray:
    """float64 [HELDOUT]: the nats of each held-out sentence under the grammar itself."""
    return np.array([-sum(made(noise).log_probs(sentence)) for sentence in heldout(noise)])


def language(*, noise: float = 0.0, renamed: bool = False, sample: int = 0) -> Language:
    """The items `sentence` are the held-out sentences, with nothing before them.

    noise: share of the leaves' words that is replaced. renamed: the same held-out sentences in other words. sample: another
    number draws other training sentences.
    """
    written = names(renamed)
    spell = lambda sentences: (" ".join([written[w] for w in sentence]) for sentence in sentences)

    def items() -> Iterator[Mapping[str, str]]:
        return ({"left": "", "target": text, "right": ""} for text in spell(heldout(noise)))

    name = (
        "grammar" + (f"-noise{noise:g}" if noise else "") + ("-renamed" if renamed else "") + (f"-{sample}" if sample else "")
    )
    train = spell(made(noise).sample(TRAIN, SEED + 3 + sample))
    return write(name, train, spell(heldout(noise)), items={"sentence": items()}, entropy=made(noise).entropy)
