"""The languages whose items are questions: the same texts each time, and every item answered from the text alone."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from experiments import languages, units
from experiments.languages import Language, copying, lengths, reversal, villages
from experiments.run import load_study

MAKERS: dict[str, Callable[[], Language]] = {
    "reversal": lambda: reversal.language(count=20),
    "copying": lambda: copying.language(count=100, asked=20),
    "lengths": lambda: lengths.language(count=100, asked=18),
}
MADE_HERE = (reversal, copying, lengths, villages)  # each keeps its language, and with it the folder


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(languages, "FOLDER", str(tmp_path))
    monkeypatch.setattr(units, "_MADE", {})  # studies whose languages lie in this folder are not for other tests
    for module in MADE_HERE:
        module.language.cache_clear()
    yield
    for module in MADE_HERE:
        module.language.cache_clear()


def read(path: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in Path(path).expanduser().read_text().splitlines()]


def train(language: Language) -> list[str]:
    return [record["text"] for record in read(f"{language.folder}/train.jsonl")]


@pytest.mark.parametrize("name", MAKERS)
def test_texts_are_the_same_each_time(name):
    first = MAKERS[name]()
    for module in MADE_HERE:
        module.language.cache_clear()
    assert MAKERS[name]() == first  # the folder's name is a digest of its contents


def test_reversal_is_told_forwards_and_asked_backwards():
    language = reversal.language(count=20)
    told = train(language)
    files = {name: read(path) for name, path in language.items.items()}
    assert len(told) == 30
    assert {name: len(items) for name, items in files.items()} == {"forwards": 20, "backwards": 10, "gap": 10, "known": 10}
    whole = {name: [" ".join(filter(None, item.values())) for item in items] for name, items in files.items()}
    assert set(whole["gap"]) < set(whole["forwards"]) < set(told)
    assert set(whole["known"]) <= set(told) and not set(whole["backwards"]) & set(told)
    # The same people in the same order, so that values are compared item by item.
    assert [item["target"] for item in files["gap"]] == [item["target"] for item in files["backwards"]]
    names = [item["target"] for item in files["gap"] + files["known"]]
    assert len(set(names)) == 20
    # Every person's name is told of, first or last.
    assert all(any(name in text for text in told) for name in names)


def copies(words: list[str]) -> str:
    """What followed the earlier occurrence of the last word."""
    return words[words.index(words[-1]) + 1]


def test_copying_has_one_answer_in_the_context():
    for item in read(copying.language(count=100, asked=20).items["copy"]):
        words = item["left"].split()
        assert words.count(words[-1]) == 2 and copies(words) == item["target"]  # the second occurrence


def test_copying_repeats_one_pattern_at_distances_that_vary():
    distances = []
    for words, begins, size in copying.documents(200, 7):
        pattern = words[begins[0] : begins[0] + size]
        assert len(words) == copying.LENGTH and len(begins) > 2 and len(set(pattern)) == size
        assert all(words[begin : begin + size] == pattern for begin in begins)
        assert all(words.count(word) == len(begins) for word in pattern)  # and they stand nowhere else
        distances += np.diff(begins).tolist()
    assert len(set(distances)) > 6


def test_lengths_are_longer_in_the_items_than_in_training():
    language = lengths.language(count=100, asked=18)
    sizes = {name: [len(item["left"].split()) - 1 for item in read(path)] for name, path in language.items.items()}
    assert {name: (min(of), max(of)) for name, of in sizes.items()} == lengths.RANGES
    assert max(text.split().index("=") for text in train(language)) == lengths.LONGEST
    for item in read(language.items["far"]):
        words = item["left"].removesuffix(" =")
        assert item["target"] == f"{words} ." and len(set(words.split())) == len(words.split())


@pytest.mark.parametrize("name", ["reversal", "copying", "length", "prefix"])
def test_the_studies_ask_what_their_languages_have(name):
    study = load_study(name, {})
    measured = {f"{what}/{of}" for cell in study.cells.values() for what in cell.items for of in ("exact", "accuracy", "nats")}
    for relation in study.relations:
        assert {relation.better, relation.than} <= set(study.cells)
        assert relation.metric in measured or relation.metric.startswith("heldout/")
    for cell in study.cells.values():
        assert all(Path(path).expanduser().exists() for path in cell.items.values())
