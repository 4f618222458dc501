"""What a model is asked for, in any number and of any lengths: rows of similar lengths share a batch, so that few programs are
compiled, and what a row scores depends on no other row."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from lm import config
from lm.data.rows import blank, pack, stack
from lm.evaluation.spans import row_scores
from lm.models.positions import check_positions
from lm.models.transformer import Transformer
from lm.objectives import Lengths, Vocabulary, span_prompts
from lm.objectives.prompts import Span, examples
from lm.types import Example

ROW, ASKED = 16, 8  # tokens of the smallest bucket of a stream and of what is predicted in it; larger ones are doubled


def score(
    model: Transformer,
    params: Any,
    objective: config.Objective,
    tokenizer: Vocabulary,
    asked: Sequence[Span],
    *,
    kind: str,
    batch_size: int,
    cure: str,
) -> tuple[np.ndarray, np.ndarray]:
    """float64 [n]: the model's own log-probability of each target, in nats; bool [n]: whether all its tokens are the likeliest.

    `kind` is one that the objective declares. UserError, with what to do (`cure`), for rows longer than the learned positions.
    """
    way = span_prompts(model.config.architecture, objective)[kind]
    rows, owner = [], []
    for number, span in enumerate(asked):
        of_span = examples(way, kind, span, tokenizer)
        rows += of_span
        owner += [number] * len(of_span)
    check_positions(model.config, _reach(rows, "encoder"), _reach(rows, "decoder"), cure=cure)
    buckets: dict[Lengths, list[int]] = defaultdict(list)
    for number, row in enumerate(rows):
        buckets[bucket(row)].append(number)
    nats, likeliest = np.zeros(len(asked)), np.ones(len(asked), bool)
    nothing = np.zeros(model.config.vocab_size, bool)
    for lengths, numbers in buckets.items():
        for first in range(0, len(numbers), batch_size):
            some = numbers[first : first + batch_size]
            packed = [pack([rows[n]], lengths) for n in some]
            packed += [blank(lengths)] * (batch_size - len(packed))
            losses, tops = (np.asarray(x, float) for x in row_scores(model, params, stack(packed), nothing))
            for n, loss, top in zip(some, losses, tops, strict=False):
                nats[owner[n]] += loss
                likeliest[owner[n]] &= top == len(rows[n].targets)
    return -nats, likeliest


def bucket(row: Example) -> Lengths:
    """The lengths that a row is padded to: those of its streams and of what it asks for, rounded up to powers of two."""

    def rounded(size: int, least: int) -> int:
        return max(least, 1 << (size - 1).bit_length())

    streams = {name: stream for name in ("encoder", "decoder") if (stream := getattr(row, name)) is not None}
    sizes: dict[str, Any] = {
        name: rounded(len(streams[name].tokens), ROW) if name in streams else None for name in ("encoder", "decoder")
    }
    has: dict[str, Any] = {
        name: any(getattr(stream, name) is not None for stream in streams.values())
        for name in ("prefix", "types", "blocks", "ahead")
    }
    return Lengths(**sizes, predicted=rounded(len(row.targets), ASKED), **has)


def _reach(rows: Sequence[Example], name: str) -> int | None:
    """How many positions a stack needs."""
    streams = [stream for row in rows if (stream := getattr(row, name)) is not None]
    return max((int(np.max(stream.positions)) + 1 for stream in streams), default=None)
