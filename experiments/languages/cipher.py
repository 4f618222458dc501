"""K words, then each in a secret alphabet: `w07 w31 w02 = s64 s18 s90`. The rule from word to sign is fixed and random."""

import numpy as np

from experiments.languages import Language, write

WORDS = 100
TRAIN, HELDOUT = 30_000, 500  # messages


def messages(count: int, length: int, seed: int) -> list[tuple[str, str]]:
    """(words with "=", signs) of messages whose words are drawn uniformly."""
    signs = np.random.default_rng(0).permutation(WORDS)
    words = np.random.default_rng(seed).integers(WORDS, size=(count, length))
    spell = lambda letter, row: " ".join(f"{letter}{i:02d}" for i in row)
    return [(spell("w", a) + " =", spell("s", b)) for a, b in zip(words.tolist(), signs[words].tolist(), strict=True)]


def language(*, length: int = 8) -> Language:
    """The items `message` ask for the signs of the held-out messages."""
    held = messages(HELDOUT, length, 1)
    items = [{"left": left, "target": target, "right": ""} for left, target in held]
    train = (" ".join(pair) for pair in messages(TRAIN, length, 2))
    return write(f"cipher-{length}", train, (" ".join(pair) for pair in held), items={"message": items})
