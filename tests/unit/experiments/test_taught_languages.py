"""Languages whose records are taught: sums are right by plain arithmetic, and verses are cut and paired as they say."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import linen as nn

from experiments import answers, small
from experiments.grokking import study as grokking
from experiments.languages import modular, verses
from lm import recipes
from lm.data.corpus import packages
from lm.models.transformer import Transformer


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for module in (modular, verses):
        module.language.cache_clear()
    yield tmp_path
    for module in (modular, verses):
        module.language.cache_clear()


def records(path):
    return [json.loads(line) for line in Path(path).expanduser().read_text().splitlines()]


def test_sums_are_right_and_a_pair_is_on_the_same_side_as_its_mirror():
    language = modular.language(7, taught=0.6)
    sides = {}
    for name in ("taught", "asked"):
        sides[name] = set()
        for record in records(language.items[name]):
            a, plus, b = record["question"].split()
            assert plus == "+" and int(record["answer"]) == (int(a) + int(b)) % 7
            sides[name].add((int(a), int(b)))
    assert sides["taught"] | sides["asked"] == {(a, b) for a in range(7) for b in range(7)}
    assert not sides["taught"] & sides["asked"] and len(records(language.items["taught"])) == len(sides["taught"])
    assert all((b, a) in side for side in sides.values() for a, b in side)
    assert len({tuple(sorted(pair)) for pair in sides["taught"]}) == round(0.6 * 28)


def test_the_split_of_sums_depends_on_the_seed_alone():
    one = modular.language(7)
    modular.language.cache_clear()
    assert modular.language(7) == one and modular.language(7, seed=1).folder != one.folder


VERSION = '''bible = Bible(
    Version.X,
    """
In the beginning [was] God. He saw.""",
    {
        1001001: 1,
        7001002: 29,
    },
    {
        1001001: 28,
        7001002: 36,
    },
    {
        1001001: 5,
    },
)
'''


def test_verses_are_read_by_their_offsets():
    assert verses.parse(VERSION) == {1001001: "In the beginning was God.", 7001002: "He saw."}


def test_clauses_are_paired_in_order_if_both_versions_have_as_many():
    old, new = "And he said, Lo: I am here.", "He said, `Behold; I'm here.`"
    assert verses.paired(old, new) == [("and he said", "he said"), ("lo", "behold"), ("i am here", "i'm here")]
    assert verses.paired(old, "He said, I'm here.") == []


@pytest.mark.parametrize(
    ("pair", "kept"),
    [
        (("unto me he said", "he said to me"), True),
        (("unto me he said", "he said to noah"), False),  # a rare word
        (("he said", "he said to me"), False),  # too short
        (("unto me he said", "to be or not"), False),  # another clause
    ],
)
def test_only_like_clauses_of_frequent_words_are_kept(pair, kept):
    assert verses.suited(pair, set("unto me he said to be or not".split())) is kept


def test_no_asked_clause_was_taught(monkeypatch):
    taught = {1001000 + i: f"he said to me {word}" for i, word in enumerate(("now", "then", "so", "thus"))}
    asked = {7001001: "he said to me now", 7001002: "now he said to me", 7001003: "he said to me never"}
    old = taught | asked
    new = {verse: text.replace("to me", "unto me") for verse, text in old.items()}
    learned, held_out = verses.split(old, new)
    assert len(learned) == 4 and held_out == [
        ("now he said to me", "now he said unto me")
    ]  # the first was taught, "never" is new
    raw = {"kjv": old, "web": new}
    monkeypatch.setattr(packages, "member", lambda requirement, name, sha256: requirement.split("-")[1][:3].encode())
    monkeypatch.setattr(verses, "parse", raw.get)
    language = verses.language()
    assert records(language.items["asked"]) == [{"question": "now he said to me", "answer": "now he said unto me"}]
    assert records(language.items["mismatched"]) == records(language.items["asked"])  # there is no other


def test_answers_are_scored_one_by_one_and_by_source(home, monkeypatch):
    monkeypatch.setattr(grokking, "MODULUS", 7)
    run = grokking.run(1.0, steps=1)
    tiny = small.model("decoder", width=32, layers=1, vocab_size=run.model.vocab_size)
    run = replace(run, model=tiny, data=replace(run.data, cache=str(home / "cache")))
    recipe = recipes.recipe(run)
    rows = recipe.rows(run, recipe.data(recipe.complete(run, None), progress=False))["holdout"]
    example = rows.rows(np.arange(rows.count))
    network = Transformer(tiny)
    params = nn.unbox(network.init(jax.random.key(0), example)["params"])
    found = answers.measured(SimpleNamespace(run=run, folder=None, params=lambda: params))  # ty: ignore[invalid-argument-type]
    logits = np.asarray(network.apply({"params": params}, example))
    nats = [
        sum(np.log(np.exp(row).sum()) - row[target] for row, target in zip(*both, strict=True))
        for both in zip(logits, example.targets, strict=True)
    ]
    taught = 2 * round(0.7 * 28) - len(doubles(modular.language(7)))
    assert [len(found.items[f"{name}/nats"]) for name in ("taught", "asked")] == [taught, 49 - taught]
    values = np.concatenate([found.items["taught/nats"], found.items["asked/nats"]])
    np.testing.assert_allclose(values, np.array(nats) / 2, rtol=1e-4)  # an answer is a word and its end
    right = (logits.argmax(-1) == example.targets).all(1)
    assert np.concatenate([found.items["taught/exact"], found.items["asked/exact"]]).tolist() == right.tolist()
    assert found.metrics["asked/nats"] == pytest.approx(np.mean(values[taught:]))


def doubles(language):
    """The numbers a of which a + a is taught."""
    both = (record["question"].split(" + ") for record in records(language.items["taught"]))
    return {int(a) for a, b in both if a == b}
