"""Facts about people, each told in one direction: `note deko rami is bula tore`

A person has a given name and a family name; a description is two words. Half of the people are told of in both directions
("note bula tore is deko rami" too), so that the reversed form is known; the others forwards alone, and are asked for.
"""

from functools import cache

import numpy as np

from experiments.languages import Language, write

NAME, DESCRIPTION = 2, 2  # words of each
WORDS = 24  # for each of their places
Person = tuple[str, str]  # name, description


def people(count: int, seed: int, *, joined: bool = False) -> list[Person]:
    """`count` people; no two have the same name or the same description, whose words are drawn uniformly, and written as one
    if `joined`."""
    rng = np.random.default_rng(seed)
    syllables = [consonant + vowel for consonant in "bdfgklmnprst" for vowel in "aeiou"]
    words = rng.permutation([a + b for a in syllables for b in syllables if a != b])[: WORDS * (NAME + DESCRIPTION)]
    places = words.reshape(NAME + DESCRIPTION, WORDS)

    def phrases(places: np.ndarray) -> list[str]:
        numbers = rng.choice(WORDS ** len(places), count, replace=False)
        digits = numbers[:, None] // WORDS ** np.arange(len(places)) % WORDS
        return [("" if joined else " ").join(place[d] for place, d in zip(places, row, strict=True)) for row in digits]

    return list(zip(phrases(places[:NAME]), phrases(places[NAME:]), strict=True))


def forwards(person: Person) -> str:
    return f"note {person[0]} is {person[1]}"


def backwards(person: Person) -> str:
    return f"note {person[1]} is {person[0]}"


@cache
def language(*, count: int = 400, seed: int = 0, joined: bool = False) -> Language:
    """Items: `forwards` asks for everybody's description as a suffix. About those who are told of forwards alone, in the same
    order, `backwards` asks for the name as a suffix of the reversed form, `gap` in the form that was read. `known` is
    `backwards` of the others. Held out are the answers: the reversed form of those who are told of forwards alone.

    joined: a name is one word, and so is a description: no mask is ever of a part of them."""
    everybody = people(count, seed, joined=joined)
    asked, known = everybody[: count // 2], everybody[count // 2 :]
    items = {
        "forwards": [{"left": f"note {name} is", "target": text, "right": ""} for name, text in everybody],
        "backwards": [{"left": f"note {text} is", "target": name, "right": ""} for name, text in asked],
        "gap": [{"left": "note", "target": name, "right": f"is {text}"} for name, text in asked],
        "known": [{"left": f"note {text} is", "target": name, "right": ""} for name, text in known],
    }
    train = [*map(forwards, everybody), *map(backwards, known)]
    order = np.random.default_rng(seed).permutation(len(train))
    return write(
        "reversal-joined" if joined else "reversal", [train[i] for i in order], list(map(backwards, asked)), items=items
    )
