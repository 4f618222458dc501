"""Words as vectors: of a model's token table, and of its last layer in sentences; their neighbours, distances, and a map.

    spaces = [of_tokens(embedder, ["ox", "cow"]), in_context(embedder, ["ox", "cow"], texts, "lines.txt")]
    spaces[0].neighbours(5)     [[("cow", 0.61), ...], ...]
    spaces[0].distances()       float32 [2, 2]

The vector of a word is the mean over its tokens, as they are after a space. Neighbours are sought among words of one token.
Axes: N words, M words they are compared with, D width.
"""

import itertools
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lm.errors import UserError, printable
from lm.generation.vectors import Embedder, cosines
from lm.types import WORD

COMPARED = 2048  # words that contextual vectors are compared with: each has to be read
WINDOWS = 256  # windows of a text that are read, at most


class Missing(UserError):
    """A word is not in the texts."""


@dataclass(frozen=True)
class Space:
    """Vectors of one kind: of the words that were asked for, and of those they are compared with."""

    about: str  # how they were made
    words: Sequence[str]
    vectors: np.ndarray  # float32 [N, D]
    others: Sequence[str]
    compared: np.ndarray  # float32 [M, D]
    counts: Sequence[str]  # of each word: its tokens, or how often it was read

    @cached_property
    def _nearest(self) -> list[list[int]]:
        """For each word the numbers of the others, the nearest first, without the word itself in capitals or not."""
        order = np.argsort(-cosines(self.vectors, self.compared), axis=1, kind="stable")
        return [
            [i for i in row if self.others[i].lower() != w.lower()] for w, row in zip(self.words, order.tolist(), strict=True)
        ]

    def neighbours(self, count: int) -> list[list[tuple[str, float]]]:
        """For each word the nearest others with their cosines."""
        found = cosines(self.vectors, self.compared)
        return [[(self.others[i], float(row[i])) for i in near[:count]] for near, row in zip(self._nearest, found, strict=True)]

    def distances(self) -> np.ndarray:
        """float32 [N, N]: 1 - cosine of the words."""
        return np.maximum(1 - cosines(self.vectors, self.vectors), 0)

    def mapped(self, count: int) -> tuple[list[str], np.ndarray, float]:
        """The words and then their `count` nearest others, without repetitions; float [n, 2]: where they are in the plane of
        the largest variance (PCA of vectors of length 1); and its share of the variance."""
        names, rows = list(self.words), list(self.vectors)
        for i in dict.fromkeys(i for near in self._nearest for i in near[:count]):
            if self.others[i] not in self.words:
                names.append(self.others[i])
                rows.append(self.compared[i])
        x = np.stack(rows) / np.linalg.norm(rows, axis=1, keepdims=True)
        u, sizes, _ = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
        places = np.zeros((len(names), 2))
        places[:, : min(2, len(sizes))] = (u * sizes)[:, :2]
        return names, places, float((sizes[:2] ** 2).sum() / max((sizes**2).sum(), 1e-12))

    def lines(self, count: int) -> Iterator[str]:
        """The neighbours and the distances as a text."""
        wide = max(8, *(len(w) for w in self.words)) + 2
        yield self.about
        for word, said, near in zip(self.words, self.counts, self.neighbours(count), strict=True):
            yield f"  {word:<{wide}}{said:<14}" + "  ".join(f"{printable(name)} {cosine:.3f}" for name, cosine in near)
        yield "  distances, 1 - cosine"
        yield " " * (wide + 2) + "".join(f"{word:>{wide}}" for word in self.words)
        for word, row in zip(self.words, self.distances(), strict=True):
            yield f"  {word:<{wide}}" + "".join(f"{x:>{wide}.4f}" for x in row)

    def to_json(self, count: int) -> dict[str, Any]:
        names, places, share = self.mapped(count)
        words = [
            {"word": word, "made_of": said, "neighbours": [{"word": name, "cosine": round(x, 6)} for name, x in near]}
            for word, said, near in zip(self.words, self.counts, self.neighbours(count), strict=True)
        ]
        where = [
            {"word": name, "x": round(float(x), 6), "y": round(float(y), 6)} for name, (x, y) in zip(names, places, strict=True)
        ]
        distances = [[round(float(x), 6) for x in row] for row in self.distances()]
        return {"about": self.about, "words": words, "distances": distances, "map": where, "variance_on_map": round(share, 6)}


# --------------------------------------------------------------------------------------------------------- vocabulary


def whole_words(tokenizer: Any) -> dict[str, int]:
    """Words of letters that are one token after a space, and their ids, in the order of the vocabulary. A piece that stands
    inside words alone is none: after a space it is spelled with one more token, which is the space."""
    pieces = [piece.decode(errors="replace").strip() for piece in tokenizer.piece_bytes]
    words = list(dict.fromkeys(w for w, special in zip(pieces, tokenizer.special, strict=True) if w.isalpha() and not special))
    found: dict[str, int] = {}
    for word, ids in zip(words, tokenizer.encode_batch([f" {word}" for word in words]), strict=True):
        last = int(ids[-1])
        if len(_spelled(tokenizer, ids)) == 1 and (len(ids) == 1 or tokenizer.piece_bytes[last][:1].isspace()):
            found[word] = last
    return found


def tokens_of(tokenizer: Any, word: str) -> np.ndarray:
    """int32 [n]: the tokens of a word after a space. UserError if it is none that the tokenizer knows."""
    ids = _spelled(tokenizer, tokenizer.encode(f" {word}"))
    if not len(ids) or tokenizer.unk_id in ids:
        raise UserError(f"the tokenizer has no tokens for {word!r}: leave it out")
    return ids


def _spelled(tokenizer: Any, ids: np.ndarray) -> np.ndarray:
    """The tokens without those of white space alone before them."""
    begin = next((i for i, token in enumerate(ids) if tokenizer.piece_bytes[token].strip()), len(ids))
    return ids[begin:]


# ------------------------------------------------------------------------------------------------------------ vectors


def of_tokens(embedder: Embedder, words: Sequence[str]) -> Space:
    """The vectors of the table that the model reads tokens by."""
    table = np.asarray(embedder.params["embed"]["tokens"]["embedding"]).astype(np.float32)
    known = whole_words(embedder.tokenizer)
    ids = [tokens_of(embedder.tokenizer, word) for word in words]
    vectors = np.stack([table[row].mean(axis=0) for row in ids])
    about = f"token vectors: the rows of the model's table; neighbours among {len(known):,} words of one token"
    counts = [_count(len(row), "token") for row in ids]
    return Space(about, words, vectors, list(known), table[list(known.values())], counts)


def in_context(embedder: Embedder, words: Sequence[str], texts: Sequence[str], where: str) -> Space:
    """The last layer's vectors: of a word the mean over its occurrences in the texts; errors say `where` these are. With a
    capital it is the same word. Without texts each word is read alone. Missing if a word is not in the texts.

    At most WINDOWS parts of the texts are read, spread over those with each word. The COMPARED most frequent words of one token
    in them are the others.
    """
    tokenizer, known = embedder.tokenizer, whole_words(embedder.tokenizer)
    if not texts:
        return _alone(embedder, words)
    spellings = [_spellings(tokenizer, word) for word in words]
    rows, spans = _chosen(embedder, words, spellings, texts, where)
    sums: dict[tuple[int, ...], np.ndarray] = {}
    counts: Counter[tuple[int, ...]] = Counter()
    for row, some, hidden in zip(rows, spans, embedder.hidden(rows), strict=True):
        for begin, end in some:
            word = tuple(row[begin:end].tolist())
            sums[word] = sums.get(word, 0.0) + hidden[begin:end].mean(axis=0)
            counts[word] += 1
    names: dict[tuple[int, ...], str] = {(i,): word for word, i in known.items()}
    others = [word for word, _ in counts.most_common() if word in names][:COMPARED]
    totals = [sum(counts[s] for s in some) for some in spellings]
    vectors = [np.sum([sums[s] for s in some if s in sums], axis=0) / n for some, n in zip(spellings, totals, strict=True)]
    about = f"contextual vectors: the last layer's, in {where}; neighbours among {len(others):,} words of one token there"
    compared = np.stack([sums[word] / counts[word] for word in others]) if others else np.zeros((0, len(vectors[0])))
    return Space(about, words, np.stack(vectors), [names[w] for w in others], compared, [_count(n, "time") for n in totals])


def _alone(embedder: Embedder, words: Sequence[str]) -> Space:
    """The last layer's vectors of the words, and of the COMPARED words with the nearest token vectors, each read alone."""
    known, nearest = whole_words(embedder.tokenizer), of_tokens(embedder, words).neighbours(max(1, COMPARED // len(words)))
    others = list(dict.fromkeys(name for near in nearest for name, _ in near))
    rows = [tokens_of(embedder.tokenizer, word) for word in words] + [np.array([known[word]], np.int32) for word in others]
    vectors = np.stack([x.mean(axis=0) for x in embedder.hidden(rows)])
    about = (
        f"contextual vectors: the last layer's, of each word alone; neighbours among the {len(others):,} of most similar tokens"
    )
    return Space(about, words, vectors[: len(words)], others, vectors[len(words) :], ["read alone"] * len(words))


def _chosen(
    embedder: Embedder, words: Sequence[str], spellings: Sequence[set[tuple[int, ...]]], texts: Sequence[str], where: str
) -> tuple[list[np.ndarray], list[list[tuple[int, int]]]]:
    """Parts of the texts that have the words, int32 [n] each, and where in them words begin and end."""
    rows, spans = [], []
    holders: list[list[int]] = [[] for _ in words]  # of each word the parts that have it
    for ids in embedder.tokenizer.encode_batch(list(texts)):
        for row in _parts(embedder, ids):
            some = _spans(embedder.tokenizer, row)
            inside = {tuple(row[begin:end].tolist()) for begin, end in some}
            for number, spelling in enumerate(spellings):
                if inside & spelling:
                    holders[number].append(len(rows))
            rows.append(row)
            spans.append(some)
    if missing := [word for word, some in zip(words, holders, strict=True) if not some]:
        raise Missing(f"{missing[0]!r} is no word of {where}: leave it out, or give --file=FILE with sentences that have it")
    most = max(1, WINDOWS // len(words))
    spread = lambda some: some if len(some) <= most else [some[i * len(some) // most] for i in range(most)]
    chosen = sorted({i for some in holders for i in spread(some)})
    return [rows[i] for i in chosen], [spans[i] for i in chosen]


def _parts(embedder: Embedder, ids: np.ndarray) -> Iterator[np.ndarray]:
    """Cuts a text's tokens before words, in parts that the model reads at once."""
    starts = np.flatnonzero(embedder.tokenizer.boundaries(ids) == WORD)
    begin = 0
    while begin < len(ids):
        end = begin + embedder.room
        if end < len(ids):
            end = int(max((s for s in starts[starts <= end] if s > begin), default=end))
        yield ids[begin:end]
        begin = end


def _spans(tokenizer: Any, row: np.ndarray) -> list[tuple[int, int]]:
    """Where in a row of tokens each word begins and ends, without tokens of white space alone."""
    starts = np.flatnonzero(tokenizer.boundaries(row) == WORD)
    edges = [0, *(s for s in starts.tolist() if s), len(row)]
    cut = [(end - len(_spelled(tokenizer, row[begin:end])), end) for begin, end in itertools.pairwise(edges)]
    return [(begin, end) for begin, end in cut if begin < end]


def _spellings(tokenizer: Any, word: str) -> set[tuple[int, ...]]:
    """The tokens of a word, with a small or a capital letter first, after a space or at the start of a text."""
    forms = [before + form for form in (word, word[:1].upper() + word[1:]) for before in (" ", "")]
    return {tuple(ids) for form in forms if (ids := _spelled(tokenizer, tokenizer.encode(form)).tolist())}


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


# --------------------------------------------------------------------------------------------------------------- map


def draw(spaces: Sequence[Space], path: Path, count: int) -> None:
    """Writes a picture: for each space the words, and in grey their `count` nearest others. UserError without matplotlib."""
    try:
        import matplotlib
    except ImportError as error:
        raise UserError(f"the map needs matplotlib ({error}): pip install -e '.[report]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(spaces), figsize=(8 * len(spaces), 7), dpi=100, squeeze=False, layout="constrained")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")  # a box stands for a character that the font lacks
        for space, ax in zip(spaces, axes[0], strict=True):
            names, places, share = space.mapped(count)
            own = np.arange(len(names)) < len(space.words)
            ax.scatter(*places[~own].T, s=12, color="#9aa5ad")
            ax.scatter(*places[own].T, s=30, color="#2a6f4e")
            ax.set_title(f"{space.about.split(';')[0]}\nPCA, {share:.0%} of the variance of these words", fontsize=10)
            ax.set(xticks=[], yticks=[])
            ax.margins(0.15)
            _label(ax, names, places, own)
        figure.savefig(path)
    pyplot.close(figure)


def _label(ax: Any, names: Sequence[str], places: np.ndarray, own: np.ndarray) -> None:
    """Puts each name beside its point; one that would lie on another, or on a point, goes up or down, with a line to its
    point."""
    ax.figure.canvas.draw()  # decides where points are on the page
    pixels = ax.transData.transform(places)
    taken = [(x - 5, x + 5, y, 8.0) for x, y in pixels]  # left, right, middle, height
    for i in sorted(range(len(names)), key=lambda i: (not own[i], -pixels[i][1])):
        size = 12 if own[i] else 9
        width, height, x, y = 0.9 * size * len(names[i]), 1.6 * size, pixels[i][0] + 7, pixels[i][1]
        beside = [(middle, (height + tall) / 2) for left, right, middle, tall in taken if left < x + width and x < right]
        shifts = (shift for k in itertools.count() for shift in (4.0 * k, -4.0 * k))
        shift = next(s for s in shifts if all(abs(y + s - middle) >= apart for middle, apart in beside))
        taken.append((x, x + width, y + shift, height))
        line = dict(arrowstyle="-", color="#c5ccd1", lw=0.7) if abs(shift) > 4 else None
        style: dict[str, Any] = dict(weight="bold", color="#12402c") if own[i] else dict(color="#444444")
        at = ax.transData.inverted().transform((x, y + shift))
        ax.annotate(names[i].replace("$", r"\$"), places[i], at, va="center", fontsize=size, arrowprops=line, **style)
