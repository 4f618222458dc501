"""The base class of tokenizers, and the names of the special tokens that models and objectives use."""

import abc
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from lm.data.word_boundaries import Pieces
from lm.errors import UserError

NUM_SENTINELS = 100
NUM_WORD_SENTINELS = 32  # of word-level ones: span corruption of 640 tokens at T5's rate, or of 64 at rate 0.5 and spans of 1
MASK = "<mask>"
MASKS = (MASK, "[MASK]", "<|mdm_mask|>")  # the last is LLaDA's
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(NUM_SENTINELS))
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>")

SPACE = "\u2581"  # how sentencepiece spells a space; a literal U+2581 in a text is encoded as its bytes


class Tokenizer(abc.ABC):
    """Text to ids and back. Special ids that a given model lacks are None (sentinels and roles: empty); `require` raises
    then."""

    vocab_size: int
    pad_id: int | None
    bos_id: int | None
    eos_id: int | None
    unk_id: int | None
    mask_id: int | None
    sentinel_ids: tuple[int, ...]  # the first is <extra_id_0>
    role_ids: Mapping[str, int]  # "<|user|>" -> id
    special: np.ndarray  # bool [vocab_size]: ids that encoding never produces, except unk for unknown text
    proto: bytes  # the model file; `lm.data.tokenizer.from_bytes` makes an equal tokenizer of it

    @abc.abstractmethod
    def encode_batch(self, texts: Sequence[str], *, threads: int | None = None) -> list[np.ndarray]:
        """int32 [n] for each text, without bos and eos. `threads=None`: one per core."""

    @abc.abstractmethod
    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; special ids are left out."""

    @abc.abstractmethod
    def piece(self, i: int) -> str:
        """Piece `i` as the model file spells it, for people to read."""

    @abc.abstractmethod
    def _spelling(self, name: str) -> str:
        """How error messages spell the special token `name` ("pad", "mask", ...)."""

    @property
    @abc.abstractmethod
    def _pieces(self) -> Pieces: ...

    def encode(self, text: str) -> np.ndarray:
        """int32 [n], without bos and eos."""
        return self.encode_batch([text], threads=1)[0]

    @property
    def names(self) -> Mapping[str, int]:
        """Special tokens by the names that `piece` gives."""
        return {self.piece(i): int(i) for i in np.flatnonzero(self.special)}

    def with_names_in(self, text: str) -> "Tokenizer":
        """A tokenizer that differs in this: tokens which a file adds to its vocabulary are special if `text` names them."""
        return self

    def encode_parts(self, parts: Sequence[str | int]) -> np.ndarray:
        """int32 [n]: texts, in which names of special tokens are ordinary letters, and ids of special tokens among them."""
        encoded = [self.encode(part) if isinstance(part, str) else np.array([part], np.int32) for part in parts]
        return np.concatenate([np.zeros(0, np.int32), *encoded])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of `proto`, in hex."""
        return hashlib.sha256(self.proto).hexdigest()

    @property
    def piece_bytes(self) -> Sequence[bytes]:
        """The bytes that each id adds to a text; those of a special token are its name."""
        return self._pieces.bytes

    def boundaries(self, tokens: np.ndarray) -> np.ndarray:
        """uint8 [n]: whether each token begins a WORD, a CHARACTER or neither (INSIDE); see `lm.data.word_boundaries`."""
        return self._pieces.boundaries(np.asarray(tokens))

    def sentence_ends(self, tokens: np.ndarray) -> np.ndarray:
        """bool [n]: a sentence may end with the token."""
        return self._pieces.sentence_ends(np.asarray(tokens))

    def require(self, name: str) -> Any:
        """The id of "pad", "bos", "eos", "unk" or "mask", or the 100 ids of "sentinels". Raises UserError if there is none."""
        value = self.sentinel_ids if name == "sentinels" else getattr(self, f"{name}_id")
        if value is None or (name == "sentinels" and len(value) < NUM_SENTINELS):
            wanted = f"{SENTINELS[0]}..{SENTINELS[-1]}" if name == "sentinels" else self._spelling(name)
            raise UserError(f"the given tokenizer has no {wanted}; use one that has, or data.tokenizer.path=None to train one")
        return value

    def _assigned_ids(self) -> set[int]:
        """All ids of the fields above."""
        single = (self.pad_id, self.bos_id, self.eos_id, self.unk_id, self.mask_id)
        return {i for i in single if i is not None} | {*self.sentinel_ids, *self.role_ids.values()}


def byte_value(piece: str) -> bytes:
    """The byte that a piece such as "<0x0A>" stands for."""
    return bytes.fromhex(piece[3:5])
