"""Makes Examples of records, for each architecture: a text with its answer in words, or with its class for a head."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from lm import config
from lm.data import trees
from lm.data.tokenizer import Tokenizer
from lm.errors import UserError
from lm.objectives import Lengths
from lm.objectives.streams import stream
from lm.types import Example


def shorten(tokens: np.ndarray, length: int) -> np.ndarray:
    """Shortens a text to at most `length` tokens by removing its middle: the two ends say most about its subject (arXiv
    1905.05583, section 5.3.1).

    tokens    [5 6 7 8 9], length 4
    shorter   [5 6 8 9]
    """
    if len(tokens) <= length:
        return tokens
    tail = length // 2
    return np.concatenate([tokens[: length - tail], tokens[len(tokens) - tail :]])


def answer_room(tokenizer: Tokenizer, classes: Sequence[str]) -> int:
    """The most tokens that a class takes as an answer, with eos. UserError if two classes are the same tokens, so that answers
    could not distinguish them.
    """
    seen: dict[tuple[int, ...], str] = {}
    for name, ids in zip(classes, tokenizer.encode_batch([f" {c}" for c in classes]), strict=True):
        if (other := seen.setdefault(tuple(ids.tolist()), name)) is not name:
            raise UserError(f"labels {other!r} and {name!r} are the same tokens: rename one, or set --config.recipe.how=head")
    return 1 + max(map(len, seen))


class ExampleBuilder:
    """Makes Examples for one architecture. `length` is the most tokens of a text with its bos and eos, `answer` of an answer
    with its eos. `prefix`: tokens of a decoder-only model's text attend to each other in both directions.
    """

    def __init__(self, tokenizer: Tokenizer, architecture: str, *, length: int, answer: int, prefix: bool) -> None:
        self.architecture, self.length, self.answer = architecture, length, answer
        self.prefix = prefix and architecture == "decoder"
        self.tokenizer, self.eos = tokenizer, np.array([tokenizer.require("eos")])
        self.bos = np.array([i for i in [tokenizer.bos_id] if i is not None], np.int32)
        # The first token of an encoder-decoder's decoder; T5, which has no bos, takes padding.
        self.start = self.bos if len(self.bos) else np.array([tokenizer.require("pad")])

    @classmethod
    def of(cls, tokenizer: Tokenizer, recipe: config.Finetune, architecture: str) -> "ExampleBuilder":
        """That of a fine-tuning which knows its classes, if it has any."""
        answer = answer_room(tokenizer, recipe.classes) if recipe.classes and recipe.how == "text" else recipe.answer
        return cls(tokenizer, architecture, length=recipe.length, answer=answer, prefix=bool(recipe.prefix))

    def encode(self, texts: list[str]) -> list[np.ndarray]:
        """Encodes texts, shortened so that bos and eos fit too."""
        return [self.shorten(ids) for ids in self.tokenizer.encode_batch(texts)]

    def shorten(self, text: np.ndarray) -> np.ndarray:
        return shorten(text, self.length - 2)

    def answers(self, words: list[str]) -> list[np.ndarray]:
        """The ids of ` word eos`, with a space because an answer follows other words."""
        return [
            np.concatenate([ids[: self.answer - 1], self.eos]) for ids in self.tokenizer.encode_batch([f" {w}" for w in words])
        ]

    def after_bos(self, ids: np.ndarray) -> np.ndarray:
        """The ids without bos, which most chat templates write."""
        begun = len(self.bos)
        return ids[begun:] if np.array_equal(ids[:begun], self.bos) else ids

    # ---------------------------------------------------------------------------------------------- answered in words

    @property
    def answer_lengths(self) -> Lengths:
        """Of rows of `answer_example`, one in each."""
        if self.architecture == "encoder":
            raise UserError("an encoder gives no text: set --config.recipe.how=head")
        if self.architecture == "encoder_decoder":
            return Lengths(self.length, self.answer)
        return Lengths(None, self.length + self.answer - 1, self.answer, prefix=self.prefix)

    def answer_example(self, text: np.ndarray, answer: np.ndarray) -> Example:
        """The answer from the text; logits and loss only at the answer.

        text      [7 8], answer [20 eos]
        decoder   [bos 7 8 eos 20]      encoder   [7 8 eos]
        prefix    [1 1 1 1 0]           decoder   [bos 20]
        where     [3 4]
        targets   [20 eos]              targets   [20 eos]
        """
        weights = np.ones(len(answer), np.float32)
        targets = np.asarray(answer, np.int32)
        encoder, begun = self.prompt(text)
        decoder = np.concatenate([begun, targets[:-1]])
        if encoder is not None:
            return Example(stream(encoder), stream(decoder), targets, weights)
        positions = np.arange(len(decoder), dtype=np.int32)
        prefix = positions < len(begun) if self.prefix else None
        return Example(None, stream(decoder, prefix), targets, weights, positions[len(begun) - 1 :])

    def turns_example(self, ids: np.ndarray, loss: np.ndarray) -> Example:
        """A stream with answers in it, for a decoder alone; logits at every position, loss at the answers.

        ids       [bos user 7 end assistant 20 end]
        loss      [  0    0 0   0         0  1   1]
        decoder   [bos user 7 end assistant 20]
        prefix    [  1    1 1   1         1  0]
        targets   [user 7 end assistant 20 end]
        weights   [   0 0   0         0  1   1]
        """
        positions = np.arange(len(ids) - 1)
        prefix = positions < int(np.argmax(loss)) if self.prefix else None
        return Example(None, stream(ids[:-1], prefix), np.asarray(ids[1:], np.int32), loss[1:].astype(np.float32))

    def turn_example(self, before: np.ndarray, answer: np.ndarray) -> Example:
        """One answer in a conversation, for an encoder-decoder: the encoder reads what was said before.

        before    [user 7 end assistant], answer [20 end]
        encoder   [user 7 end assistant]
        decoder   [bos 20]
        targets   [20 end]
        """
        decoder = np.concatenate([self.start, answer[:-1]])
        return Example(stream(before), stream(decoder), np.asarray(answer, np.int32), np.ones(len(answer), np.float32))

    def last_turn_example(self, before: np.ndarray, answer: np.ndarray) -> Example:
        """The last answer in a conversation; logits and loss only there. `before` begins with bos, if the template writes one.

        before    [bos user 7 end assistant], answer [20 end]
        decoder   [bos user 7 end assistant 20]     encoder   [user 7 end assistant]
        where     [4 5]                             decoder   [bos 20]
        targets   [20 end]                          targets   [20 end]
        """
        if self.architecture == "encoder_decoder":
            return self.turn_example(self.after_bos(before), answer)
        positions = np.arange(len(before) + len(answer) - 1, dtype=np.int32)
        decoder = stream(np.concatenate([before, answer[:-1]]), positions < len(before) if self.prefix else None)
        weights = np.ones(len(answer), np.float32)
        return Example(None, decoder, np.asarray(answer, np.int32), weights, positions[len(before) - 1 :])

    def prompt(self, text: np.ndarray) -> tuple[np.ndarray | None, np.ndarray]:
        """The ids that the encoder reads (None without one), and those that the decoder reads before the answer."""
        if self.architecture == "encoder_decoder":
            return np.concatenate([text, self.eos]), self.start
        return None, np.concatenate([self.bos, text, self.eos])

    # --------------------------------------------------------------------------------------------------------- by head

    @property
    def label_lengths(self) -> Lengths:
        """Of rows of `label_example`, one in each."""
        encoder, decoder = (self.length if name in self.architecture else None for name in ("encoder", "decoder"))
        return Lengths(encoder, decoder, 1, prefix=self.prefix)

    def label_example(self, text: np.ndarray, label: int) -> Example:
        """A class from the vector at one position: the first of an encoder, the last of a decoder. An encoder-decoder reads
        the text in both streams (BART, arXiv 1910.13461, section 3.1).

        text      [7 8], class 1
        encoder   [bos 7 8 eos]   or decoder [bos 7 8 eos]
        where     [0]             or         [3]
        targets   [1]
        """
        ids = np.concatenate([self.bos, text, self.eos])
        encoder = stream(ids) if "encoder" in self.architecture else None
        decoder = stream(ids, np.ones(len(ids), bool) if self.prefix else None) if "decoder" in self.architecture else None
        where = np.array([0 if decoder is None else len(ids) - 1], np.int32)
        return Example(encoder, decoder, np.array([label], np.int32), np.ones(1, np.float32), where)

    def tree_example(self, nodes: trees.Nodes, label: int) -> Example:
        """A class from the vector at the root of a tree.

        nodes     ((7 8) 9), bos where nothing is read; class 1
        encoder   [7 8 bos 9 bos]
        where     [4]
        targets   [1]
        """
        encoder = replace(stream(np.array(nodes.read)), tree=trees.arrays(nodes))
        where = np.array([len(nodes.read) - 1], np.int32)
        return Example(encoder, None, np.array([label], np.int32), np.ones(1, np.float32), where)

    @property
    def reward_lengths(self) -> Lengths:
        """Of rows of `reward_example`, one in each."""
        if self.architecture == "encoder_decoder":
            return Lengths(self.length, self.answer + 1, 1)
        encoder, decoder = (self.length + self.answer if name == self.architecture else None for name in ("encoder", "decoder"))
        return Lengths(encoder, decoder, 1, prefix=self.prefix)

    def reward_example(self, before: np.ndarray, answer: np.ndarray) -> Example:
        """The last answer in a conversation, to be given one number: from the vector at the answer's last token, the end of its
        turn; of an encoder, at the first token.

        before    [bos user 7 end assistant], answer [20 end]
        decoder   [bos user 7 end assistant 20 end]     encoder   [user 7 end assistant]     encoder alone  [bos user ... end]
        where     [6]                                   decoder   [bos 20 end]               where          [0]
                                                        where     [2]
        """
        ids = np.concatenate([before, answer])
        encoder, decoder, where = None, None, 0
        if self.architecture == "encoder":
            encoder = stream(ids)
        elif self.architecture == "decoder":
            decoder = stream(ids, np.arange(len(ids)) < len(before) if self.prefix else None)
            where = len(ids) - 1
        else:
            encoder, decoder = stream(self.after_bos(before)), stream(np.concatenate([self.start, answer]))
            where = len(self.start) + len(answer) - 1
        return Example(encoder, decoder, np.zeros(1, np.int32), np.ones(1, np.float32), np.array([where], np.int32))
