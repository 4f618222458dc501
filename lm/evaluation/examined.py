"""A model that is examined, with the text that it was trained on and the text that was held out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lm import config, objectives
from lm.config import Asked
from lm.data.chat import Chat
from lm.data.corpus.prepare import Prepared
from lm.data.corpus.store import shared
from lm.data.rows import Rows, mixture_weights, permute, tokens_of
from lm.data.tokenizer import Tokenizer
from lm.errors import UserError
from lm.evaluation import spans
from lm.generation.writer import Sample, Writer
from lm.models.transformer import Transformer
from lm.objectives import Lengths, span_prompts, text_prompt
from lm.objectives.mixture import first_part
from lm.objectives.prompts import MASK, Span, SpanPrompt
from lm.types import Example, TokenStream

BATCH = 16  # rows of text that are read at a time
SLOTS = 16  # texts that are written at a time
SHORTER = "take a model of more positions"
GENERAL = "no text of its training is known; add --config=FILE with the data that it was trained on"


@dataclass(frozen=True)
class Texts:
    """Pieces of documents as the training reads them, at most `window` tokens each. `read`: rows of the training that the model
    has read, None where it is not known and all are taken for it."""

    data: Prepared
    trained: Rows
    held_out: Rows | None
    read: int | None

    @property
    def window(self) -> int:
        return self.trained.objective.window

    def pieces(self, split: str, seed: int) -> Iterator[np.ndarray]:
        """int32 [n]: pieces of the rows that the model has read ("train"), or of held-out ones ("holdout"), in random order,
        each of one document; without bos and eos. UserError where nothing is held out."""
        rows = self.trained if split == "train" else self.held_out
        if rows is None:
            raise UserError(spans.NOTHING_HELD_OUT)
        count = self.read if split == "train" and self.read is not None else rows.count
        special = self.data.tokenizer.special
        for first in range(0, count, BATCH):
            index = permute(np.arange(first, min(first + BATCH, count)), count, (seed, 7))
            stream: Any = rows.rows(index).decoder
            for tokens, segments in zip(stream.tokens, stream.segments, strict=True):
                for number in range(1, segments.max() + 1):
                    piece = tokens[segments == number]
                    if len(piece := piece[~special[piece]]):
                        yield piece

    def texts(self, split: str, seed: int) -> Iterator[str]:
        """The same as text."""
        return map(self.data.tokenizer.decode, self.pieces(split, seed))


def texts_of(run: config.Run, data: Prepared, architecture: str, *, step: int | None) -> Texts:
    """The texts of a run whose checkpoint is of this step; None for another model, which may have read them all.

    A row's window is a function of the run's seed and the row's number whatever the objective makes of it, so it is read here
    as it is.
    """
    objective = objectives.build(run.objective, architecture, run.data, data.tokenizer)
    lengths = Lengths(None, objective.window)
    plain = dict(needs_other=False, stratified=False, paced=False, after=(), draws=False, shortest=1, ends=frozenset())
    objective = replace(objective, make=_as_it_is, lengths=lengths, **plain)
    stores = shared(data.train, run.data.train_share)
    trained = Rows(stores, objective, run.train.seed, mixture_weights(run.data, tokens_of(stores)))
    held_out = Rows(data.holdout, objective, 0, shuffle=False) if data.holdout else None
    return Texts(data, trained, held_out, None if step is None else step * run.train.batch_size)


def _as_it_is(tokens: np.ndarray, rng: np.random.Generator) -> Example:
    size = len(tokens)
    stream = TokenStream(tokens, np.arange(size, dtype=np.int32), np.ones(size, np.int32))
    return Example(None, stream, tokens, np.ones(size, np.float32))


@dataclass(frozen=True)
class Examined:
    """What the examinations ask. `count`: how many questions of each kind. `known` says how it can be asked for spans."""

    model: Transformer
    params: Any
    objective: config.Objective
    tokenizer: Tokenizer
    count: int
    seed: int
    batch_size: int
    documents: Texts | None = None
    no_documents: str = GENERAL  # why there are none
    chat: Chat | None = None  # how it is given a conversation; None: it is no chat model

    @property
    def architecture(self) -> str:
        return self.model.config.architecture

    @property
    def known(self) -> dict[str, SpanPrompt]:
        return dict(span_prompts(self.architecture, self.objective))

    @property
    def texts(self) -> Texts:
        """UserError if no text of the model's training is known."""
        if self.documents is None:
            raise UserError(self.no_documents)
        return self.documents

    @property
    def both_sides(self) -> bool:
        """Whether the probability of a span given both of its sides can be asked for; otherwise given its left side."""
        return "infill" in self.known and self.known["infill"].normalised

    def nats(self, asked: Sequence[Span], kind: str, *, renormalise: bool = True, cure: str = SHORTER) -> spans.Score:
        """The spans' negative log-probabilities (`lm.evaluation.spans.score`). UserError if the model cannot be asked so."""
        settings: dict[str, Any] = dict(kind=kind, batch_size=self.batch_size, renormalise=renormalise, cure=cure)
        return spans.score(self.model, self.params, self.objective, self.tokenizer, asked, **settings)

    @property
    def writer(self) -> Writer:
        return Writer(self.model, self.params, self.tokenizer, self.objective, slots=SLOTS, top=1)

    @property
    def writes(self) -> bool:
        """Whether it goes on with a text; others fill in what is missing."""
        return self.writer.continues

    def write(self, prompts: Sequence[str], *, new_tokens: int, temperature: float) -> list[Sample]:
        """What the model writes to each prompt, in their order, with each token's log-probability. UserError for an encoder,
        which writes no text."""
        if not self.writes:
            raise UserError("it fills in masks, and writes no text that goes on from a prompt; take a model that does")
        sentinels = text_prompt(first_part(self.objective, self.tokenizer)[0]).sentinels
        settings: dict[str, Any] = dict(new_tokens=new_tokens, temperature=temperature)
        asked = [
            Asked(prompt=f"{prompt}{MASK}" if sentinels else prompt, seed=(self.seed + n) % 2**31, **settings)
            for n, prompt in enumerate(prompts)
        ]
        place = {id(one): n for n, one in enumerate(asked)}
        return sorted(self.writer.write(asked), key=lambda sample: place[id(sample.asked)])
