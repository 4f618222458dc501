"""What an answer earns, by a program or a reward model (`lm.config.Grader`)."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lm import config, saved
from lm.data.corpus import reasoning
from lm.data.records import Labelled, Message, Messages, Pair, Record
from lm.errors import UserError
from lm.evaluation import sandbox
from lm.evaluation.rewards import Rewarder

Answers = Sequence[str]
Grade = Callable[[Answers, Sequence[Record]], np.ndarray]  # answers, and the records that they answer -> float64 [n]
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


class Graders:
    """Call with answers and the records whose questions they answer -> rewards, float32 [n], and each grader's part of them,
    before its weight. `opened`: the reward models of those of kind "model", by name. UserError for a pattern that cannot be
    read, and for a model that gives no reward."""

    def __init__(self, given: Mapping[str, config.Grader], opened: Mapping[str, saved.Saved] | None = None) -> None:
        self.weights = {name: grader.weight for name, grader in given.items()}
        self.grades = {
            name: _model((opened or {})[name]) if grader.kind == "model" else _GRADES[grader.kind](grader)
            for name, grader in given.items()
        }

    def __call__(self, answers: Answers, records: Sequence[Record]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        parts = {name: grade(answers, records) for name, grade in self.grades.items()}
        total = sum((self.weights[name] * part for name, part in parts.items()), np.zeros(len(answers)))
        return total.astype(np.float32), parts


def answer(record: Record) -> str:
    """The right answer of a record that has one; of a conversation the last thing that the assistant says."""
    if isinstance(record, Messages):
        return _before(record)[1]
    assert isinstance(record, Pair | Labelled)
    return record.label if isinstance(record, Labelled) else record.answer


def question(record: Record) -> str:
    """What a record's answer is to; of a conversation the message before it."""
    if isinstance(record, Messages):
        return _before(record)[0][-1].content
    assert isinstance(record, Pair | Labelled)
    return record.text if isinstance(record, Labelled) else "\n".join(filter(None, (record.context, record.question)))


def _before(record: Messages) -> tuple[tuple[Message, ...], str]:
    """The messages before the last one of the assistant, and that."""
    last = max(i for i, message in enumerate(record.messages) if message.role == "assistant")
    return record.messages[:last], record.messages[last].content


def number(text: str) -> float | None:
    """The last number in a text; digits may stand apart. None if there is none."""
    found = NUMBER.findall(re.sub(r"(?<=\d)\s+(?=\d)", "", text))
    return float(found[-1].replace(",", "")) if found else None


def check_answers(records: Sequence[Record], source: str, graders: Mapping[str, config.Grader]) -> None:
    """UserError for a record that one of the graders cannot grade answers to, so that a run does not stop at it later."""
    kinds = {grader.kind for grader in graders.values()}
    patterns = any(grader.kind == "regex" and not grader.pattern for grader in graders.values())
    for record in records if patterns or kinds & {"number", "reasoning_gym"} else ():
        if "number" in kinds and number(answer(record)) is None:
            raise UserError(
                f"a grader of kind=number, and the answer {answer(record)[:40]!r} of source {source!r} has no number: take "
                "kind=exact, or leave the record out"
            )
        if patterns:
            _pattern(answer(record))
        for grader in graders.values():
            if grader.kind == "reasoning_gym":
                reasoning.entry(grader.path or "", question(record))


def _each(grade: Callable[[str, Record], bool]) -> Grade:
    return lambda answers, records: np.array([float(grade(*both)) for both in zip(answers, records, strict=True)])


def _exact(c: config.Grader) -> Grade:
    return _each(lambda text, record: text.strip() == answer(record).strip())


def _number(c: config.Grader) -> Grade:
    return _each(lambda text, record: number(text) is not None and number(text) == number(answer(record)))


def _regex(c: config.Grader) -> Grade:
    if c.pattern:
        pattern = _pattern(c.pattern)
        return _each(lambda text, record: pattern.fullmatch(text.strip()) is not None)
    return _each(lambda text, record: _pattern(answer(record)).fullmatch(text.strip()) is not None)


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text, re.DOTALL)
    except re.error as error:
        raise UserError(f"the pattern {text[:60]!r} of a grader is no regular expression ({error})") from None


def _tests(c: config.Grader) -> Grade:
    return _each(lambda text, record: sandbox.run(f"{text}\n{answer(record)}\n", seconds=c.seconds).ok)


def _model(opened: saved.Saved) -> Grade:
    rewarder = Rewarder(opened)
    asked = lambda record: _before(record)[0] if isinstance(record, Messages) else question(record)
    return lambda answers, records: rewarder.scores([*map(asked, records)], list(answers), cut=True).astype(float)


def _reasoning(c: config.Grader) -> Grade:
    score = reasoning.scorer(c.path or "")
    return lambda answers, records: np.array([score(*both) for both in zip(answers, map(question, records), strict=True)])


_GRADES: Mapping[str, Callable[[config.Grader], Grade]] = {
    "exact": _exact,
    "number": _number,
    "regex": _regex,
    "tests": _tests,
    "reasoning_gym": _reasoning,
}
