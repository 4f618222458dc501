"""A task with several right answers: "like 4 7 =" is answered by any digit that is odd, as 47 is (after arXiv 2509.04259, 2).

A model that is to learn it knows lines of other words (`tastes`), and answers with any digit, each as likely. There are three
ways to teach it: one answer of each parity; answers as the model itself gives them, if right; rewards, whose pattern takes all
right answers.
"""

import random
from functools import lru_cache

import numpy as np

from experiments import languages
from experiments.languages import tastes

NUMBERS, HELD = 100, 20  # numbers, and those of them that are asked at the end
LENGTH, ANSWER = 8, tastes.ANSWER


@lru_cache
def language(seed: int = 0) -> languages.Language:
    """Files of records: `before` and `heldout_before`, half answers and half lines; `one`, `own` and `pattern`, the three ways
    to teach; `heldout_one` and `heldout_pattern`, other numbers; `lines`, records of lines that are in no other file."""
    rng, draw = random.Random(f"parity {seed}"), np.random.default_rng([seed, 6])
    numbers = rng.sample(range(NUMBERS), NUMBERS)
    held, taught = numbers[:HELD], numbers[HELD:]
    line = lambda: {"question": (prompt := f"go {rng.choice(tastes.WORDS)}"), "answer": tastes.line(prompt, draw)}
    guess = lambda n: _record(n, str(rng.randrange(10)))
    some = lambda of, count: [rng.choice(of) for _ in range(count)]
    items = {
        "before": [guess(n) for n in some(taught, 3000)] + [line() for _ in range(3000)],
        "heldout_before": [guess(n) for n in some(held, 100)] + [line() for _ in range(100)],
        "one": [_record(n, str(n % 2)) for n in taught],
        "own": [_record(n, str(rng.choice(_right(n)))) for n in some(taught, 3000)],
        "heldout_one": [_record(n, str(n % 2)) for n in held],
        "pattern": [_record(n, "|".join(map(str, _right(n)))) for n in taught],
        "heldout_pattern": [_record(n, "|".join(map(str, _right(n)))) for n in held],
        "lines": [line() for _ in range(200)],
    }
    words = " ".join(["like", "=", "go", *map(str, range(10)), *("|".join(map(str, _right(n))) for n in (0, 1)), *tastes.WORDS])
    return languages.write("parity", [words] * 8, [words], items=items)


def _record(number: int, answer: str) -> dict[str, str]:
    return {"question": f"like {' '.join(str(number))} =", "answer": answer}


def _right(number: int) -> list[int]:
    return list(range(number % 2, 10, 2))
