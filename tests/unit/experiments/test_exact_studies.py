"""The studies of languages with a known entropy: they resolve, and what they derive is right where the truth is known."""

import numpy as np
import pytest

from experiments.emergence import study as emergence
from experiments.grammar import study as grammar_study
from experiments.languages import cipher, grammar, mirror
from experiments.units import load_study, units


@pytest.fixture(autouse=True)
def small_languages(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(mirror, "messages", lambda: [["a", "b"]] * 24)
    monkeypatch.setattr(mirror, "DOCUMENTS", 60)
    monkeypatch.setattr(grammar, "TRAIN", 1500)
    monkeypatch.setattr(cipher, "TRAIN", 300)


@pytest.mark.parametrize("name", ["grammar", "mirror", "emergence", "static_masks"])
def test_it_resolves(name):
    study = load_study(name, {"seeds": 2})
    assert len(units(study)) == 2 * len(study.cells)
    metrics = {metric.name for metric in study.metrics}
    for relation in study.relations:
        assert relation.metric in metrics and {relation.better, relation.than} <= study.labels.keys()
    assert len({study.mark(name) for name in study.cells}) == len(study.cells)


def test_the_grammar_itself_is_at_its_entropy(tmp_path):
    truth, words = grammar.truth(), np.mean([len(sentence) for sentence in grammar.heldout()])
    cell = {"metrics": {}, "items": {"sentence/nats": list(truth + 0.1 * words)}}
    found = grammar_study.above_the_truth({"plain": {0: cell}, "renamed": {0: {"metrics": {}, "items": {}}}})
    assert found["plain"][0]["metrics"][grammar_study.EXCESS] == pytest.approx(0.1)
    itself = found[grammar_study.ENTROPY][0]
    assert itself["metrics"][grammar_study.NATS] == pytest.approx(found["plain"][0]["metrics"][grammar_study.NATS] - 0.1)
    assert itself["metrics"][grammar_study.NATS] == pytest.approx(np.mean(itself["items"][grammar_study.NATS]))
    assert itself["metrics"][grammar_study.NATS] == pytest.approx(grammar.made().entropy, abs=0.02)
    assert found["renamed"][0]["metrics"] == {}  # it diverged
    assert "steps.png" in grammar_study.plot({"quarter": 300, "plain": 1200}, found, tmp_path)
    assert (tmp_path / "steps.png").exists()


def test_sharpness_is_the_largest_share_of_the_rise(tmp_path):
    exact, nats = [0.0, 0.0, 0.0, 0.0, 0.9, 1.0, 1.0], [18.0, 18.0, 15.0, 10.0, 5.0, 3.0, 2.0]
    results = {
        f"steps_{steps}": {0: {"metrics": {"message/exact": e, "message/accuracy": e, "message/nats": n}}, 1: {"metrics": {}}}
        for steps, e, n in zip(emergence.STEPS, exact, nats, strict=True)
    }
    found = emergence.sharpness(results)
    assert found["exact"][0]["metrics"] == {"sharpness": pytest.approx(0.9)}
    assert found["nats"][0]["metrics"] == {"sharpness": pytest.approx(5 / 16)}
    assert 1 not in found["exact"]  # a seed that lacks a value
    assert "rise.png" in emergence.plot(found, tmp_path) and (tmp_path / "rise.png").exists()
