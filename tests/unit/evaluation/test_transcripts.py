"""Word errors against jiwer's, and texts that a language model puts in order."""

from types import SimpleNamespace

import numpy as np
import pytest

from lm.evaluation.reranking import NEVER, LanguageModel
from lm.evaluation.text_scores import distance
from lm.evaluation.transcripts import Transcripts
from lm.generation.transcriber import Heard
from lm.types import WeightedMean


def sentences(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(list("abcde"), rng.integers(1, 9))) for _ in range(count)]


def test_word_errors_equal_jiwers():
    jiwer = pytest.importorskip("jiwer")
    said, heard = sentences(60)[:30], sentences(60)[30:]
    wrong = sum(distance(b.split(), a.split()) for a, b in zip(said, heard, strict=True))
    words = sum(len(a.split()) for a in said)
    assert wrong / words == pytest.approx(jiwer.wer(said, heard))


@pytest.mark.parametrize(
    "said, heard, wrong", [("a b c", "a b c", 0), ("a b c", "a c", 1), ("a b", "a x b y", 2), ("a b", "", 2), ("a b", "b a", 2)]
)
def test_word_errors_by_hand(said, heard, wrong):
    assert distance(heard.split(), said.split()) == wrong


SAID = ["a b c", "d e", "f g h i", "a b"]


class Rows:
    """Four utterances, of two sources."""

    count, sizes = 4, {"one": 3, "two": 1}

    def rows(self, index):
        return SimpleNamespace(encoder=np.asarray(index))

    def utterances(self, index):
        return [("one", int(i)) if i < 3 else ("two", 0) if i == 3 else None for i in index]


@pytest.fixture
def figures(monkeypatch):
    """The figures of a model that hears these texts, and their intervals."""
    from lm import sharding

    monkeypatch.setattr(sharding, "global_batch", lambda make, index, mesh: make(index))

    def found(heard, **changes):
        hear = lambda params, index: [[Heard(text, -1.0) for text in heard[i]] if i < 4 else [] for i in index]
        records = {"one": [SimpleNamespace(text=text) for text in SAID[:3]], "two": [SimpleNamespace(text=SAID[3])]}
        score = lambda params, batch: {"loss": WeightedMean(np.float32(6.0), np.float32(4.0))}
        test = Transcripts(Rows(), records, score, hear, 3, None, **changes)
        return test(None), test.intervals()

    return found


def test_figures_of_what_is_heard(figures):
    found, ends = figures([["a b c"], ["d"], ["f x h i y"], []])
    assert found["loss"] == pytest.approx(1.5) and found["wer"] == pytest.approx(5 / 11) and found["sentences"] == 0.25
    assert found["one/wer"] == pytest.approx(3 / 9) and found["two/wer"] == 1.0
    assert ends == {}, "four utterances are too few"


def test_a_language_model_chooses(figures):
    class Prior:
        def ordered(self, heard, weight):
            assert weight == 0.5
            return [some[::-1] for some in heard]

    found, _ = figures([["x", "a b c"], ["x", "d e"], ["x", "f g h i"], ["x", "a b"]], prior=Prior(), weight=0.5)
    assert found["wer"] == 0.0


def test_texts_are_ordered_by_both_scores(monkeypatch):
    """Equal texts are read once; a text of less than two tokens is never chosen."""
    tokenizer = SimpleNamespace(encode_batch=lambda texts: [text.split() for text in texts])
    network = SimpleNamespace(config=SimpleNamespace(architecture="decoder", decoder=None))
    prior, asked = LanguageModel(network, None, None, tokenizer), []

    def score(model, params, objective, tokenizer, texts, **how):
        asked.extend(texts)
        return [SimpleNamespace(nats={"a bear": 1.0, "a beer": 3.0, "a bare": 9.0}[text]) for text in texts]

    monkeypatch.setattr("lm.evaluation.text_scores.score", score)
    heard = [[Heard("a beer", -1.0), Heard("a bear", -1.5), Heard("a bare", -0.5)], [Heard("", -0.1), Heard("a beer", -5.0)]]
    texts = [[one.text for one in some] for some in prior.ordered(heard, 1.0)]
    assert texts == [["a bear", "a beer", "a bare"], ["a beer", ""]]
    assert sorted(asked) == ["a bare", "a bear", "a beer"]
    assert [one.text for one in prior.ordered(heard, 0.0)[0]] == ["a bare", "a beer", "a bear"]
    assert prior.log_probs(["", "a bear"]).tolist() == [NEVER, -1.0]
