"""Engines that write texts, as everything here makes them: what they never write, and how much room their slots have."""

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from lm import config
from lm.generation.engine import Engine, Request
from lm.generation.padding import source_length
from lm.models.positions import learned
from lm.models.transformer import Transformer
from lm.objectives import of_texts
from lm.sharding import shards

E = TypeVar("E", bound=Engine)
ROUND = 64  # a slot has room for a multiple of so many tokens, so that few programs are compiled


def never_written(tokenizer: Any, vocab_size: int, may_write: Sequence[int]) -> np.ndarray:
    """bool [V]: special tokens, and ids past the tokenizer's vocabulary; not those that `may_write` names."""
    never = ~of_texts(tokenizer, vocab_size)
    never[list(may_write)] = False
    return never


def text_engine(
    make: type[E],
    model: Transformer,
    params: Any,
    tokenizer: Any,
    *,
    ends: Sequence[int],
    may_write: Sequence[int] = (),
    slots: int,
    length: int,
    source: int = 0,
    **settings: Any,
) -> E:
    """An engine of class `make` that writes what texts consist of, and the special tokens in `may_write`, up to one of the
    `ends`. Other settings are those of `Engine`."""
    never = never_written(tokenizer, model.config.vocab_size, (*ends, *may_write))
    room: dict[str, Any] = dict(slots=slots, length=length, source=source)
    return make(model, params, eos=ends, forbidden=never, **room, **settings)


def engine_for(
    requests: Sequence[Request], model: Transformer, params: Any, tokenizer: Any, *, slots: int, **settings: Any
) -> Engine:
    """A `text_engine` with room for each of these requests, and with so many slots or fewer: as many as there are samples. On a
    mesh they are rounded up, so that they divide over its data shards."""
    needed = max(len(r.prompt) + r.new_tokens for r in requests)
    source = max((source_length(r.encoder) for r in requests if r.encoder is not None), default=0)
    parts, c = shards("batch"), model.config
    slots = -(-min(slots, sum(r.samples for r in requests)) // parts) * parts
    if source and not (c.encoder and c.encoder.stem):  # streams of vectors come with the length that they are read at
        source = rounded(source, learned(c, "encoder"))
    room: dict[str, Any] = dict(slots=slots, length=slot_length(c, needed), source=source)
    return text_engine(Engine, model, params, tokenizer, **room, **settings)


def slot_length(model: config.Model, size: int) -> int:
    """Tokens of a slot for texts of `size` tokens with their prompts: the last one is written and not read."""
    most = learned(model, "decoder")
    return rounded(size, most and most + 1)


def rounded(size: int, most: int | None, multiple: int = ROUND) -> int:
    """`size` rounded up to a multiple, but not past `most` unless `size` is."""
    room = -(-size // multiple) * multiple
    return max(size, min(room, most or room))
