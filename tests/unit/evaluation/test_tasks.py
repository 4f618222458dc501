"""The questions of the task files: what is asked, what is right, and which are examples alone."""

import hashlib
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")
yaml = pytest.importorskip("yaml")

from lm.errors import UserError  # noqa: E402
from lm.evaluation import tasks  # noqa: E402
from lm.evaluation.tasks import code, data  # noqa: E402

SPEECH = (
    "We heard of the treaty in May, and much was said of it in both houses of this Congress before the end of that long year. "
    "Nobody at home or abroad has since then asked for what was in the treaty. Short. "
) * 3


def test_the_last_word_occurs_before_and_passages_do_not_overlap():
    found = list(data._without_last_words(SPEECH.strip()))
    assert len(found) == 3 and all(word == "treaty" and context.endswith(" in the") for context, word in found)
    assert sum(len(context.split()) + 1 for context, _ in found) <= len(SPEECH.split())
    assert all(data.SHORTEST <= len(context.split()) + 1 <= data.LONGEST for context, _ in found)
    assert list(data._without_last_words(SPEECH.replace("the treaty in May", "it in May"))) != found
    assert list(data._without_last_words("Too short, too short.")) == []


def test_speeches_are_those_of_the_smallest_hashes():
    """As in `lm.data.corpus.build`, which holds out a twentieth of the documents by the hash of their names."""
    files = [Path(f"{i}.txt") for i in range(230)]
    found = data.held_out(files)
    order = sorted(files, key=lambda f: hashlib.sha256(f.stem.encode()).digest())
    assert found == order[: len(found)] and len(found) <= round(0.05 * len(files))


def test_questions_with_letters_become_choices():
    asked = {"input": [{"role": "user", "content": "Sam ran. Why? A: to rest; B: to win; C: no reason."}], "ideal": "B"}
    two = {
        "input": [{"role": "system", "content": "x"}, {"role": "user", "content": "It\n\n A: rises\n B: falls"}],
        "ideal": "A",
    }
    assert list(data._choices([asked], data.SOCIAL)) == [
        {"question": "Sam ran. Why?", "choices": ["to rest", "to win", "no reason"], "label": 1}
    ]
    assert list(data._choices([two], data.QUARTZ)) == [{"question": "It", "choices": ["rises", "falls"], "label": 0}]


def test_examples_are_never_asked():
    splits = data._splits({"question": str(i)} for i in range(100))
    train, test = splits["train"]["question"], splits["test"]["question"]
    assert len(train) == 5 and len(test) == 95 and not set(train) & set(test)


def test_files_name_functions_that_exist():
    """And none has the name of a task of the harness, which would be hidden."""
    import lm_eval.tasks

    theirs = set((Path(lm_eval.tasks.__file__).parent).rglob("*.yaml"))
    names = []
    for path in sorted(Path(tasks.__file__).parent.glob("*.yaml")):
        text = path.read_text()
        for line in text.splitlines():
            if "!function " in line:
                module, name = line.split("!function ")[1].split(".")
                assert callable(getattr({"data": data, "code": code}[module], name)), line
        names += [line.removeprefix("task: ") for line in text.splitlines() if line.startswith("task: ")]
    assert names == [
        "local_human_eval",
        "local_human_eval_20",
        "local_mmlu",
        "local_quartz",
        "local_social_iqa",
        "sotu_cloze",
        "sotu_text",
    ]
    assert not {path.stem for path in theirs} & set(names)


HUMAN = {
    "prompt": "def twice(x):\n",
    "test": "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(-1) == -2\n",
    "entry_point": "twice",
}


@pytest.mark.parametrize(
    ("written", "passes"),
    [
        ("    return 2 * x", 1.0),
        ("    return x * x", 0.0),
        ("    return 4", 0.0),
        ("    import sys; sys.exit(0)", 0.0),  # a process that ends well has not passed
        ("    import os; os._exit(0)", 0.0),
        ("    return", 0.0),
        ("  return (", 0.0),
        ("", 0.0),
    ],
)
def test_a_function_passes_if_its_tests_do(written, passes):
    assert code.passed(HUMAN, [written]) == code.passed(HUMAN, [[written]]) == {"pass_at_1": passes}


def test_the_share_of_several_samples_that_pass():
    right, wrong = "    return 2 * x", "    return 4"
    found = code.passed_of_several(HUMAN, [[right, *[wrong] * 9, right, wrong]])
    assert found == {f"pass_at_{k}": pytest.approx(value) for k, value in ((1, 2 / 12), (5, 1 - 21 / 66), (10, 1 - 1 / 66))}


def test_a_missing_corpus_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs the package"):
        data.cloze()
