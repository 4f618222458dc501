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

    def paragraph(self) -> list[list[str]]:
        """Four sentences: an opening, and in any order where the subject lives and two about friends."""
        person, friends = self.subject()
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
    """Items of paragraphs: the home ("home"), the pronoun of the last sentence ("pronoun"), three words anywhere ("span"),
    or the three last sentences, with nothing to the right ("rest")."""
    for _ in range(count):
        sentences = writer.paragraph()
        words = [word for sentence in sentences for word in sentence]
        if what == "home":
            first, size = words.index("in") + 1, 1
        elif what == "pronoun":
            first, size = len(words) - len(sentences[-1]), 1
        elif what == "span":
            first, size = writer.rng.randrange(1, len(words) - 3), 3
        else:
            first = len(sentences[0])
            size = len(words) - first
        left, target, right = words[:first], words[first : first + size], words[first + size :]
        yield {"left": " ".join(left), "target": " ".join(target), "right": " ".join(right)}


def records(writer: Writer, count: int, known: bool) -> Iterator[dict[str, str]]:
    """Openings in the past tense with the clan and the home of their subject, which is known or not."""
    for _ in range(count):
        person, friends = writer.subject(known)
        yield {"text": " ".join(writer.opening(person, friends, past=True)), "clan": person.clan, "home": person.home}


@lru_cache(maxsize=4)
def language(documents: int = 32_000, heldout: int = 1000, people: int = 128, seed: int = 0) -> languages.Language:
    """Beside the texts and the gaps, records of 400 openings about known people to learn from, and 500 about the others:
    "clan_train" and "clan_test" are labelled, "home_train" and "home_test" are questions with answers."""
    of = world(people, seed)
    write = lambda name: Writer(of, f"{name} {seed}")
    files = {what: list(gaps(write(what), 300, what)) for what in ("home", "pronoun", "span", "rest")}
    for split, count in (("train", 400), ("test", 500)):
        asked = list(records(write(split), count, split == "train"))
        files[f"clan_{split}"] = [{"text": r["text"], "label": r["clan"]} for r in asked]
        files[f"home_{split}"] = [{"question": r["text"], "answer": r["home"]} for r in asked]
    return languages.write("villages", texts(write("texts"), documents), texts(write("heldout"), heldout), items=files)
