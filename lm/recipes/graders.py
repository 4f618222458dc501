"""What an answer earns, by a program or a reward model (`lm.config.Grader`)."""

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lm import config, saved
from lm.data.records import Labelled, Pair, Record
from lm.errors import UserError
from lm.evaluation import sandbox
from lm.evaluation.rewards import Rewarder

Answers = Sequence[str]
Grade = Callable[[Answers, Sequence[Record]], np.ndarray]  # answers, and the records that they answer -> float64 [n]
NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


class Graders:
    """Call with answers and the records whose questions they answer -> rewards, float32 [n], and each grader's part of them,
    before its weight. UserError for a pattern or a reward model that cannot be read."""

    def __init__(self, given: Mapping[str, config.Grader]) -> None:
        self.weights = {name: grader.weight for name, grader in given.items()}
        self.grades = {name: _GRADES[grader.kind](grader) for name, grader in given.items()}

    def __call__(self, answers: Answers, records: Sequence[Record]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        parts = {name: grade(answers, records) for name, grade in self.grades.items()}
        total = sum((self.weights[name] * part for name, part in parts.items()), np.zeros(len(answers)))
        return total.astype(np.float32), parts


def answer(record: Record) -> str:
    """The right answer of a record that has one."""
    assert isinstance(record, Pair | Labelled)
    return record.label if isinstance(record, Labelled) else record.answer


def question(record: Record) -> str:
    """What a record's answer is to."""
    assert isinstance(record, Pair | Labelled)
    return record.text if isinstance(record, Labelled) else "\n".join(filter(None, (record.context, record.question)))


def number(text: str) -> float | None:
    """The last number in a text; digits may stand apart. None if there is none."""
    found = NUMBER.findall(re.sub(r"(?<=\d)\s+(?=\d)", "", text))
    return float(found[-1].replace(",", "")) if found else None


def check_numbers(records: Sequence[Record], source: str) -> None:
    """UserError if an answer has no number, which a grader of kind=number would hold every text against."""
    for record in records:
        if number(answer(record)) is None:
            raise UserError(
                f"a grader of kind=number, and the answer {answer(record)[:40]!r} of source {source!r} has no number: take "
                "kind=exact, or leave the record out"
            )


def _each(grade: Callable[[str, Record], bool]) -> Grade:
    return lambda answers, records: np.array([float(grade(*both)) for both in zip(answers, records, strict=True)])


def _exact(c: config.Grader) -> Grade:
    return _each(lambda text, record: text.strip() == answer(record).strip())


def _number(c: config.Grader) -> Grade:
    return _each(lambda text, record: number(text) is not None and number(text) == number(answer(record)))


def _regex(c: config.Grader) -> Grade:
    try:
        pattern = re.compile(c.pattern, re.DOTALL)
    except re.error as error:
        raise UserError(f"the pattern {c.pattern[:60]!r} of a grader is no regular expression ({error})") from None
    return _each(lambda text, record: pattern.fullmatch(text.strip()) is not None)


def _tests(c: config.Grader) -> Grade:
    return _each(lambda text, record: sandbox.run(f"{text}\n{answer(record)}\n", seconds=c.seconds).ok)


def _model(c: config.Grader) -> Grade:
    rewarder = Rewarder(saved.open(c.path or "", name="recipe.graders: path"))
    asked = lambda records: [question(record) for record in records]
    return lambda answers, records: rewarder.scores(asked(records), list(answers), cut=True).astype(float)


_GRADES: Mapping[str, Callable[[config.Grader], Grade]] = {
    "exact": _exact,
    "number": _number,
    "regex": _regex,
    "tests": _tests,
    "model": _model,
}
