"""The study of quality filters: its passages are spoiled as they say, are told by what is written, and its figures add up."""

import json
import random
from collections import Counter
from types import SimpleNamespace

import pytest

from experiments.quality import corpus, study
from experiments.units import load_study, units
from lm import config
from lm.paths import expanded

FRENCH = "Un avion est un appareil qui vole dans les airs et qui est plus lourd que les gaz de la haute atmosphère."
FOREIGN = [f"{i}. {FRENCH}\n" * 12 for i in range(1100)]


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A small corpus, whose foreign texts come from no package."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(corpus, "foreign", lambda: FOREIGN)
    monkeypatch.setattr(corpus, "VOCAB", 512)
    return corpus.corpus.__wrapped__(train=40, heldout=8, examples=16)


def read(made, name):
    return [json.loads(line) for line in expanded(f"{made.folder}/{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def test_three_in_ten_passages_are_spoiled_and_no_clean_one_is_in_two_files(made):
    train, clean, held, examples = (read(made, name) for name in ("train", "clean", "heldout", "examples"))
    kinds = Counter(one["kind"] for one in train)
    assert kinds == {"clean": 28} | dict.fromkeys(corpus.KINDS, 3)
    assert [one["text"] for one in clean] == [one["text"] for one in train if one["kind"] == "clean"]
    assert Counter(one["label"] for one in examples) == {"good": 8, "bad": 8} and len(held) == 8
    texts = [one["text"] for some in (clean, held, [e for e in examples if e["label"] == "good"]) for one in some]
    assert len(set(texts)) == len(texts) == 28 + 8 + 8
    assert not {one["text"] for one in train} & {one["text"] for one in examples}


def test_the_same_files_are_made_again(made):
    assert corpus.corpus.__wrapped__(train=40, heldout=8, examples=16) == made


def test_what_is_spoiled_is_told_from_its_first_words(made):
    rng = random.Random(0)
    ways = dict(misspelled=corpus.misspelled, repeated=corpus.repeated, markup=corpus.markup)
    texts = {kind: [way(text, rng) for text in corpus.passages()[:50]] for kind, way in ways.items()}
    texts |= {None: corpus.passages()[:50], "foreign": FOREIGN[:50]}
    for kind, every in texts.items():
        found = Counter(corpus.kind_of(text[:400]) for text in every)
        assert found[kind] >= (45 if kind == "misspelled" else 50) and set(found) <= {kind, None}, (kind, found)
    assert corpus.kind_of("The war of that year\nand the peace after it\nand all of the land") == "repeated"


def test_a_typo_changes_half_of_the_longer_words_by_a_letter():
    text, rng = " ".join(corpus.passages()[:20]), random.Random(0)
    before, after = text.split(), corpus.misspelled(text, rng).split()
    assert len(before) == len(after)
    changed = [(a, b) for a, b in zip(before, after, strict=True) if a != b]
    longer = [word for word in before if sum(c.isascii() and c.isalpha() for c in word) >= 4]
    assert 0.4 < len(changed) / len(longer) < 0.55
    assert all(len(a) - 1 <= len(b) <= len(a) for a, b in changed)


def test_the_study_resolves(made, monkeypatch):
    monkeypatch.setattr(corpus, "corpus", lambda: made)
    found = load_study("quality", {"seeds": 2, "steps": 10})
    assert len(units(found)) == 2 * len(found.cells) and len({found.mark(name) for name in found.cells}) == len(found.cells)
    metrics = {metric.name for metric in found.metrics}
    for relation in found.relations:
        assert relation.metric in metrics and {relation.better, relation.than} <= found.labels.keys()
    assert {gate.metric for gate in found.gates} <= metrics
    held = [cell.run.data.sources["heldout"] for cell in found.cells.values()]
    assert held == held[:1] * len(held)
    assert {cell.run.data.tokenizer for cell in found.cells.values()} == {found.cells["clean"].run.data.tokenizer}
    assert 0 < study.unigram(made) < 6.3  # nats; all tokens alike would be log 512


def test_shares_of_what_the_filters_dropped(made):
    rules = config.Quality(gopher=config.Gopher(), c4=config.C4(end_marks=False), fineweb=config.FineWeb())
    data = made.data(quality=rules)
    trained = SimpleNamespace(run=SimpleNamespace(data=data))
    assert study.dropped(SimpleNamespace(run=SimpleNamespace(data=made.data()))) == {}
    found, kinds = study.dropped(trained), [one["kind"] for one in read(made, "train")]
    # Repeated lines and markup, and what is foreign, whose lines are repeated here; not what is misspelled.
    assert found == {study.NOISE: pytest.approx(0.75), study.TEXT: 0.0} and kinds.count("clean") == 28
