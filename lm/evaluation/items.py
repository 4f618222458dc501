"""Test items of one's own: a target that stands between a left and a right text, scored under any model.

A file has one item a line, as JSON. An item is a complete document; `left` or `right` may be empty:

    {"left": "the capital of France is", "target": " Paris", "right": ""}

With a `right` the model is asked for an infill, which is the target given both sides; otherwise for a suffix, the target given
`left` (see `lm.objectives.prompts`). A masked encoder, which is told the target's length anyway, also sees that the document
ends there, as it did in training. The three texts are tokenized apart, as they are written: most tokenizers want the space
between two words at the beginning of the second.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm import config, paths, untrusted
from lm.data.tokenizer import Tokenizer
from lm.errors import UserError, nearest
from lm.evaluation import spans
from lm.models.transformer import Transformer
from lm.objectives import span_prompts
from lm.objectives.dummy_vocabulary import DummyVocabulary
from lm.objectives.prompts import ONE_SIDED, Span, examples, join

FIELDS = ("left", "target", "right")
_LETTER = 200  # a token of a text


@dataclass(frozen=True)
class Item:
    left: str
    target: str
    right: str


@dataclass(frozen=True)
class ItemScores:
    """One value for each of N items, float64 [N].

    exact   1 if each token of the target is the most likely one given the target's earlier tokens, otherwise 0
    hits    tokens of the target that are the most likely one
    tokens  tokens of the target
    nats    -log p(target)

    `normalised`, `note` and `far`: as in `lm.evaluation.spans.Score`.
    """

    exact: np.ndarray
    hits: np.ndarray
    tokens: np.ndarray
    nats: np.ndarray
    normalised: bool
    note: str
    far: str

    def values(self) -> dict[str, np.ndarray]:
        """`exact`, `accuracy` and `nats`: float64 [N] each, whose means are the share of items that are right, the share of
        tokens that are right, and the nats of an item."""
        return {"exact": self.exact, "accuracy": self.hits / self.tokens.mean(), "nats": self.nats}


# ------------------------------------------------------------------------------------------------------------ reading


def read(path: str | Path, *, name: str = "--items") -> list[Item]:
    """The items in a local file. UserError, which names the flag `name`, the line and the field, for anything else."""
    file = paths.local(path, name=name)
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{name}={path} cannot be read ({error}); give a file of JSON lines in UTF-8") from None
    found = [_item(line, f"{path}, line {n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise UserError(f'{name}={path} has no items; give a line {{"left": "...", "target": "...", "right": "..."}} for each')
    return found


def _item(line: str, where: str) -> Item:
    value = untrusted.parse_json(line.encode(), where)
    for field in FIELDS:
        if field not in value:
            raise UserError(f"{where} has no field '{field}'{nearest(field, value.keys() - set(FIELDS))}")
        if not isinstance(value[field], str):
            raise UserError(f"{where}: field '{field}' is a {type(value[field]).__name__}; give a text")
        if re.search("[\ud800-\udfff]", value[field]):
            raise UserError(f"{where}: field '{field}' has half a surrogate pair, which is no character; repair it")
    if unknown := sorted(value.keys() - set(FIELDS)):
        raise UserError(f"{where}: an item has no field {unknown[0]!r}{nearest(unknown[0], FIELDS)}")
    if not value["target"]:
        raise UserError(f"{where}: field 'target' is empty; give the text that is asked for")
    return Item(*(value[field] for field in FIELDS))


# ------------------------------------------------------------------------------------------------------------ scoring


def check(architecture: str, objective: config.Objective, items: Sequence[Item]) -> None:
    """UserError if a model of this objective cannot be asked for the items: it knows no spans, or an item has a right side and
    the model would be scored on that too."""
    one, way = np.full(1, _LETTER, np.int32), span_prompts(architecture, objective).get("infill")
    probe = Span(one, one, one, num_bytes=1)
    if way and sum(len(example.targets) for example in examples(way, "infill", probe, DummyVocabulary(_LETTER + 1))) == 1:
        return
    for number, item in enumerate(items, 1):
        if item.right:
            name = config.kind_of(type(objective))
            raise UserError(f"item {number} has a right side, and a model of '{name}' cannot be asked for it: {ONE_SIDED}")


def score(
    model: Transformer,
    params: Any,
    objective: config.Objective,
    tokenizer: Tokenizer,
    items: Sequence[Item],
    *,
    batch_size: int = 64,
) -> ItemScores:
    """The items' scores under a model that was trained with `objective`.

    UserError for an objective that cannot be asked so, for a target that the tokenizer does not know, and for rows longer than
    the learned positions.
    """
    check(model.config.architecture, objective, items)
    asked = _spans(items, tokenizer)
    values = {name: np.zeros(len(items)) for name in ("hits", "tokens", "nats")}
    ways: list[spans.Score] = []
    for kind, numbers in _by_kind(asked, tokenizer).items():
        chosen = [asked[n] for n in numbers]
        longest = max(numbers, key=lambda n: sum(map(len, (asked[n].left, asked[n].target, asked[n].right))))
        how: dict[str, Any] = dict(kind=kind, batch_size=batch_size, cure=f"shorten item {longest + 1}, the longest")
        found = spans.score(model, params, objective, tokenizer, chosen, **how)
        values["hits"][numbers], values["nats"][numbers] = found.hits, found.per_span
        values["tokens"][numbers] = [len(span.target) for span in chosen]
        ways.append(found)
    notes, far = ("; ".join(dict.fromkeys(filter(None, texts))) for texts in zip(*((w.note, w.far) for w in ways), strict=True))
    exact = (values["hits"] == values["tokens"]).astype(float)
    return ItemScores(exact, **values, normalised=all(way.normalised for way in ways), note=notes, far=far)


def _spans(items: Sequence[Item], tokenizer: Tokenizer) -> list[Span]:
    """The items as tokens: bos before the left side, eos after the right side.

    UserError for a target without tokens or with an unknown word: it has no probability.
    """
    ids = iter(tokenizer.encode_batch([text for item in items for text in (item.left, item.target, item.right)]))
    found = []
    for number, item in enumerate(items, 1):
        left, target, right = next(ids), next(ids), next(ids)
        if not len(target) or tokenizer.special[target].any():
            what = "a word that the tokenizer does not know" if len(target) else "no text that the tokenizer knows"
            raise UserError(f"item {number}: target {item.target[:40]!r} has {what}; give another target")
        if tokenizer.bos_id is None and not len(left):
            raise UserError(
                f"item {number} has an empty left side, and the tokenizer has no bos to put there; give a left side"
            )
        begin = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
        end = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
        found.append(Span(join(begin, left), target, join(right, end), len(item.target.encode())))
    return found


def _by_kind(asked: Sequence[Span], tokenizer: Tokenizer) -> dict[str, list[int]]:
    """The numbers of the spans that are asked for as a suffix and as an infill; no empty lists."""
    kinds: dict[str, list[int]] = {}
    for number, span in enumerate(asked):
        kinds.setdefault("infill" if (span.right != tokenizer.eos_id).any() else "suffix", []).append(number)
    return kinds
