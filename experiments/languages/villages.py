"""Paragraphs about people who have a clan, a home and four friends: agreement over relative clauses, and facts.

    with dako , old-b mire who fule saw calls-b tall-e suna . he-b lives in hill . he-b met fule . he-b helps-b dako .

Adjectives, verbs in the present tense and pronouns agree with a clan ("-b"), verbs in the past tense do not. The subject of a
paragraph is anybody; everybody else in it is a friend of the subject, and the home is the subject's. So a name is one of four
given the subject, a home is certain, and both are learned from other paragraphs alone.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from experiments import languages
from lm import config

CLANS = "abdegkmo"
PLACES = "hill lake wood moor ford mill dale cave bay marsh tower bridge field shore cliff well".split()
VERBS = {"sees": "saw", "helps": "helped", "calls": "called", "meets": "met"}
ADJECTIVES = ("tall", "old", "kind")
UNIGRAM = 4.31  # nats a word by the frequencies of single words
OFFSETS = (-7, -1, 1, 7)  # of friends, on a circle of all people: friendship is mutual


@dataclass(frozen=True)
class Person:
    name: str
    clan: str
    home: str
    known: bool  # to a fine-tuning; the others are asked for in its test


@dataclass(frozen=True)
class World:
    """People in the order of their circle."""

    people: tuple[Person, ...]

    def friends(self, i: int) -> list[Person]:
        return [self.people[(i + offset) % len(self.people)] for offset in OFFSETS]


def world(people: int = 128, seed: int = 0) -> World:
    """As many people of each clan, as many at each place, half of each clan known; all at random."""
    rng = random.Random(f"people {seed}")
    syllables = [c + v for c in "bdfgklmnprst" for v in "aeiou"]
    names = rng.sample([a + b for a in syllables for b in syllables if a != b], people)
    clans = [CLANS[i % len(CLANS)] for i in range(people)]
    homes = [PLACES[i % len(PLACES)] for i in range(people)]
    rng.shuffle(homes)
    known = [i // len(CLANS) % 2 == 0 for i in range(people)]
    found = [Person(*facts) for facts in zip(names, clans, homes, known, strict=True)]
    rng.shuffle(found)
    return World(tuple(found))


class Writer:
    """Writes paragraphs and sentences about a world, at random."""

    def __init__(self, world: World, seed: str) -> None:
        self.world, self.rng = world, random.Random(seed)

    def subject(self, known: bool | None = None) -> tuple[Person, list[Person]]:
        """A person, known or not, or either, with its friends."""
        while True:
            i = self.rng.randrange(len(self.world.people))
            if known is None or self.world.people[i].known is known:
                return self.world.people[i], self.world.friends(i)

    def chance(self, share: float) -> bool:
        return self.rng.random() < share

    def verb(self, clan: str, past: bool) -> str:
        present = self.rng.choice(tuple(VERBS))
        return VERBS[present] if past else f"{present}-{clan}"

    def noun(self, person: Person, plain: bool) -> list[str]:
        """The name, after an adjective in two cases of five unless it is to be plain."""
        described = not plain and self.chance(0.4)
        return [*([f"{self.rng.choice(ADJECTIVES)}-{person.clan}"] if described else []), person.name]

    def opening(self, person: Person, friends: list[Person], past: bool) -> list[str]:
        """`[with dako ,] mire [who fule saw | who saw fule] calls-b suna .`; if past, nothing in it tells a clan but names."""
        first, second, third = self.rng.sample(friends, 3)
        words = ["with", first.name, ","] if self.chance(0.4) else []
        words += self.noun(person, past)
        if self.chance(0.5):
            inner = self.noun(second, past)
            if self.chance(0.5):
                words += ["who", self.verb(person.clan, past), *inner]
            else:
                words += ["who", *inner, self.verb(second.clan, past)]
        return [*words, self.verb(person.clan, past), *self.noun(third, past), "."]

    def paragraph(self, known: bool | None = None) -> list[list[str]]:
        """Four sentences: an opening, and in any order where the subject, known or not, lives and two about friends."""
        person, friends = self.subject(known)
        he = f"he-{person.clan}"
        rest = [[he, "lives", "in", person.home, "."]]
        for _ in range(2):
            past = self.chance(0.5)
            rest.append([he, self.verb(person.clan, past), *self.noun(self.rng.choice(friends), past), "."])
        self.rng.shuffle(rest)
        return [self.opening(person, friends, self.chance(0.5)), *rest]


def texts(writer: Writer, count: int) -> Iterator[str]:
    for _ in range(count):
        yield " ".join(word for sentence in writer.paragraph() for word in sentence)


def gaps(writer: Writer, count: int, what: str) -> Iterator[dict[str, str]]:
    """Items of paragraphs: the "home", the "pronoun" of the last sentence, or a "span" of three words."""
    for _ in range(count):
        sentences = writer.paragraph()
        words = [word for sentence in sentences for word in sentence]
        if what == "home":
            first, size = words.index("in") + 1, 1
        elif what == "pronoun":
            first, size = len(words) - len(sentences[-1]), 1
        else:
            first, size = writer.rng.randrange(1, len(words) - 3), 3
        left, target, right = words[:first], words[first : first + size], words[first + size :]
        yield {"left": " ".join(left), "target": " ".join(target), "right": " ".join(right)}


def judged(writer: Writer, count: int) -> Iterator[dict[str, str]]:
    """An opening in the present tense and the sentence with the home, "right" or, with one word replaced, "wrong": the main
    verb or the pronoun agrees with another clan, or the home is another one."""
    for _ in range(count):
        person, friends = writer.subject()
        opening = writer.opening(person, friends, past=False)
        words = [*opening, f"he-{person.clan}", "lives", "in", person.home, "."]
        wrong = writer.chance(0.5)
        if wrong:
            clan = writer.rng.choice(CLANS.replace(person.clan, ""))
            kind = writer.rng.randrange(3)
            if kind == 0:
                verb = max(i for i, word in enumerate(opening) if word.split("-")[0] in VERBS)
                words[verb] = words[verb].replace(f"-{person.clan}", f"-{clan}")
            elif kind == 1:
                words[len(opening)] = f"he-{clan}"
            else:
                words[-2] = writer.rng.choice([place for place in PLACES if place != person.home])
        yield {"text": " ".join(words), "label": "wrong" if wrong else "right"}


def homes(writer: Writer, count: int, known: bool) -> Iterator[dict[str, str]]:
    """Openings in the past tense with the home of their subject, which is known or not."""
    for _ in range(count):
        person, friends = writer.subject(known)
        yield {"question": " ".join(writer.opening(person, friends, past=True)), "answer": person.home}


def continuations(writer: Writer, count: int, known: bool) -> Iterator[dict[str, str]]:
    """The first sentence of a paragraph and the other three, about a subject that is known or not."""
    for _ in range(count):
        first, *rest = (" ".join(sentence) for sentence in writer.paragraph(known))
        yield {"question": first, "answer": " ".join(rest)}


@lru_cache(maxsize=4)
def language(documents: int = 32_000, heldout: int = 1000, people: int = 128, seed: int = 0) -> languages.Language:
    """Beside the texts and the gaps, records to fine-tune on: 4,000 to learn from and 500 to be tested by for each of "judged"
    (labelled), "home" and "rest" (questions with answers), the latter two about known people and then about the others."""
    of = world(people, seed)
    write = lambda name: Writer(of, f"{name} {seed}")
    files = {what: list(gaps(write(what), 300, what)) for what in ("home", "pronoun", "span")}
    for split, count in (("train", 4000), ("test", 500)):
        known = split == "train"
        files[f"judged_{split}"] = list(judged(write(f"judged {split}"), count))
        files[f"home_{split}"] = list(homes(write(f"home {split}"), count, known))
        files[f"rest_{split}"] = list(continuations(write(f"rest {split}"), count, known))
    return languages.write("villages", texts(write("texts"), documents), texts(write("heldout"), heldout), items=files)


def records(language: languages.Language, what: str) -> config.Data:
    """The records to fine-tune on of this name, those of "..._test" held out."""
    format = "labelled" if what == "judged" else "pair"
    source = lambda split, use: config.Source("jsonl", language.items[f"{what}_{split}"], format=format, use=use)
    sources = {"train": source("train", "train"), "test": source("test", "holdout")}
    return config.Data(sources=sources, clean=config.Clean(unicode=False), dedup=config.Dedup(exact=False, near=None))
