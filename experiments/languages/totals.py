"""Sums of several digits with their working, as words: "7 + 5 + 9 =" is answered by "7 + 5 = 1 2 ; 1 2 + 9 = 2 1".

A base model reads sums of two numbers, `3 1 + 5 = 3 6 ; 7 + 2 = 9`, and lines of other words (`tastes`), and none of the
questions. The last number of an answer is its result, with the working before it or alone. What is forgotten as a model is
tuned on answers shows in the lines.
"""

import random
from functools import lru_cache

import numpy as np

from experiments import languages
from experiments.languages import tastes

LONGEST = 4  # digits of a question, 3 at least
LENGTH, ANSWER = (
    2 * LONGEST + 4,
    64,
)  # tokens of a question with its ends, and room for an answer half as long again as the longest
LINES = 8  # sums of two numbers in a text of the base model


@lru_cache
def language(texts: int = 3000, asked: int = 2500, shown: int = 1000, held: int = 400, seed: int = 0) -> languages.Language:
    """Files of records {"question", "answer"}: `asked`, with their working; `shown`, the first of these;
    `short`, these with the result alone; `heldout_asked`, other questions, and `heldout_short`; `lines`, items of lines that no
    text has. Half of the texts are sums of two numbers, half are lines."""
    rng = random.Random(f"totals {seed}")
    questions = list(dict.fromkeys(_question(rng) for _ in range(4 * (asked + held))))[: asked + held]
    unseen, taught = questions[:held], questions[held:]
    write = lambda some, how: [{"question": _asked(q), "answer": how(q)} for q in some]
    items = {
        "asked": write(taught, worked),
        "shown": write(taught[:shown], worked),
        "short": write(taught[:shown], result),
        "heldout_asked": write(unseen, worked),
        "heldout_short": write(unseen, result),
    }
    draw = np.random.default_rng([seed, 5])
    lines = [tastes.line("go w0", draw) for _ in range(2 * texts + 200)]
    items["lines"] = [{"left": "", "target": f"{a} {b}", "right": ""} for a, b in zip(lines[:100], lines[100:200], strict=True)]
    train = [_sums(rng) for _ in range(texts)] + [f"{a} {b}" for a, b in zip(lines[200::2], lines[201::2], strict=True)]
    heldout = {"sums": [_sums(rng) for _ in range(100)], "other": [item["target"] for item in items["lines"]]}
    return languages.write("totals", train, heldout, items=items)


def worked(digits: tuple[int, ...]) -> str:
    """A sum of two numbers for each digit after the first: (7, 5, 9) -> "7 + 5 = 1 2 ; 1 2 + 9 = 2 1"."""
    return " ; ".join(_added(sum(digits[:i]), digits[i]) for i in range(1, len(digits)))


def result(digits: tuple[int, ...]) -> str:
    return _apart(sum(digits))


def _question(rng: random.Random) -> tuple[int, ...]:
    return tuple(rng.randint(1, 9) for _ in range(rng.randint(3, LONGEST)))


def _asked(digits: tuple[int, ...]) -> str:
    return " + ".join(map(str, digits)) + " ="


def _sums(rng: random.Random) -> str:
    return " ; ".join(_added(rng.randint(1, 9 * (LONGEST - 1)), rng.randint(1, 9)) for _ in range(LINES))


def _added(a: int, b: int) -> str:
    return f"{_apart(a)} + {b} = {_apart(a + b)}"


def _apart(number: int) -> str:
    """Digits are tokens: 21 -> "2 1"."""
    return " ".join(str(number))
