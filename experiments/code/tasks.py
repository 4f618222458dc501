"""One-function tasks with tests, made from templates: a signature and a docstring to complete, and assertions on random inputs.

The expected values come from the template's own expression, so that the tests hold by construction.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

INPUTS = 6  # assertions of a task


@dataclass(frozen=True)
class Task:
    """`prompt` ends with the docstring's line; `tests` are assertions; `solution` is a body that passes."""

    name: str
    prompt: str
    tests: str
    solution: str

    def program(self, body: str) -> str:
        return f"{self.prompt}{body}\n\n{self.tests}"


Draw = Callable[[np.random.Generator], object]

NUMBER: Draw = lambda rng: int(rng.integers(-20, 21))
POSITIVE: Draw = lambda rng: int(rng.integers(1, 21))
WORD: Draw = lambda rng: "".join(rng.choice(list("abcXYZ"), rng.integers(1, 7)).tolist())
PADDED: Draw = lambda rng: " " * int(rng.integers(0, 3)) + str(WORD(rng)) + " " * int(rng.integers(0, 3))
LIST: Draw = lambda rng: rng.integers(-9, 10, rng.integers(1, 7)).tolist()
ANY_LIST: Draw = lambda rng: rng.integers(-9, 10, rng.integers(0, 3)).tolist()
FLAG: Draw = lambda rng: bool(rng.integers(2))
MAYBE: Draw = lambda rng: None if rng.random() < 0.5 else int(rng.integers(0, 3))
DICT: Draw = lambda rng: {"abc"[i]: int(rng.integers(9)) for i in range(int(rng.integers(1, 4)))}
KEY: Draw = lambda rng: "abc"[int(rng.integers(3))]

# Name, arguments with what they are drawn from, docstring, expression. K is a constant that each variant draws anew.
TEMPLATES: tuple[tuple[str, dict[str, Draw], str, str], ...] = (
    ("add", {"a": NUMBER, "b": NUMBER}, "Return the sum of a and b.", "a + b"),
    ("subtract", {"a": NUMBER, "b": NUMBER}, "Return a minus b.", "a - b"),
    ("multiply", {"x": NUMBER, "y": NUMBER}, "Return the product of x and y.", "x * y"),
    ("largest", {"a": NUMBER, "b": NUMBER}, "Return the larger of a and b.", "max(a, b)"),
    ("absolute", {"x": NUMBER}, "Return the absolute value of x.", "abs(x)"),
    ("plus_K", {"x": NUMBER}, "Return x plus K.", "x + K"),
    ("times_K", {"x": NUMBER}, "Return x times K.", "x * K"),
    ("identity", {"x": NUMBER}, "Return x.", "x"),
    ("negate", {"value": NUMBER}, "Return the negative of value.", "-value"),
    ("is_even", {"n": NUMBER}, "Return True if n is even.", "n % 2 == 0"),
    ("is_positive", {"n": NUMBER}, "Return True if n is greater than zero.", "n > 0"),
    ("is_above_K", {"n": POSITIVE}, "Return True if n is greater than K.", "n > K"),
    ("is_equal", {"a": FLAG, "b": FLAG}, "Return True if a is equal to b.", "a == b"),
    ("is_none", {"value": MAYBE}, "Return True if value is None.", "value is None"),
    ("both", {"a": FLAG, "b": FLAG}, "Return a and b.", "a and b"),
    ("size", {"items": ANY_LIST}, "Return the number of items.", "len(items)"),
    ("total", {"items": ANY_LIST}, "Return the sum of all items.", "sum(items)"),
    ("first", {"items": LIST}, "Return the first item.", "items[0]"),
    ("last", {"items": LIST}, "Return the last item.", "items[-1]"),
    ("is_empty", {"items": ANY_LIST}, "Return True if there are no items.", "len(items) == 0"),
    ("in_order", {"items": LIST}, "Return a sorted list of the items.", "sorted(items)"),
    ("lower", {"text": WORD}, "Return the text in lower case.", "text.lower()"),
    ("upper", {"text": WORD}, "Return the text in upper case.", "text.upper()"),
    ("strip", {"text": PADDED}, "Return the text without spaces at its ends.", "text.strip()"),
    ("join", {"left": WORD, "right": WORD}, "Return left followed by right.", "left + right"),
    (
        "starts_with",
        {"text": WORD, "prefix": KEY},
        "Return True if the text starts with the prefix.",
        "text.startswith(prefix)",
    ),
    ("get", {"table": DICT, "key": KEY}, "Return the value of key in the table, or None.", "table.get(key)"),
    ("has", {"table": DICT, "key": KEY}, "Return True if the table has the key.", "key in table"),
)


def tasks(seed: int = 0, variants: int = 1) -> list[Task]:
    """Each template so many times: with other constants if it has one, and with another name for the function if not."""
    rng, out = np.random.default_rng(seed), []
    for variant in range(variants):
        for name, arguments, about, expression in TEMPLATES:
            constant = str(int(rng.integers(2, 10)) + 10 * variant)
            called = name.replace("K", constant) if "K" in name else f"{'_' * variant}{name}"
            about, expression = (text.replace("K", constant) for text in (about, expression))
            inputs, wanted = _inputs(arguments, expression, rng)
            calls = (", ".join(map(repr, values.values())) for values in inputs)
            tests = "".join(f"assert {called}({call}) == {value!r}\n" for call, value in zip(calls, wanted, strict=True))
            prompt = f'def {called}({", ".join(arguments)}):\n    """{about}"""\n'
            out.append(Task(called, prompt, tests, f"    return {expression}\n"))
    return out


def _inputs(
    arguments: dict[str, Draw], expression: str, rng: np.random.Generator
) -> tuple[list[dict[str, object]], list[object]]:
    """Values of the arguments for each assertion, and what is expected: neither a constant nor, unless that is the task, one of
    the arguments."""
    while True:
        inputs = [{name: draw(rng) for name, draw in arguments.items()} for _ in range(INPUTS)]
        wanted = [eval(expression, {}, values) for values in inputs]  # an expression of the table above
        alone = any([values[name] for values in inputs] == wanted for name in arguments if name != expression)
        if not alone and any(value != wanted[0] for value in wanted):
            return inputs, wanted
