"""The study of speech: its cells, what it derives of a result, and the sentences that it shows."""

import json

import numpy as np
import pytest

from experiments.speech import study
from lm import config
from lm.config import resolve
from lm.evaluation.text_scores import Hypothesis


def result(seed: int, shown: list[tuple[str, str, str]]) -> dict:
    metrics = {f"{name}/wer": 0.1 * i for i, name in enumerate(study.ORDERS)} | {"reranked/weight": 0.3 + seed}
    items = {f"{name}/wer": [0.0, 0.2 * i] for i, name in enumerate(study.ORDERS)}
    return {"metrics": metrics, "items": items, "flags": {study.MENDED: json.dumps(shown)}}


def test_each_order_is_a_cell_with_its_items():
    made = study.orders({"heard": {0: result(0, []), 1: {"metrics": {}, "flags": {"diverged": "nan"}}}})
    assert made.keys() == {"heard", *study.ORDERS} and all(set(made[name]) == {0} for name in study.ORDERS)
    for i, name in enumerate(study.ORDERS):
        assert made[name][0]["metrics"] == {"wer": pytest.approx(0.1 * i)}
        assert np.mean(made[name][0]["items"]["wer"]) == pytest.approx(made[name][0]["metrics"]["wer"])


def test_sentences_that_most_seeds_mend_come_first():
    often, once = ("we see the sea", "we see the see", "we see the sea"), ("a pear", "a pair", "a pear")
    results = study.orders({"heard": {0: result(0, [often, once, often]), 1: result(1, [often])}})
    assert results["heard"][0]["flags"] == {}
    text = study.mended(results, None)
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows == ["| we see the sea | we see the see | 2 of 2 |", "| a pear | a pair | 1 of 2 |"]
    assert "its weights: 0.3, 1.3" in text


def test_word_errors_of_a_hypothesis():
    assert study.wrong(Hypothesis("u", "we see the see", 0.0, "we see the sea")) == 1


def test_the_cells_are_whole_and_the_tested_sentences_are_in_no_training():
    made = study.study(seeds=1, utterances=40)
    assert made.cells["heard"].reads == {"recipe.language_model": "text"}
    sources = made.cells["heard"].run.data.sources
    assert {name: source.use for name, source in sources.items()} == {"train": "train", "valid": "holdout", "test": "holdout"}
    for cell in made.cells.values():
        assert resolve.build(config.Run, resolve.to_dict(cell.run)) == cell.run
