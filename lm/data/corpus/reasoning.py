"""Questions of reasoning-gym (arXiv 2505.24760, github.com/open-thought/reasoning-gym): sets of `lm.data.corpus.generated`.

    reasoning_gym:TASK                                                       1000 questions of seed 0
    reasoning_gym:chain_sum?size=5000&seed=3&max_terms=2&max_digits=2        and settings of the task, as its config names them

Its tasks make questions from a seed, and have scorers, since an answer is often not the only right one. Some of these scorers
run what they are given as a Python expression, or take very long for some answers; such tasks are refused, because a policy may
write anything. So are tasks whose questions are others in each process (UNSTEADY), or whose scorers accept what is no answer.
"""

import inspect
import json
import re
import sys
from collections.abc import Callable
from functools import cache
from importlib import import_module, metadata
from typing import Any
from urllib.parse import parse_qsl

from lm.data.records import Message, Messages, Pair, Record
from lm.errors import UserError, nearest

PREFIX, SIZE = "reasoning_gym:", 1000
# sympy reads an expression by running it, and a Fraction of 1e999999999 has a thousand million digits.
RUNS = re.compile(r"\b(eval|exec|compile|Fraction)\(|sympy")
UNSTEADY = ("isomorphic_strings", "ransom_note", "polynomial_multiplication", "list_functions")
DECEIVED = ("complex_arithmetic", "game_of_life_halting")  # the one by "nan", the other by any text
INSTALL = "pip install reasoning-gym==0.1.25"


def version() -> str:
    """What the questions depend on beside their name."""
    try:
        return f"reasoning-gym {metadata.version('reasoning-gym')}"
    except metadata.PackageNotFoundError:
        raise UserError(f"a source of {PREFIX}... needs reasoning-gym: {INSTALL}") from None


def load(path: str, format: str) -> list[Record]:
    """The questions of a set with their answers, as pairs or as messages. UserError for another format."""
    if format not in ("pair", "messages"):
        raise UserError(f"the generated set '{path}' has no answers to compare: set format='pair' or 'messages'")
    entries = list(_dataset(path))
    if wrong := [entry for entry in entries if not isinstance(entry["answer"], str)]:
        raise UserError(f"{path}: the answer to {wrong[0]['question'][:40]!r} is not in words; take another task")
    pairs = [Pair(entry["question"], entry["answer"]) for entry in entries]
    if format == "pair":
        return list(pairs)
    return [Messages((Message("user", pair.question), Message("assistant", pair.answer))) for pair in pairs]


@cache
def scorer(path: str) -> Callable[[str, str], float]:
    """Takes an answer and the question that it is to, and returns what the task's scorer says of it, from 0 to 1. UserError for
    a question that is not of this set, and for a task whose scorer is not safe to ask."""
    dataset = _dataset(path)
    score, name = type(dataset).score_answer, path.removeprefix(PREFIX).partition("?")[0]
    own = score is not import_module("reasoning_gym.dataset").ProceduralDataset.score_answer
    if name == "composite" or (own and RUNS.search(inspect.getsource(sys.modules[score.__module__]))):
        raise UserError(
            f"the scorer of {PREFIX}{name} runs answers as Python: take a grader of kind=exact or number, or another task"
        )
    if name in DECEIVED:
        raise UserError(f"the scorer of {PREFIX}{name} accepts what is no answer: take a grader of kind=exact, or another task")

    def scored(answer: str, question: str) -> float:
        of = entry(path, question)
        try:
            return float(dataset.score_answer(answer.strip(), of))
        except Exception:  # scorers parse what is written, and fail at it in many ways
            return 0.0

    return scored


def entry(path: str, question: str) -> Any:
    """What a set knows of its question. UserError for another one."""
    if (found := _entries(path).get(_plain(question))) is None:
        raise UserError(f"{question[:40]!r} is no question of {path}: give the grader the path of the source")
    return found


@cache
def _entries(path: str) -> dict[str, Any]:
    return {_plain(entry["question"]): entry for entry in _dataset(path)}


def _plain(text: str) -> str:
    return " ".join(text.split())


@cache
def _dataset(path: str) -> Any:
    version()
    known = import_module("reasoning_gym.factory").DATASETS
    name, _, query = path.removeprefix(PREFIX).partition("?")
    if name not in known:
        raise UserError(f"{PREFIX[:-1]} has no task '{name}'{nearest(name, known)}")
    if name in UNSTEADY:
        raise UserError(f"the questions of {PREFIX}{name} are others in each process: take another task")
    try:
        settings = {key: json.loads(value) for key, value in parse_qsl(query, strict_parsing=True)} if query else {}
        return import_module("reasoning_gym").create_dataset(name, **{"size": SIZE, "seed": 0} | settings)
    except (ValueError, TypeError, AssertionError) as error:
        raise UserError(
            f"{path}: {str(error) or 'settings that do not fit each other'}; for example {PREFIX}{name}?size=1000&seed=0"
        ) from None
