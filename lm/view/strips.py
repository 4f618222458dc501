"""The arrays of a batch as strips: for each token of a stream what is read there, what is predicted, and what else they say of
it."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from lm.types import Example, TokenStream
from lm.view.pieces import KINDS, Pieces

NOTHING = "·"  # where nothing is predicted, or no prefix


@dataclass(frozen=True)
class Strip:
    """One stream of a row, without its padding. All lists have an entry for each token. A stream of vectors has no tokens; if
    something is predicted of the whole, such as a class, there is one entry for that."""

    name: str  # "encoder" or "decoder"
    size: int  # tokens of the row, with padding
    ids: list[int]
    kinds: list[str]  # of `lm.view.pieces.KINDS`
    asked: list[bool]  # whether something is predicted there
    prefix: list[bool]  # whether all of the segment sees it
    segments: list[int]
    lines: dict[str, list[str]]  # "reads", "predicts" and what else is not the same for all tokens, by the names of the arrays
    vectors: str = ""  # what is read in place of tokens, in words

    @property
    def about(self) -> str:
        """Counts in words."""
        n, marks = len(self.ids), {kind: self.kinds.count(kind) for kind in KINDS}
        parts = [self.vectors or f"{n} of {self.size} tokens" + (", the rest is padding" if n < self.size else "")]
        parts += [f"{segments} segments"] if (segments := len(set(self.segments))) > 1 else []
        parts += [counted(marks["mask"], "mask")] if marks["mask"] else []
        parts += [counted(marks["sentinel"], "sentinel")] if marks["sentinel"] else []
        parts += [f"prefix of {counted(sum(self.prefix), 'token')}"] if any(self.prefix) else []
        parts += [f"loss at {sum(self.asked)}"] if any(self.asked) else []
        return "; ".join(parts)

    def headed(self, part: str) -> str:
        """`about` after the names of the Example and of the stream."""
        return ": ".join(filter(None, (f"{part} {self.name}".strip(), self.about)))


@dataclass(frozen=True)
class Row:
    """A row: where it is in the run, and the strips of its Examples by their names in the batch ("": it is one Example)."""

    title: str
    facts: dict[str, str]  # what the batch says of the row beside its tokens
    parts: dict[str, list[Strip]]


def counted(number: int, noun: str) -> str:
    """`"1 mask"`, `"2 masks"`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def row(batch: Any, i: int, title: str, pieces: Pieces, answer: Callable[[int], str], **facts: str) -> Row:
    """Row `i` of a batch, of one Example or several. `answer(target)`: the text of a target."""
    parts, more = {"": batch}, dict[str, str]()
    if not isinstance(batch, Example):
        values = {f.name: getattr(batch, f.name) for f in fields(batch)}
        parts = {name: value for name, value in values.items() if isinstance(value, Example)}
        more = {name: _fact(np.asarray(value[i]), answer) for name, value in values.items() if name not in parts}
    return Row(title, facts | more, {name: strips(example, i, pieces, answer) for name, example in parts.items()})


def _fact(value: np.ndarray, answer: Callable[[int], str]) -> str:
    """A number of a row; or the text of its targets, which are none of a stream's; or the sum of their weights."""
    if value.ndim == 0:
        return f"{float(value):g}"
    whole = np.issubdtype(value.dtype, np.integer)
    return " ".join(answer(target) for target in value.tolist() if target) if whole else f"{value.sum():g}"


def strips(example: Example, i: int, pieces: Pieces, answer: Callable[[int], str]) -> list[Strip]:
    """The streams of row `i`. What is predicted stands at the position whose logits are asked: of a model that reads left to
    right one before the token."""
    found = []
    for name in ("encoder", "decoder"):
        stream = getattr(example, name)
        if stream is not None:
            answers = name == "decoder" or example.decoder is None
            found.append(_strip(name, stream, i, pieces, _predictions(example, i) if answers else None, answer))
    return found


def _predictions(example: Example, i: int) -> dict[int, list[tuple[int, float]]]:
    """The (target, weight) pairs by position, without those of weight 0."""
    targets, weights = example.targets[i], example.weights[i]
    where = np.arange(len(targets)) if example.where is None else example.where[i]
    found: dict[int, list[tuple[int, float]]] = {}
    for at, target, weight in zip(where.tolist(), targets.tolist(), weights.tolist(), strict=True):
        if weight:
            found.setdefault(at, []).append((target, weight))
    return found


def _strip(
    name: str,
    stream: TokenStream,
    i: int,
    pieces: Pieces,
    predictions: dict[int, list[tuple[int, float]]] | None,
    answer: Callable[[int], str],
) -> Strip:
    segments = np.asarray(stream.segments[i])
    if stream.vectors is not None:
        return _of_vectors(name, stream.vectors[i], segments, predictions or {}, answer)
    n = int(np.flatnonzero(segments)[-1]) + 1 if segments.any() else 0
    of = lambda array: np.zeros(n, np.int32) if array is None else np.asarray(array[i])[:n]
    ids, prefix = of(stream.tokens).tolist(), of(stream.prefix).astype(bool)
    lines = {"reads": [pieces.text(token) for token in ids]}
    if predictions is not None:
        at = [predictions.get(j, []) for j in range(n)]
        lines["predicts"] = [" ".join(answer(target) for target, _ in each) or NOTHING for each in at]
        if any(weight != 1 for each in at for _, weight in each):
            lines["weight"] = [" ".join(f"{weight:.3g}" for _, weight in each) or NOTHING for each in at]
    if not np.array_equal(of(stream.positions), np.arange(n)):
        lines["position"] = _texts(of(stream.positions))
    if len(np.unique(of(stream.segments))) > 1:
        lines["segment"] = _texts(of(stream.segments))
    if len(np.unique(prefix)) > 1:
        lines["prefix"] = ["1" if seen else NOTHING for seen in prefix.tolist()]
    for optional in ("types", "ahead", "blocks"):
        if (array := getattr(stream, optional)) is not None:
            lines[optional] = _texts(of(array))
    return Strip(
        name,
        len(segments),
        ids,
        [pieces.kind(token) for token in ids],
        [j in (predictions or {}) for j in range(n)],
        prefix.tolist(),
        of(stream.segments).tolist(),
        lines,
    )


def _of_vectors(
    name: str,
    vectors: np.ndarray,
    segments: np.ndarray,
    predictions: dict[int, list[tuple[int, float]]],
    answer: Callable[[int], str],
) -> Strip:
    """The strip of pixels or sound. Targets at single vectors are not shown: there a vector is its own target."""
    words = f"{len(vectors)} vectors of {vectors.shape[-1]} numbers, read at {int((segments > 0).sum())} places"
    at = [predictions[0]] if predictions.keys() == {0} else []
    lines = {"reads": ["the whole"], "predicts": [" ".join(answer(target) for target, _ in at[0])]} if at else {}
    n = len(at)
    return Strip(name, len(segments), [0] * n, ["text"] * n, [True] * n, [False] * n, [1] * n, lines, words)


def _texts(array: np.ndarray) -> list[str]:
    return [str(value) for value in array.tolist()]
