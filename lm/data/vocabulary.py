"""What all tokenizers have in common: a protocol, the names of special tokens, and what follows from a vocabulary's pieces."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from lm.data.word_boundaries import Pieces
from lm.errors import UserError

NUM_SENTINELS = 100
MASK = "<mask>"
MASKS = (MASK, "[MASK]")
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(NUM_SENTINELS))
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")

SPACE = "\u2581"  # sentencepiece's stand-in for a space; a literal U+2581 in a text is encoded as bytes


class Tokenizer(Protocol):
    """Ids that a given model lacks are None (sentinels and roles: empty); `require` turns that into an error."""

    vocab_size: int
    pad_id: int | None
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    mask_id: int | None
    sentinel_ids: tuple[int, ...]  # the first is <extra_id_0>
    role_ids: Mapping[str, int]  # "<|user|>" -> id
    special: np.ndarray  # bool [vocab_size]: ids that encoding a text never produces, but for that of unknown text
    reserved: int  # ids 0..reserved-1 are special, and there may be others
    proto: bytes  # the model, from which `from_bytes` makes an equal tokenizer
    fingerprint: str  # SHA-256 of `proto`

    def encode(self, text: str) -> np.ndarray: ...  # int32 [n], without bos and eos

    def encode_batch(self, texts: Sequence[str], *, threads: int | None = None) -> list[np.ndarray]: ...

    def decode(self, ids: Iterable[int]) -> str: ...  # control symbols are silent

    def boundaries(self, tokens: np.ndarray) -> np.ndarray: ...  # uint8 [n], as in `lm.data.word_boundaries`

    def sentence_ends(self, tokens: np.ndarray) -> np.ndarray: ...  # bool [n]

    def require(self, name: str) -> Any: ...

    def piece(self, i: int) -> str: ...  # as the model writes it, for people to read


class Given:
    """What both kinds of tokenizer make of their pieces."""

    vocab_size: int
    pad_id: int | None
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    mask_id: int | None
    sentinel_ids: tuple[int, ...]
    role_ids: Mapping[str, int]
    special: np.ndarray
    proto: bytes

    def _with_roles(self) -> set[int]:
        """All ids that have a name above."""
        one = (self.pad_id, self.bos_id, self.eos_id, self.unk_id, self.mask_id)
        return {i for i in one if i is not None} | {*self.sentinel_ids, *self.role_ids.values()}

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256(self.proto).hexdigest()

    @cached_property
    def _pieces(self) -> Pieces:
        raise NotImplementedError

    def boundaries(self, tokens: np.ndarray) -> np.ndarray:
        """uint8 [n]: whether a word, a character or nothing begins with each token, as in `lm.data.word_boundaries`."""
        return self._pieces.boundaries(np.asarray(tokens))

    def sentence_ends(self, tokens: np.ndarray) -> np.ndarray:
        """bool [n]: a sentence may end with the token."""
        return self._pieces.sentence_ends(np.asarray(tokens))

    def _names(self, name: str) -> str:
        raise NotImplementedError

    def require(self, name: str) -> Any:
        """The id of pad, bos, eos, unk or mask (sentinels: the 100 ids), or a UserError if the model has no such piece."""
        value = self.sentinel_ids if name == "sentinels" else getattr(self, f"{name}_id")
        if value is None or (name == "sentinels" and len(value) < NUM_SENTINELS):
            wanted = f"{SENTINELS[0]}..{SENTINELS[-1]}" if name == "sentinels" else self._names(name)
            raise UserError(f"the given tokenizer has no {wanted}; use one that has, or data.tokenizer.path=None to train one")
        return value


def one_byte(piece: str) -> bytes:
    return bytes.fromhex(piece[3:5])


def leading(special: np.ndarray) -> int:
    """How many ids there are before the first that is text."""
    return int(np.argmin(special)) if not special.all() else len(special)
