"""Sentences of a small grammar and how each is spoken: the set "spoken" of `lm.data.corpus.generated`.

    spoken/train/1500    so many utterances; also valid and test, whose sentences are in no other split
    spoken/text/20000    so many sentences of the training split as text, for a language model

The grammar is full of words that sound alike (bear and bare, sea and see, flour and flower, pear and pair), or nearly so (bear
and beer), and what stands around them says which is meant: a bear is seen by the river, a beer drunk at the bar. A recogniser
that takes each sound by itself cannot tell them apart; a language model can.

Utterance i of a split is a function of (split, i) alone, and a sentence belongs to a split by its hash.
"""

import hashlib
import re

import numpy as np

from lm.data.records import Record, Speech, Text
from lm.data.sound_espeak import Voice
from lm.errors import UserError

VERSION = 1  # of the grammar and of the voices; raise it to have the set prepared again
PREFIX = "spoken/"
SPLITS = {"train": 1500, "valid": 200, "test": 400, "text": 20_000}  # and how many by default
VOICES = tuple(f"{accent}+{variant}" for accent in ("en-us", "en-gb") for variant in ("f2", "f4", "m1", "m3", "m7"))
SLOTS = {
    "who": "I|we|they|{whose} {person}|{whose} {person}|{whose} {person}",
    "whose": "my|your|his|her|our|their|the|the old|the new",
    "person": "son|aunt|knight|boy|king|maid|male nurse|night guard",
    "animal": "bear|deer|hare|horse|mouse",
    "wild": "near the river|by the sea|on the hill|in the wood|on the road|at the lake",
    "time": "last night|last week|at night|in the morning|for an hour|every week",
    "table": "at the bar|in the hall|at home|with some meat|by the fire|in the sun",
    "place": "the sea|the hill|the road|the wood|the house|the bridge",
    "wear": "coat|hat|dress|shirt",
    "number": "one|two|eight|nine",
    "things": "pears|flowers|eggs|books|coats",
    "long": "long|short|brown|white",
}
PATTERNS = (
    "{who} saw a {animal} {wild}",
    "{who} saw a {long} {animal} {time}",
    "{who} could hear a {animal} {wild}",
    "the {animal} had a {long} tail",
    "{who} told us a tale {time}",
    "{who} drank a beer {table}",
    "{who} drank a cold beer {time}",
    "{who} could see {place} from here",
    "{who} swam in the sea {time}",
    "{who} put a {long} flower on the table",
    "{who} put some flour in the bread",
    "{who} ate a pear {table}",
    "{who} ate the meat {table}",
    "{who} will meet us {wild}",
    "{who} bought a pair of shoes {time}",
    "{who} bought {number} {things} {table}",
    "{who} won the race {time}",
    "{who} left their {wear} over there",
    "there was a {long} {animal} {wild}",
    "the sun was over {place}",
    "{who} felt weak {time}",
    "{who} came here {time}",
    "the wind blew over {place}",
    "{who} wore a blue {wear} {time}",
    "{who} knew the way to {place}",
    "{who} bought a new {wear} {time}",
    "{who} ate the whole pie {table}",
    "{who} dug a hole {wild}",
    "{who} rode a horse to {place}",
    "the road to {place} is {long}",
    "the right road goes to {place}",
    "{who} had to write a letter {time}",
)


def sentence(rng: np.random.Generator) -> str:
    """A random sentence, in lower case but for "I"."""
    pattern = PATTERNS[rng.integers(len(PATTERNS))]

    def filled(slot: re.Match[str]) -> str:
        words = SLOTS[slot[1]].split("|")
        return words[rng.integers(len(words))]

    while "{" in pattern:
        pattern = re.sub(r"\{(\w+)\}", filled, pattern)
    return pattern


def split_of(text: str) -> str:
    """The split of a sentence: a tenth of all is for the test, and another for settings."""
    return {0: "test", 1: "valid"}.get(hashlib.sha256(text.encode()).digest()[0] % 10, "train")


def utterance(split: str, number: int) -> Speech:
    """Utterance `number` of a split: what is said, and by which voice."""
    rng = np.random.default_rng((VERSION, sorted(SPLITS).index(split), number))
    inside = "train" if split == "text" else split
    while split_of(text := sentence(rng)) != inside:
        pass
    choose = lambda low, high: int(rng.integers(low, high))
    voice = Voice(VOICES[choose(0, len(VOICES))], choose(160, 211), choose(30, 71), choose(5, 26), number)
    return Speech(str(voice), text)


def load(name: str, format: str) -> list[Record]:
    """The utterances that a name stands for, or their texts. UserError for an unknown name, or another format."""
    split, _, count = name.removeprefix(PREFIX).partition("/")
    if split not in SPLITS:
        raise UserError(f"no generated set '{name}': give {', '.join(PREFIX + one for one in SPLITS)}")
    if count and not re.fullmatch(r"[1-9]\d{0,6}", count):
        raise UserError(f"'{name}' says how many utterances in whole numbers, such as {PREFIX}{split}/{SPLITS[split]}")
    if format != (wanted := "text" if split == "text" else "speech"):
        raise UserError(f"the generated set '{PREFIX}{split}' has format='{wanted}', and the source has '{format}'")
    said = (utterance(split, i) for i in range(int(count or SPLITS[split])))
    return [Text(one.text) if split == "text" else one for one in said]
