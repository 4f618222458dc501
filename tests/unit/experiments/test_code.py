"""The study of code: its estimator, its tasks, its grammar, and how a function is cut out of what a model writes."""

import ast
import itertools
import warnings

import numpy as np
import pytest

from experiments.code import grammar, run
from experiments.code.tasks import TEMPLATES, tasks
from lm import config
from lm.data import tokenizer as tokenizers
from lm.evaluation import sandbox


@pytest.mark.parametrize(("n", "passed"), [(5, 0), (5, 1), (5, 3), (5, 5), (3, 2)])
def test_pass_at_k_is_the_share_of_subsets_that_hold_one_that_passes(n, passed):
    samples = [True] * passed + [False] * (n - passed)
    for k in range(1, n + 1):
        wanted = np.mean([any(some) for some in itertools.combinations(samples, k)])
        assert run.pass_at(k, n, passed) == pytest.approx(wanted)


def test_every_solution_passes_and_no_constant_or_argument_does():
    for task in tasks(seed=3, variants=2):
        names: dict[str, object] = {}
        exec(task.program(task.solution), names)
        arguments = ast.parse(task.prompt + task.solution).body[0].args.args
        for answer in ("True", "False", "None", "0", *(a.arg for a in arguments)):
            if task.solution == f"    return {answer}\n":
                continue
            with pytest.raises(AssertionError):
                exec(task.program(f"    return {answer}\n"), {})
    assert len({task.name for task in tasks(seed=3, variants=2)}) == 2 * len(TEMPLATES)
    assert tasks(seed=3) == tasks(seed=3) != tasks(seed=4)


@pytest.mark.parametrize(
    ("written", "inside", "over"),
    [
        ("    return 1\n\n\ndef g():\n    pass\n", "    return 1\n\n\n", True),
        ("    return 1\n", "    return 1\n", False),
        ("    x = 1\n    return x +", "    x = 1\n", False),
        ("    return", "", False),
        ("return 1\n", "\n", True),
    ],
)
def test_a_function_ends_where_a_line_is_not_indented(written, inside, over):
    assert run.body(written) == (inside, over)


def test_samples_are_judged_by_parsing_and_running(monkeypatch):
    one, two = tasks()[:2]  # add, subtract
    asked = []
    real = sandbox.run
    monkeypatch.setattr(sandbox, "run", lambda program, **limits: asked.append(program) or real(program, **limits))
    written = [
        [
            ("    return a + b\n\n\ndef", False),
            ("    return a + b", True),
            ("    return a -\n", False),
            ("    return a", False),
        ],
        [("    return a - b\nclass A", False), ("", True), ("    while True: pass\n", False), ("    return b\n", False)],
    ]
    found = run.judged([one, two], written)
    assert found["samples"] == 8 and found["ended"] == 4 / 8 and found["parses"] == 5 / 8
    assert found["ended_and_parses"] == 3 / 8
    assert found["pass@1"] == pytest.approx((2 / 4 + 1 / 4) / 2) and found["tasks_solved"] == found["tasks"] == 2
    assert len(asked) == 5  # what does not parse does not run


def test_middles_are_in_their_texts():
    texts = ["import os  # " + "x" * 120 + "\n" + "def name(value):\n    return other.call(value)\n" * 20]
    for kind in ("word", "rest"):
        for before, middle, after in run.middles(texts, kind, 30, 0):
            assert before + middle + after in texts[0] and middle.strip() and "\n" not in middle
            assert kind == "rest" or middle.isidentifier()
            assert kind == "word" or after.startswith("\n")


# ---------------------------------------------------------------------------------------------------------------- grammar


@pytest.fixture(scope="module")
def constraint():
    pytest.importorskip("llguidance")
    from lm.generation.grammar import Grammars

    text = "def f(x):\n    if x in y:\n        return [i for i in x]\n    else:\n        pass\n" * 50
    tokenizer = tokenizers.train([text], config.Tokenizer(vocab_size=400))
    return tokenizer, Grammars(tokenizer, vocab_size=400, eos=[tokenizer.eos_id]).lark(grammar.of_bodies())


def test_whatever_is_derived_parses(constraint):
    """Random walks that favour ends of lines, keywords and brackets, so that many of them end and are deep."""
    tokenizer, walks = constraint
    rng, ended = np.random.default_rng(0), 0
    pieces = [tokenizer.piece_bytes[i] for i in range(400)]
    letters = np.array([piece.strip().isalpha() and len(piece) == 1 for piece in pieces])
    weights = np.where([b"\n" in piece for piece in pieces], 20.0, np.where(letters, 0.1, 3.0))
    for _ in range(150):
        walk, ids = walks.begin(), []
        for _ in range(150):
            allowed = np.flatnonzero(np.unpackbits(walk.allowed().view(np.uint8), bitorder="little")[:400])
            token = int(rng.choice(allowed, p=weights[allowed] / weights[allowed].sum()))
            if token == tokenizer.eos_id:
                break
            ids.append(token)
            walk.add(token)
        inside, over = run.body(tokenizer.decode(ids))
        if over or token == tokenizer.eos_id:
            ended += 1
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                ast.parse(f"def f():\n{inside if over else tokenizer.decode(ids)}\n")
    assert ended >= 30


def fits(constraint, inside):
    tokenizer, walks = constraint
    return run.covered(walks, tokenizer, [f"def f(x):\n{inside}"]) == {"bodies": 1, "in_grammar": 1}


@pytest.mark.parametrize(
    "inside",
    [
        "    return x",
        "    # why\n    a, b = b, a[1:]\n\n    return {k: v for k, v in x.items() if k is not None}",
        "    if x and not y:\n        for i in range(10):\n            x[i] += 1\n    elif z:\n        pass",
        "    while x.y[0] != -1:\n        x = x.y\n    else:\n        raise E('a')",
        "    try:\n        f(a, b=1)\n    except (A, B) as e:\n        return -1\n    finally:\n        del x.y",
        "    with open(path, 'w') as file:\n        file.write(x if y else lambda a, b: a ** b)",
    ],
)
def test_ordinary_functions_are_in_the_grammar(constraint, inside):
    assert fits(constraint, inside)


@pytest.mark.parametrize(
    "inside",
    ["    import os", "    x = if", "    return x y", "    f() = 1", "    return 007", "      return x", "    if x:\n    pass"],
)
def test_what_does_not_parse_or_is_left_out_is_not(constraint, inside):
    tokenizer, walks = constraint
    walk = walks.begin()
    for token in tokenizer.encode(f"{inside}\n"):
        bits = np.unpackbits(walk.allowed().view(np.uint8), bitorder="little")
        if not bits[token]:
            return
        walk.add(int(token))
    pytest.fail(f"{inside!r} is derived")
