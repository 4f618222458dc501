"""Sentinels that mean something of their own. They are counted from the end: those of span corruption begin at the front.

sentinels   s0 s1 s2 ...  [mode 1] [mode 0]  [prefix] [suffix] [middle]
"""

from collections.abc import Sequence

from lm import config
from lm.errors import UserError

MIDDLE = 3  # marks of a text whose middle was moved


def fill_in_middle(sentinels: Sequence[int]) -> tuple[int, int, int]:
    """The marks before prefix, suffix and middle: the last three sentinels."""
    prefix, suffix, middle = _last(sentinels, MIDDLE)
    return prefix, suffix, middle


def modes(c: config.Mixture, sentinels: Sequence[int]) -> dict[str, int]:
    """A token for each mode that a part names, in the order of the names: a config read back from JSON has no other."""
    names = sorted({part.mode for part in c.parts.values() if part.mode is not None})
    taken = _last(sentinels, MIDDLE + len(names)) if names else []
    return {name: taken[len(names) - 1 - i] for i, name in enumerate(names)}


def _last(sentinels: Sequence[int], count: int) -> list[int]:
    if len(sentinels) < count:
        raise UserError(
            f"marks of this objective take the last {count} sentinels, the tokenizer has {len(sentinels)}: "
            "use one that has more, or data.tokenizer.path=None to train one"
        )
    return [int(s) for s in sentinels[-count:]]
