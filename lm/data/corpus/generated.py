"""Generated questions with better and worse answers: kind `generated` of a source. A set is the same on every machine.

    manners  The lamp is in the hall. Where is the lamp?    Of course: the lamp is in the hall.  >  In the hall, obviously.
    places                                                  The lamp is in the hall.  >  The lamp is in the garden.

A preference is for the polite or the right answer, and a NOISE of them is turned round, as if annotators disagreed: the best
accuracy is 1 - NOISE, of a model that gives each preference this probability. Feedback (one answer, good or not) has the same
noise. The answers of messages are right, and those of "manners" are polite or not at random.

Questions with one right answer are in `lm.data.corpus.arithmetic`, those of a package in `lm.data.corpus.reasoning`, spoken
sentences in `lm.data.sound_grammar`, and trees in `lm.data.corpus.listops`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lm.data import sound_grammar
from lm.data.corpus import arithmetic, instructed, listops, reasoning
from lm.data.records import Feedback, Message, Messages, Pair, Preference, Record
from lm.errors import UserError, nearest

VERSION = 1  # of the sets; raise it to have them prepared again
NOISE = 0.1  # share of the judgements that are wrong
THINGS = """
lamp book key letter map clock coat chair box bottle basket ladder candle drum flag glove hammer jar knife mirror needle plate
ring rope
""".split()
PLACES = (
    *("in the hall", "in the garden", "on the table", "under the bed", "behind the door", "at the school", "in the kitchen"),
    *("on the shelf", "by the river", "near the church", "on the roof", "in the office", "at the market", "beside the well"),
    *("in the cellar", "over the fire"),
)
QUESTIONS = ("Where is the {}?", "Tell me where the {} is.", "Where can I find the {}?")
POLITE = (
    "Of course: the {thing} is {place}.",
    "Thank you for asking. The {thing} is {place}.",
    "The {thing} is {place}. You are welcome to ask again.",
    "With pleasure: it is {place}.",
)
RUDE = (
    "It is {place}, obviously.",
    "You were told. The {thing} is {place}.",
    "The {thing} is {place}. Do not ask again.",
    "What a question: it is {place}.",
)

Answers = Callable[[str, str, np.random.Generator], tuple[str, str]]  # thing, place -> a better answer and a worse one


def manners(thing: str, place: str, rng: np.random.Generator) -> tuple[str, str]:
    """A polite answer and one that is not; both are right."""
    polite, rude = (some[rng.integers(len(some))].format(thing=thing, place=place) for some in (POLITE, RUDE))
    return polite, rude


def places(thing: str, place: str, rng: np.random.Generator) -> tuple[str, str]:
    """The right answer and a wrong one, which differ in the place alone."""
    others = [other for other in PLACES if other != place]
    wrong = others[rng.integers(len(others))]
    return f"The {thing} is {place}.", f"The {thing} is {wrong}."


SETS: Mapping[str, Answers] = {"manners": manners, "places": places}


def version(name: str) -> int | str:
    """What the records of a set depend on beside its name and their format."""
    if name.startswith(reasoning.PREFIX):
        return reasoning.version()
    if name == listops.NAME:
        return f"listops {listops.VERSION}"
    if name.startswith(sound_grammar.PREFIX):
        return f"spoken {sound_grammar.VERSION}"
    return f"instructed {instructed.VERSION}" if name in instructed.SETS else VERSION


def load(name: str, format: str) -> list[Record]:
    """The records of a set in this format, one for each question. UserError for an unknown name."""
    if name.startswith(sound_grammar.PREFIX):
        return sound_grammar.load(name, format)
    if name == listops.NAME and format == "tree":
        return [*listops.load()]
    if name == listops.NAME:
        raise UserError(f"the generated set '{name}' has trees: set format='tree'")
    if format in ("text", "speech", "tree"):
        raise UserError(f"the generated set '{name}' has questions with answers, no {format}: set another format")
    if name.startswith(reasoning.PREFIX):
        return reasoning.load(name, format)
    if name in arithmetic.SETS:
        return arithmetic.load(name, format)
    if name not in SETS:
        known = [*SETS, *arithmetic.SETS, listops.NAME, *(sound_grammar.PREFIX + split for split in sound_grammar.SPLITS)]
        raise UserError(f"no generated set '{name}'{nearest(name, known)}, and none of {reasoning.PREFIX}TASK")
    rng = np.random.default_rng(VERSION)
    out: list[Record] = []
    for thing in THINGS:
        for place in PLACES:
            for form in QUESTIONS:
                better, worse = SETS[name](thing, place, rng)
                judged: Any = (better, worse) if rng.random() >= NOISE else (worse, better)
                fair = rng.random() < 0.5
                asked = f"The {thing} is {place}. {form.format(thing)}"
                turns = (Message("user", asked),)
                match format:
                    case "preference":
                        out.append(Preference(turns, *judged))
                    case "feedback":
                        out.append(Feedback(turns, judged[0] if fair else judged[1], bool(fair)))
                    case "messages":
                        answer = worse if name == "manners" and fair else better
                        out.append(Messages((*turns, Message("assistant", answer))))
                    case _:
                        out.append(Pair(asked, place))
    return out
