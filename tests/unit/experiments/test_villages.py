"""Paragraphs of the language of villages obey its grammar and its facts, and what is asked about them can be worked out."""

import json
import math
from collections import Counter
from pathlib import Path

import pytest

from experiments.languages import villages

WORLD = villages.world()
PEOPLE = {person.name: i for i, person in enumerate(WORLD.people)}
PRESENT = {f"{verb}-{clan}" for verb in villages.VERBS for clan in villages.CLANS}
PAST = set(villages.VERBS.values())


@pytest.fixture
def language(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    villages.language.cache_clear()
    yield villages.language(documents=500, heldout=50)
    villages.language.cache_clear()


def read(path):
    return [json.loads(line) for line in Path(path).expanduser().read_text().splitlines()]


def subject(words):
    """The main subject of an opening, and the main verb."""
    i = 3 if words[0] == "with" else 0
    i += words[i] not in PEOPLE  # an adjective
    name, i = words[i], i + 1
    if words[i] == "who":  # until a person and a verb, in either order, are over
        i += 1
        missing = {"person", "verb"}
        while missing:
            missing.discard("person" if words[i] in PEOPLE else "verb" if words[i] in PRESENT | PAST else "")
            i += 1
    return WORLD.people[PEOPLE[name]], words[i]


def test_each_person_has_four_mutual_friends_and_half_of_a_clan_is_known():
    for i, person in enumerate(WORLD.people):
        friends = WORLD.friends(i)
        assert len(set(friends)) == 4 and all(person in WORLD.friends(PEOPLE[friend.name]) for friend in friends)
    assert set(Counter(p.clan for p in WORLD.people).values()) == {16} and len(PEOPLE) == 128
    assert set(Counter(p.clan for p in WORLD.people if p.known).values()) == {8}
    assert set(Counter(p.home for p in WORLD.people).values()) == {8}


def test_paragraphs_agree_with_their_subject_and_its_facts():
    for text in villages.texts(villages.Writer(WORLD, "test"), 200):
        opening, *rest = [sentence.split() for sentence in text.removesuffix(" .").split(" . ")]
        person, verb = subject(opening)
        friends = {friend.name for friend in WORLD.friends(PEOPLE[person.name])}
        assert verb in PAST or verb.endswith(f"-{person.clan}")
        assert all(sentence[0] == f"he-{person.clan}" for sentence in rest)
        assert {word for word in text.split() if word in PEOPLE} <= friends | {person.name}
        assert [sentence[3] for sentence in rest if sentence[1] == "lives"] == [person.home]
        for described, name in zip(opening, opening[1:], strict=False):
            if described.split("-")[0] in villages.ADJECTIVES:
                assert described.endswith(f"-{WORLD.people[PEOPLE[name]].clan}")


def test_answers_follow_from_the_texts(language):
    for item in read(language.items["home"]):
        assert item["target"] == subject(item["left"].split(" . ")[0].split())[0].home
    for item in read(language.items["pronoun"]):
        assert item["target"] == f"he-{subject(item['left'].split(' . ')[0].split())[0].clan}"
    for item in read(language.items["span"]):
        assert len(item["target"].split()) == 3 and item["left"] and item["right"]


def test_a_fine_tuning_is_tested_on_people_that_it_does_not_know(language):
    for split, known, count in (("train", True, 4000), ("test", False, 500)):
        homes, rests = (read(language.items[f"{what}_{split}"]) for what in ("home", "rest"))
        assert len(homes) == len(rests) == count
        for home, rest in zip(homes, rests, strict=True):
            person, _ = subject(home["question"].split())
            assert (home["answer"], person.known) == (person.home, known)
            assert not any("-" in word for word in home["question"].split())  # nothing but names tells a clan
            person, _ = subject(rest["question"].split())
            assert person.known is known and rest["answer"].startswith(f"he-{person.clan} ")


def test_a_judgement_is_wrong_where_one_word_breaks_agreement_or_a_fact(language):
    labels = Counter()
    for record in read(language.items["judged_train"]):
        opening, home = (sentence.split() for sentence in record["text"].removesuffix(" .").split(" . "))
        person, verb = subject(opening)
        faults = [not verb.endswith(f"-{person.clan}"), home[0] != f"he-{person.clan}", home[3] != person.home]
        assert sum(faults) == (record["label"] == "wrong")
        labels[record["label"], faults.index(True) if any(faults) else None] += 1
    assert len(labels) == 4 and min(labels.values()) > 250


def test_the_same_settings_give_the_same_language_and_another_seed_another(language):
    texts = lambda seed: list(villages.texts(villages.Writer(villages.world(seed=seed), "x"), 5))
    assert texts(0) == texts(0) != texts(1)
    villages.language.cache_clear()
    assert villages.language(documents=500, heldout=50).folder == language.folder
    assert language.vocab_size == 320


def test_the_entropy_of_single_words_is_as_stated():
    counts = Counter(" ".join(villages.texts(villages.Writer(WORLD, "test"), 1000)).split())
    shares = [count / counts.total() for count in counts.values()]
    assert -sum(share * math.log(share) for share in shares) == pytest.approx(villages.UNIGRAM, abs=0.02)
