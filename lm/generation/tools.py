"""Tools: what a model writes may be a call, whose output stands behind it, and the model goes on from there.

    12 and 34 are <<12+34>>46 together       the model wrote all but 46

TOOLS has them by name. A config adds its own: TOOLS["search"] = Tool(r"\\[search (.*?)\\]", search).
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lm.generation.engine import Engine, Request, Written

# ------------------------------------------------------------------------------------------------------------- tools


@dataclass(frozen=True)
class Tool:
    """`call`: a regular expression of a call, whose first group is given to `run`; it must match with any text behind the call.
    `run` returns the output for any text, and the same one each time, since a run is a function of its seed."""

    call: str
    run: Callable[[str], str]


LONGEST = 100  # characters of an expression
LARGEST = 1e15  # of all numbers in it, and of its value
OPERATIONS: Mapping[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


def calculate(text: str) -> str:
    """The value of an expression of numbers, brackets and + - * / // % **, with up to 10 digits behind the point: "46". The
    digits of a number may stand apart, and have commas. "error" for anything else, and where a number is too large."""
    text = re.sub(r"(?<=\d)\s+(?=[\d.])|(?<=\.)\s+(?=\d)|(?<=\d),(?=\d{3})", "", text.strip())
    text = re.sub(r"(?<![\d.])0+(?=\d)", "", text)  # 007
    if len(text) > LONGEST or not re.fullmatch(r"[\d\s.+\-*/%()]+", text, re.ASCII):
        return "error"
    try:
        value = _value(ast.parse(text, mode="eval").body)
    except (SyntaxError, ArithmeticError, ValueError, TypeError):
        return "error"
    return str(value) if isinstance(value, int) else f"{round(value, 10) + 0.0:.10f}".rstrip("0").rstrip(".")


def _value(node: ast.expr) -> int | float:
    match node:
        case ast.Constant(int() | float() as value):
            found: Any = value
        case ast.UnaryOp(op, operand):
            found = OPERATIONS[type(op)](_value(operand))
        case ast.BinOp(left, op, right):
            a, b = _value(left), _value(right)
            if isinstance(op, ast.Pow) and b * math.log10(max(abs(a), 1)) > math.log10(LARGEST):
                raise OverflowError
            found = OPERATIONS[type(op)](a, b)
        case _:
            raise ValueError("no arithmetic")
    if not abs(found) <= LARGEST or isinstance(found, complex):
        raise OverflowError
    return found


TOOLS: dict[str, Tool] = {"calculator": Tool(r"<<(.*?)>>", calculate)}

# ----------------------------------------------------------------------------------------------------------- answers


@dataclass
class Answer:
    """A sample of a request: what stands behind its prompt, of the model and of tools, token by token."""

    request: Request
    sample: int
    tokens: list[int] = field(default_factory=list)
    own: list[bool] = field(default_factory=list)  # whether the model wrote the token
    log_probs: list[float] = field(default_factory=list)  # of the distribution that it was drawn from; 0 where it was not
    calls: int = 0
    since: int = 0  # tokens up to the end of the last output
    served: Request | None = None  # what goes on from there

    def add(self, token: int, own: bool, log_prob: float) -> None:
        self.tokens.append(token)
        self.own.append(own)
        self.log_probs.append(log_prob)

    def keep(self, size: int) -> None:
        """Drops what is behind the first `size` tokens."""
        for of_tokens in (self.tokens, self.own, self.log_probs):
            del of_tokens[size:]


@dataclass(frozen=True)
class Calling:
    """What answers may call, `most` times each."""

    tokenizer: Any  # with encode, decode and unk_id
    tools: Sequence[Tool]
    most: int

    def output(self, answer: Answer, start: int) -> np.ndarray | None:
        """int32 [n], what stands behind a call that ends at token `start` or later, behind which the answer is dropped. None
        if there is no call. The output alone is tokenised; in a vocabulary of words that lacks it, character by character."""
        if answer.calls == self.most or not self._called(answer, len(answer.tokens)):
            return None
        for size in range(start + 1, len(answer.tokens) + 1):
            if called := self._called(answer, size):
                tool, given = called
                answer.keep(size)
                return self._encoded(tool.run(given))
        return None

    def _called(self, answer: Answer, size: int) -> tuple[Tool, str] | None:
        """The tool that the tokens up to `size` call, and what it is given."""
        text = self.tokenizer.decode(answer.tokens[answer.since : size])
        found = ((tool, re.search(tool.call, text, re.DOTALL)) for tool in self.tools)
        return next(((tool, call[1]) for tool, call in found if call), None)

    def _encoded(self, text: str) -> np.ndarray:
        whole, apart = self.tokenizer.encode(text), self.tokenizer.encode(" ".join(text))
        unknown = self.tokenizer.unk_id
        return apart if unknown in whole and unknown not in apart else whole


def write(engine: Engine, requests: Sequence[Request], calling: Calling | None = None) -> list[list[Answer]]:
    """The answers to each request: for each of its samples, one of up to `new_tokens` tokens with all outputs. A call whose
    output leaves no room for another token ends its answer.

    A call ends what a slot writes. With the output behind it the text is a request of its own, whose prompt has no `prefix`
    and whose seed is a function of the request's, the sample, and the number of the call.
    """
    answers = [[Answer(request, sample) for sample in range(request.samples)] for request in requests]
    serving = {(id(answer.request), answer.sample): answer for of_request in answers for answer in of_request}
    for request in requests:
        engine.submit(request)
    while engine.busy or engine.waiting:
        grown: dict[int, tuple[Written, int]] = {}
        for written in engine.step():
            answer = serving[id(written.request), written.sample]
            grown.setdefault(id(answer), (written, len(answer.tokens)))
            answer.add(written.token, True, written.drawn_log_prob)
        for written, before in grown.values():
            answer = serving[id(written.request), written.sample]
            if calling is None or (output := calling.output(answer, before)) is None:
                continue
            engine.cancel(written.request, written.sample)
            if len(answer.tokens) + len(output) < answer.request.new_tokens:
                for token in output.tolist():
                    answer.add(token, False, 0.0)
                answer.calls, answer.since = answer.calls + 1, len(answer.tokens)
                answer.served = _going_on(answer)
                serving[id(answer.served), 0] = answer
                engine.submit(answer.served)
    return answers


def _going_on(answer: Answer) -> Request:
    request, (asked, sample) = answer.request, (answer.request.sampling, answer.sample)
    seed = int(np.random.SeedSequence((asked.seed, sample, answer.calls)).generate_state(1)[0])
    prompt = np.concatenate([request.prompt, answer.tokens]).astype(np.int32)
    left = request.new_tokens - len(answer.tokens)
    return replace(request, prompt=prompt, new_tokens=left, sampling=replace(asked, seed=seed), samples=1)
