"""Whether a model is as sure as it is right: multiple-choice items whose answer is known.

An item is a held-out text with a blank: the word that stood there, and others of the same sort (names, numbers, long words)
from other held-out texts. The probabilities of its choices are those of the model, scaled to sum to 1; the confidence is the
largest. `--items=FILE` gives items of one's own, a line each, in which a choice has the space before it:

    {"left": "The capital of France is", "choices": [" Rome", " Paris"], "answer": 1, "right": ""}
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm import paths, untrusted
from lm.errors import UserError, nearest
from lm.evaluation import blanks
from lm.evaluation.examined import Examined
from lm.evaluation.findings import Finding, Interval, Row, bootstrap, mean, share
from lm.objectives.prompts import Span, join

CHOICES = 4
BINS = 10
TEMPERATURES = np.geomspace(0.05, 20.0, 601)
LEAST = 20  # items
ROOM = 8  # tokens of a piece of text that a choice may need more than the word that stood there
FIELDS = ("left", "choices", "answer", "right")


@dataclass(frozen=True)
class Item:
    """`spans`: each choice in its text, as tokens; `answer` is the index of the right one."""

    spans: Sequence[Span]
    answer: int


@dataclass(frozen=True)
class Bins:
    """The items by confidence, float64 [bins] each: how many, the mean of their confidences, the share of right ones."""

    size: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error (Naeini et al. 2015): |accuracy - confidence|, a mean over all items."""
        return float(np.sum(self.size * np.abs(self.accuracy - self.confidence)) / self.size.sum())


def examine(e: Examined, path: str | None = None) -> Finding:
    """The finding, on the items of a file or on those of held-out text. UserError if there are less than LEAST."""
    items = from_text(e) if path is None else read(path, e)
    if len(items) < LEAST:
        raise UserError(f"there are {len(items)} items, and {LEAST} are the least that say something: give more text or items")
    kind = "infill" if e.both_sides or any(len(item.spans[0].right) for item in items) else "suffix"
    nats = e.nats([span for item in items for span in item.spans], kind).per_span
    ends = np.cumsum([len(item.spans) for item in items])
    scores = np.full((len(items), max(len(item.spans) for item in items)), -np.inf)
    for row, of_item in zip(scores, np.split(-nats, ends[:-1]), strict=True):
        row[: len(of_item)] = of_item
    found = of_scores(scores, np.array([item.answer for item in items]), seed=e.seed)
    where = "given both sides" if kind == "infill" else "given its left side"
    source = f"held-out text, {CHOICES} choices of one sort and as many tokens" if path is None else path
    notes = [f"{len(items)} items of {source}, each asked {where}", *found.notes]
    return Finding(found.rows, notes, {**found.details, "kind": kind}, found.draw)


def of_scores(scores: np.ndarray, answers: np.ndarray, *, seed: int = 0) -> Finding:
    """The finding of log-probabilities, float [items, choices] (-inf: no such choice), and the right choices, int [items].

    The temperature is fitted on every other item, and its effect measured on the rest.
    """
    p = probabilities(scores)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == answers
    n = len(answers)
    error = lambda mass: lambda chosen: bins(confidence[chosen], right[chosen], mass=mass).error
    rng = np.random.default_rng(seed)
    calibrated = [bins(confidence, rng.random(n) < confidence).error for _ in range(200)]
    floor = Interval(float(np.mean(calibrated)), *(float(x) for x in np.percentile(calibrated, [2.5, 97.5])))
    fitted, tested = np.arange(n) % 2 == 0, np.arange(n) % 2 == 1
    best = temperature(scores[fitted], answers[fitted])
    before, after = (probabilities(scores[tested] / t) for t in (1.0, best))
    ece = [bins(x.max(axis=1), x.argmax(axis=1) == answers[tested]).error for x in (before, after)]
    chance = float(np.mean(1 / np.isfinite(scores).sum(axis=1)))
    rows = [
        Row("accuracy", share(float(right.sum()), n), chance),
        Row("confidence, mean", mean(confidence)),
        Row("confidence - accuracy", mean(confidence - right), 0.0),
        Row("ECE, bins of equal width", bootstrap(error(False), n, seed=seed), floor),
        Row("ECE, bins of equal size", bootstrap(error(True), n, seed=seed)),
        Row("Brier score, 0 to 2", bootstrap(lambda c: brier(p[c], answers[c]), n, seed=seed), 1 - chance, share=False),
        Row("temperature, from one half", best, 1.0, share=False),
        Row("ECE, other half", ece[0]),
        Row("ECE, other half, with it", ece[1]),
        Row("nats, other half", _nats(before, answers[tested]), share=False),
        Row("nats, other half, with it", _nats(after, answers[tested]), share=False),
    ]
    notes = [
        "ECE: the expected calibration error, |accuracy - confidence| in ten bins; its floor is what a perfectly calibrated "
        "model of these confidences shows by chance, and its interval, by drawing items anew, is too high for the same reason",
        "a temperature above 1 says that the model is too sure, below 1 that it is too cautious",
    ]
    details = {
        "items": n,
        "bins": {name: _table(bins(confidence, right, mass=mass)) for name, mass in (("width", False), ("size", True))},
        "confidence": [round(float(x), 5) for x in confidence],
        "right": [bool(x) for x in right],
    }
    return Finding(rows, notes, details, lambda figure: _draw(figure, confidence, right, after, answers[tested]))


# ------------------------------------------------------------------------------------------------------- measures


def probabilities(scores: np.ndarray) -> np.ndarray:
    """softmax over the choices, float64 [items, choices]."""
    p = np.exp(scores - scores.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


def bins(confidence: np.ndarray, right: np.ndarray, *, count: int = BINS, mass: bool = False) -> Bins:
    """The items in `count` bins of equal width, or with `mass` of as many items each; empty bins are left out."""
    ends = np.quantile(confidence, np.linspace(0, 1, count + 1)) if mass else np.linspace(0, 1, count + 1)
    number = np.searchsorted(ends[1:-1], confidence)
    size, sure, good = (np.bincount(number, x, count) for x in (np.ones(len(number)), confidence, right))
    some = size > 0
    return Bins(size[some], sure[some] / size[some], good[some] / size[some])


def brier(p: np.ndarray, answers: np.ndarray) -> float:
    """The squared distance of the probabilities to 1 for the answer and 0 for the others, a mean over items (Brier 1950)."""
    return float((p**2).sum(axis=1).mean() + 1 - 2 * p[np.arange(len(p)), answers].mean())


def temperature(scores: np.ndarray, answers: np.ndarray) -> float:
    """Of TEMPERATURES the one that makes the answers likeliest if the scores are divided by it (arXiv 1706.04599)."""
    return float(min(TEMPERATURES, key=lambda t: _nats(probabilities(scores / t), answers)))


def _nats(p: np.ndarray, answers: np.ndarray) -> float:
    return float(-np.log(np.maximum(p[np.arange(len(p)), answers], 1e-300)).mean())


def _table(b: Bins) -> list[dict[str, float]]:
    return [
        {"items": int(n), "confidence": round(float(c), 5), "accuracy": round(float(a), 5)}
        for n, c, a in zip(b.size, b.confidence, b.accuracy, strict=True)
    ]


# ------------------------------------------------------------------------------------------------------- items


def from_text(e: Examined) -> list[Item]:
    """Items of held-out text, `e.count` or as many as it gives: the same for the same data, tokenizer and seed."""
    rng = np.random.default_rng((e.seed, 11))
    room = e.texts.window - ROOM
    asked = blanks.drawn(e.texts.texts("holdout", e.seed), e.count, rng)
    words: dict[tuple[str, int], list[str]] = {}  # by sort and number of tokens, as often as they are asked for
    size = {b.word: len(e.tokenizer.encode(b.word)) for b in asked}
    for b in asked:
        words.setdefault((b.sort, size[b.word]), []).append(b.word)
    items = []
    for b in asked:
        others = [w for w in words[b.sort, size[b.word]] if w != b.word and w not in b.left and w not in b.right]
        others = list(dict.fromkeys(others[i] for i in rng.permutation(len(others))))[: CHOICES - 1]
        if len(others) == CHOICES - 1 and not e.tokenizer.special[e.tokenizer.encode(b.word)].any():
            choices = [b.word, *others]
            order = rng.permutation(CHOICES)
            shaped = [blanks.span(b, choices[i], e.tokenizer, right=e.both_sides, room=room - size[b.word]) for i in order]
            items.append(Item(shaped, int(np.flatnonzero(order == 0)[0])))
    return items


def read(path: str, e: Examined) -> list[Item]:
    """The items in a file. UserError, which names the line, for anything else, and for a right side of a model that cannot be
    asked for what stands before it."""
    found = []
    for number, line in enumerate(paths.text(path, name="--items").split("\n"), 1):
        if line.strip():
            where = f"{path}, line {number}"
            value = untrusted.parse_json(line.encode(), where)
            found.append(_item(value, where, e))
    if not found:
        raise UserError(
            f'--items={path} is empty; give a line {{"left": "...", "choices": ["...", "..."], "answer": 0}} for each'
        )
    return found


def _item(value: dict[str, Any], where: str, e: Examined) -> Item:
    if unknown := sorted(value.keys() - set(FIELDS)):
        raise UserError(f"{where}: an item has no field {unknown[0]!r}{nearest(unknown[0], FIELDS)}")
    left, right, choices, answer = (value.get(name) for name in ("left", "right", "choices", "answer"))
    right = "" if right is None else right
    if not isinstance(left, str) or not isinstance(right, str):
        raise UserError(f"{where}: 'left' and 'right' are texts, and 'left' is needed")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise UserError(f"{where}: 'choices' are two texts or more")
    if type(answer) is not int or not 0 <= answer < len(choices):
        raise UserError(f"{where}: 'answer' is the number of the right choice, 0 to {len(choices) - 1}")
    if right and "infill" not in e.known:
        raise UserError(f"{where} has a right side, and this model cannot be asked for what stands before it: leave it out")
    begin = [] if e.tokenizer.bos_id is None else [e.tokenizer.bos_id]
    left_ids, right_ids, *targets = e.tokenizer.encode_batch([left, right, *choices])
    if any(not len(t) or e.tokenizer.special[t].any() for t in targets):
        raise UserError(f"{where} has a choice with a word that the tokenizer does not know; give another")
    if not len(left_ids) and not begin:
        raise UserError(f"{where} has an empty left side, and the tokenizer has no bos to put there; give a left side")
    sizes = [len(choice.encode()) for choice in choices]
    return Item([Span(join(begin, left_ids), t, right_ids, n) for t, n in zip(targets, sizes, strict=True)], answer)


# ------------------------------------------------------------------------------------------------------- picture


def _draw(figure: Any, confidence: np.ndarray, right: np.ndarray, after: np.ndarray, answers: np.ndarray) -> None:
    """The reliability diagram, and how the confidences lie."""
    axes = figure.subplots(1, 2)
    axes[0].plot([0, 1], [0, 1], ":", color="0.5", label="calibrated")
    for mass, label, marker in ((False, "bins of equal width", "o"), (True, "bins of equal size", "s")):
        b = bins(confidence, right, mass=mass)
        axes[0].plot(b.confidence, b.accuracy, marker=marker, label=f"{label}, error {b.error:.3f}", alpha=0.8)
    b = bins(after.max(axis=1), after.argmax(axis=1) == answers)
    axes[0].plot(b.confidence, b.accuracy, "^--", label=f"other half, with temperature, error {b.error:.3f}", alpha=0.6)
    axes[0].set(xlabel="confidence", ylabel="share of right answers", xlim=(0, 1.02), ylim=(-0.02, 1.02))
    axes[0].legend(frameon=False, fontsize=8)
    edges = np.linspace(0, 1, 2 * BINS + 1)
    axes[1].hist([confidence[right], confidence[~right]], edges, stacked=True, label=["right", "wrong"])
    axes[1].set(xlabel="confidence", ylabel="items", xlim=(0, 1))
    axes[1].legend(frameon=False)
