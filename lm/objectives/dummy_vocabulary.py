"""A vocabulary without words, for what depends on its size alone: the shapes of a run before it has a tokenizer."""

import numpy as np

from lm import config
from lm.objectives.vocabulary import Vocabulary
from lm.types import WORD


class DummyVocabulary(Vocabulary):
    """The special tokens, by number and id, of a tokenizer of words or pieces that is trained here (`lm.data.tokenizer`)."""

    def __init__(self, vocab_size: int, *, words: bool = False) -> None:
        self.vocab_size = vocab_size
        self.pad_id, self.bos_id, self.eos_id, self.unk_id, self.mask_id = 0, 1, 2, 3, 4
        self.sentinel_ids = tuple(range(5, 37 if words else 105))
        self.special = np.arange(vocab_size) < (42 if words else 110)

    @classmethod
    def of(cls, run: config.Run) -> "DummyVocabulary":
        """That of the tokenizer that a run trains."""
        assert run.model is not None
        return cls(run.model.vocab_size, words=run.data.tokenizer.kind == "word")

    def require(self, name: str) -> int:
        return getattr(self, f"{name}_id")

    def encode(self, text: str) -> np.ndarray:
        return np.zeros(1, np.int32)

    def boundaries(self, tokens: np.ndarray) -> np.ndarray:
        return np.full(len(tokens), WORD, np.uint8)

    def sentence_ends(self, tokens: np.ndarray) -> np.ndarray:
        return np.ones(len(tokens), bool)
