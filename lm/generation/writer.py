"""Writes what is asked of a saved model, as text: `lm.generate`, and what is built upon it."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from lm import config, untrusted
from lm.config import Asked
from lm.errors import UserError
from lm.generation import beam
from lm.generation.engine import Request, Written
from lm.generation.grammar import Constraint, Grammars
from lm.generation.infill import infill
from lm.generation.padding import whole
from lm.generation.samples import ask, fill_masks, samples
from lm.generation.text_engine import engine_for, never_written
from lm.generation.texts import Streamed
from lm.models.transformer import Transformer
from lm.objectives import text_prompt, usual
from lm.objectives.mixture import first_part
from lm.objectives.prompts import MASK


@dataclass(frozen=True)
class Token:
    """A token that was written, or one that could have been."""

    text: str
    log_prob: float  # nats, of the model's own distribution
    drawn_log_prob: float | None = None  # of the distribution that it was drawn from
    top: tuple["Token", ...] = ()  # the likeliest in its place

    def __str__(self) -> str:
        others = "  ".join(f"{t.text!r} {math.exp(t.log_prob):.3f}" for t in self.top)
        return f"{self.text!r:<16} {math.exp(self.log_prob):.3f}   {others}"


@dataclass
class Sample:
    """`finish` says why it ended: at the "end" of its text, at a "stop" string, or by its "length"; "filled" if a mask was."""

    asked: Asked
    number: int
    text: str = ""
    finish: str = ""
    stop: str | None = None
    tokens: list[Token] = field(default_factory=list)
    count: int = 0  # of tokens, the end of the text included
    log_prob: float | None = None  # nats of all of them under the model's own distribution; None where it has no such

    def to_json(self) -> dict[str, Any]:
        def of(t: Token) -> dict[str, Any]:
            out: dict[str, Any] = {"token": t.text, "log_prob": round(t.log_prob, 6)}
            out |= {} if t.drawn_log_prob is None else {"drawn_log_prob": round(t.drawn_log_prob, 6)}
            return out | ({"top": [of(other) for other in t.top]} if t.top else {})

        out: dict[str, Any] = {"prompt": self.asked.prompt, "sample": self.number, "text": self.text, "finish": self.finish}
        out |= {} if self.stop is None else {"stop": self.stop}
        out |= {} if self.log_prob is None else {"tokens": self.count, "log_prob": round(self.log_prob, 6)}
        return out | ({"top": [of(t) for t in self.tokens]} if self.tokens else {})


class Writer:
    """Asks a model as its objective does; None: as is usual for a model of its architecture.

    slots: samples that are written at the same time
    top: likeliest tokens that are given for each one written
    engine: other settings of `lm.generation.engine.Engine`
    """

    def __init__(
        self,
        model: Transformer,
        params: Any,
        tokenizer: Any,
        objective: config.Objective | None,
        *,
        slots: int,
        top: int = 0,
        **engine: Any,
    ) -> None:
        self._settings = engine
        self.model, self.params, self.tokenizer, self.slots, self.top = model, params, tokenizer, slots, top
        self.objective = objective or usual(model.config.architecture)
        self.converted = objective is None

    @property
    def continues(self) -> bool:
        """Whether a text is written token by token; otherwise masks are filled in."""
        way = text_prompt(first_part(self.objective, self.tokenizer)[0])
        return self.model.config.architecture != "encoder" and way.in_order

    def write(self, asked: Sequence[Asked], *, stream: Callable[[str], Any] | None = None) -> Iterator[Sample]:
        """Yields samples as they end. `stream` gets the text of each as it comes."""
        if self.continues:
            if ordered := next((one for one in asked if one.order or one.steps), None):
                what = f"order={ordered.order}" if ordered.order else f"steps={ordered.steps}"
                raise UserError(f"{what} is of models that fill in masks, and this one writes from left to right: leave it out")
            yield from (sample for one in asked if one.beams for sample in self._searched(one, stream))
            yield from self._continued([one for one in asked if not one.beams], stream)
            return
        for one in asked:
            if one.regex or one.schema:
                raise UserError("a grammar is followed from left to right, and this model fills in: leave out regex and schema")
            if one.beams:
                raise UserError(f"beams={one.beams}: a search goes from left to right, and this model fills in: leave it out")
            for sample in self._filled(one):
                if stream:
                    stream(sample.text)
                yield sample

    def _filled(self, asked: Asked) -> Iterator[Sample]:
        if asked.order or asked.steps:
            settings: dict[str, Any] = dict(samples=asked.samples, temperature=asked.temperature, seed=asked.seed)
            settings |= dict(order=asked.order or "confidence", steps=asked.steps or None, top_k=asked.top_k)
            objective = None if self.converted else self.objective
            (found,) = infill(self.model, self.params, self.tokenizer, objective, [asked.prompt], **settings)
            yield from (Sample(asked, number, f.text, "filled") for number, f in enumerate(found))
            return
        way = text_prompt(first_part(self.objective, self.tokenizer)[0])
        if self.model.config.architecture == "encoder" and not way.fills:
            if MASK not in asked.prompt:
                raise UserError(f"an encoder fills in {MASK}, and the prompt {asked.prompt!r} has none: put one into it")
            ends = self.converted and self.tokenizer.eos_id is not None
            given: Any = (self.model, self.params, self.tokenizer, self.objective, asked.prompt, max(1, self.top))
            text, found = fill_masks(*given, ends=ends)
            of = lambda t: self.tokenizer.decode([t]).strip()
            tokens = [Token(of(best[0][0]), best[0][1], top=tuple(Token(of(t), p) for t, p in best)) for best in found]
            yield Sample(asked, 0, text, "filled", tokens=tokens if self.top else [])
            return
        for number in range(asked.samples):
            how: dict[str, Any] = dict(new_tokens=asked.new_tokens, temperature=asked.temperature, seed=asked.seed + number)
            (out,) = samples(self.model, self.params, self.tokenizer, self.objective, (asked.prompt,), **how)
            yield Sample(asked, number, out["text"], "filled")

    def _searched(self, one: Asked, stream: Callable[[str], Any] | None) -> Iterator[Sample]:
        """The best texts of a beam search, which are cut off at a stop string once they are found."""
        request, may_write, prefix = self._request(one)
        never = never_written(self.tokenizer, self.model.config.vocab_size, (self.tokenizer.eos_id, *may_write))
        encoder = None if request.encoder is None else whole(request.encoder)
        settings: dict[str, Any] = dict(eos=[self.tokenizer.eos_id], forbidden=never, encoder=encoder, prefix=prefix)
        settings |= dict(beams=one.beams, new_tokens=one.new_tokens, penalty=one.length_penalty)
        for number, found in enumerate(beam.search(self.model, self.params, request.prompt, **settings)[: one.samples]):
            text = self._streamed(request, one)
            ends = found.tokens[-1] == self.tokenizer.eos_id
            said = text.add(found.tokens[:-1] if ends else found.tokens) + text.end()
            if stream:
                stream(said)
            finish = "length" if not ends else "end"
            yield Sample(
                one, number, said, "stop" if text.stopped else finish, text.stopped, [], len(found.tokens), found.log_prob
            )

    def _request(self, one: Asked) -> tuple[Request, tuple[int, ...], bool]:
        """What the engine is asked for; special tokens that may be written; whether a prompt is read from both sides."""
        a = ask(self.model.config.architecture, self.tokenizer, self.objective, [one.prompt], one.new_tokens, one.seed)
        assert a.decoder is not None
        request = a.request(0, one.new_tokens, one, samples=one.samples, constraint=self._constraint(one))
        return request, a.may_write, a.decoder.prefix is not None

    def _constraint(self, one: Asked) -> Constraint | None:
        """The grammar that is asked for. UserError if it is none."""
        if one.regex:
            return self._grammars.regex(one.regex)
        return self._grammars.json_schema(untrusted.parse_json(one.schema.encode(), "schema")) if one.schema else None

    @cached_property
    def _grammars(self) -> Grammars:
        return Grammars(self.tokenizer, vocab_size=self.model.config.vocab_size, eos=[self.tokenizer.eos_id])

    def _streamed(self, request: Request, one: Asked) -> Streamed:
        return Streamed(self.tokenizer, request.prompt if request.encoder is None else (), one.stop)

    def _continued(self, asked: Sequence[Asked], stream: Callable[[str], Any] | None) -> Iterator[Sample]:
        if not asked:
            return
        every, may_write, prefixes = zip(*map(self._request, asked), strict=True)
        requests = {id(request): (request, one) for request, one in zip(every, asked, strict=True)}
        settings: dict[str, Any] = dict(slots=self.slots, top=self.top, ends=[self.tokenizer.eos_id], **self._settings)
        settings |= dict(may_write=sorted({*itertools.chain(*may_write)}), prefix=any(prefixes))  # all are asked in one way
        engine = engine_for(every, self.model, self.params, self.tokenizer, **settings)
        for request in every:
            engine.submit(request)
        live: dict[tuple[int, int], tuple[Sample, Streamed]] = {}
        while engine.busy or engine.waiting:
            for (key, number), some in itertools.groupby(sorted(engine.step(), key=_of), key=_of):
                request, one = requests[key]
                if (key, number) not in live:
                    live[key, number] = Sample(one, number, log_prob=0.0), self._streamed(request, one)
                sample, text = live[key, number]
                if self._add(sample, text, list(some), stream):
                    engine.cancel(request, number)
                    yield sample
                    del live[key, number]

    def _add(self, sample: Sample, text: Streamed, new: list[Written], stream: Callable[[str], Any] | None) -> bool:
        """Adds tokens to a sample, up to the one that completes a stop string; returns whether it has ended."""
        eos = self.tokenizer.eos_id
        assert sample.log_prob is not None
        for some in [[w] for w in new] if text.stop else [new]:
            said = text.add([w.token for w in some if w.token != eos]) + (text.end() if some[-1].last else "")
            sample.text += said
            if stream and said:
                stream(said)
            for w in some:
                sample.count += 1
                sample.log_prob += w.log_prob
                if self.top:
                    of = lambda t: "" if t == eos else self._piece(t)
                    tops = tuple(Token(of(t), p) for t, p in w.top)
                    sample.tokens.append(Token(of(w.token), w.log_prob, w.drawn_log_prob, tops))
            if text.stopped is not None:
                sample.finish, sample.stop = "stop", text.stopped
                return True
        if new[-1].last:
            sample.finish = "end" if new[-1].token == eos else "length"
        return bool(sample.finish)

    def _piece(self, token: int) -> str:
        """A token's own text, with the space that it begins with."""
        space = self.tokenizer.encode("a")
        return self.tokenizer.decode([*space, token])[len(self.tokenizer.decode(space)) :]


def _of(written: Written) -> tuple[int, int]:
    return id(written.request), written.sample
