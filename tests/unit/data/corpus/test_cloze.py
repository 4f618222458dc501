"""Questions about documents: what is asked, where the answers are, and texts that have nothing to ask."""

from types import SimpleNamespace

import numpy as np
import pytest

from lm.data.corpus import cloze
from lm.errors import UserError


class Words:
    """A token a word."""

    def encode(self, text):
        return np.zeros(len(text.split()), np.int32)

    def encode_batch(self, texts, *, threads=None):
        return [self.encode(t) for t in texts]


def corpus(**texts):
    """What the questions ask of a Prepared: train="...", holdout="..." are one document each."""
    documents = lambda source, split: [SimpleNamespace(text=texts[split])]
    stores = {s: {"a": None} if s in texts else {} for s in ("train", "holdout")}
    return SimpleNamespace(documents=documents, tokenizer=Words(), **stores)


def text(place):
    return "\n".join(
        f"On day {i} the {place}{'abc'[i % 3]} met early, and then the {place}{'abc'[i % 3]} voted." for i in range(30)
    )


TWO = dict(train=text("Senate"), holdout=text("House"))


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(cloze, "COUNTS", {"train": 20, "holdout": 9})


def test_spans_ask_for_what_occurs_before():
    made = cloze.load("spans", corpus(**TWO), length=120)
    assert len(made["train"]) == 20 and len(made["holdout"]) == 9
    for split, place in (("train", "Senate"), ("holdout", "House")):
        for pair in made[split]:
            assert place in pair.answer and pair.answer in pair.context and pair.answer not in pair.question
            assert pair.question == "and then the ___ voted."
            assert len(pair.context.split()) + len(pair.question.split()) <= 120
    assert made == cloze.load("spans", corpus(**TWO), length=120)
    assert cloze.load("spans", corpus(**TWO), length=120, seed=1)["train"] != made["train"]


def test_a_name_that_begins_a_clause_is_no_name():
    with pytest.raises(UserError, match="nothing to ask in the train documents"):
        cloze.load("spans", corpus(train="The law is old, The law is good.", holdout="x"), length=120)


def test_infill_asks_for_the_words_in_the_blank():
    made = cloze.load("infill", corpus(**TWO), length=20)
    lengths = set()
    for split, pairs in made.items():
        for pair in pairs:
            assert pair.question == "" and pair.context.count("___") == 1
            assert pair.context.replace("___", pair.answer) in TWO[split] and len(pair.context.split()) <= 20
            lengths.add(len(pair.answer.split()))
    assert lengths == {1, 2, 3}


def test_held_out_documents_are_needed():
    with pytest.raises(UserError, match="set data.holdout=0.05, or give a source with use=holdout"):
        cloze.load("infill", corpus(train=TWO["train"]), length=60)


def test_an_unknown_name():
    with pytest.raises(UserError, match="no cloze questions 'span'; did you mean 'spans'"):
        cloze.load("span", corpus(**TWO), length=60)
