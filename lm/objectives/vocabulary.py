"""What objectives need of a tokenizer."""

from typing import Any, Protocol

import numpy as np

from lm import config
from lm.errors import UserError


class Vocabulary(Protocol):
    """The part of a tokenizer that objectives use."""

    vocab_size: int
    bos_id: Any
    eos_id: Any
    mask_id: int | None
    sentinel_ids: tuple[int, ...]
    pad_id: int | None
    special: np.ndarray  # bool [vocab_size]: ids that encoding a text never produces

    def encode(self, text: str) -> np.ndarray: ...  # int32 [n]

    def boundaries(self, tokens: np.ndarray) -> np.ndarray: ...  # uint8 [n]: INSIDE, CHARACTER or WORD (`lm.types`)

    def sentence_ends(self, tokens: np.ndarray) -> np.ndarray: ...  # bool [n]: a sentence ends with this token


def required_mask(v: Vocabulary, c: config.Objective) -> int:
    """The mask token; UserError naming the objective if the tokenizer has none."""
    if v.mask_id is None:
        name = config.kind_of(type(c))
        raise UserError(
            f"objective '{name}' needs a mask token and the tokenizer has none; data.tokenizer.path=None trains one"
        )
    return v.mask_id


def ends(v: Vocabulary) -> frozenset[int]:
    """`Objective.ends` of objectives that strip bos and eos."""
    return frozenset({v.bos_id, v.eos_id})


def decoder_start(v: Vocabulary) -> int:
    """The first token of an encoder-decoder's decoder: bos, or padding where the tokenizer has none, as T5's. UserError if it
    has neither."""
    if v.bos_id is not None:
        return v.bos_id
    if v.pad_id is None:
        raise UserError("the tokenizer has neither bos nor pad, with which a decoder begins; take another tokenizer")
    return v.pad_id


def of_texts(v: Vocabulary, size: int) -> np.ndarray:
    """bool [size]: ids that encoding a text can produce; False for special tokens and for ids past the vocabulary."""
    known = min(size, v.vocab_size)
    return np.concatenate([~v.special[:known], np.zeros(size - known, bool)])
