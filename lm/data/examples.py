"""A text and what is asked about it, as an Example: answered in words, or by a head that reads one place."""

import numpy as np

from lm.data.tokenizer import Tokenizer
from lm.errors import UserError
from lm.objectives import Lengths
from lm.objectives.causal import stream
from lm.types import Example


def shorten(tokens: np.ndarray, length: int) -> np.ndarray:
    """At most `length` tokens: of a longer text its two ends, which say most of what it is about (arXiv 1905.05583,
    section 5.3.1).

    tokens    [5 6 7 8 9], length 4
    shorter   [5 6 8 9]
    """
    if len(tokens) <= length:
        return tokens
    tail = length // 2
    return np.concatenate([tokens[: length - tail], tokens[len(tokens) - tail :]])


class ExampleBuilder:
    """Makes Examples for one architecture. `length` is places for a text with its ends, `answer` for an answer and its eos.

    `prefix`: a decoder sees the whole text from both sides.
    """

    def __init__(self, tokenizer: Tokenizer, architecture: str, *, length: int, answer: int, prefix: bool) -> None:
        self.architecture, self.length, self.answer = architecture, length, answer
        self.prefix = prefix and architecture == "decoder"
        self.tokenizer, self.eos = tokenizer, np.array([tokenizer.require("eos")])
        self.bos = np.array([i for i in [tokenizer.bos_id] if i is not None], np.int32)
        # What an encoder-decoder's answer begins with: T5, which has no bos, takes padding.
        self.start = self.bos if len(self.bos) else np.array([tokenizer.require("pad")])

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Texts as ids, cut to what fits between bos and eos."""
        return [shorten(ids, self.length - 2) for ids in self.tokenizer.encode_batch(texts)]

    def answers(self, words: list[str]) -> list[np.ndarray]:
        """` word eos` as ids: an answer is a word that follows others."""
        return [
            np.concatenate([ids[: self.answer - 1], self.eos]) for ids in self.tokenizer.encode_batch([f" {w}" for w in words])
        ]

    # ---------------------------------------------------------------------------------------------- answered in words

    @property
    def lengths(self) -> Lengths:
        """Of the rows of `say`."""
        if self.architecture == "encoder":
            raise UserError("an encoder gives no text: take how='head'")
        if self.architecture == "encoder_decoder":
            return Lengths(self.length, self.answer)
        return Lengths(None, self.length + self.answer - 1, self.answer, prefix=self.prefix)

    def say(self, text: np.ndarray, answer: np.ndarray) -> Example:
        """The answer from the text; logits and loss at the answer alone.

        text      [7 8], answer [20 eos]
        decoder   [bos 7 8 eos 20]      encoder   [7 8 eos]
        prefix    [1 1 1 1 0]           decoder   [bos 20]
        where     [3 4]
        targets   [20 eos]              targets   [20 eos]
        """
        weights = np.ones(len(answer), np.float32)
        targets = np.asarray(answer, np.int32)
        encoder, begun = self.question(text)
        decoder = np.concatenate([begun, targets[:-1]])
        if encoder is not None:
            return Example(stream(encoder), stream(decoder), targets, weights)
        places = np.arange(len(decoder), dtype=np.int32)
        prefix = places < len(begun) if self.prefix else None
        return Example(None, stream(decoder, prefix), targets, weights, places[len(begun) - 1 :])

    def question(self, text: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """What the encoder reads, if there is one, and what the decoder's stream begins with: the answer follows it."""
        if self.architecture == "encoder_decoder":
            return np.concatenate([text, self.eos]), self.start
        return None, np.concatenate([self.bos, text, self.eos])

    # --------------------------------------------------------------------------------------------------------- by head

    @property
    def reading(self) -> Lengths:
        """Of the rows of `read`."""
        encoder, decoder = (self.length if name in self.architecture else None for name in ("encoder", "decoder"))
        return Lengths(encoder, decoder, 1, prefix=self.prefix)

    def read(self, text: np.ndarray, label: int) -> Example:
        """A class from the vector at one place: the first of an encoder, the last of a decoder. An encoder-decoder reads
        the text in both streams (BART, arXiv 1910.13461, section 3.1).

        text      [7 8], class 1
        encoder   [bos 7 8 eos]   or decoder [bos 7 8 eos]
        where     [0]             or         [3]
        targets   [1]
        """
        whole = np.concatenate([self.bos, text, self.eos])
        encoder = stream(whole) if "encoder" in self.architecture else None
        decoder = stream(whole, np.ones(len(whole), bool) if self.prefix else None) if "decoder" in self.architecture else None
        where = np.array([0 if decoder is None else len(whole) - 1], np.int32)
        return Example(encoder, decoder, np.array([label], np.int32), np.ones(1, np.float32), where)
