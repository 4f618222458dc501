"""Sentinels with a meaning of their own. They are counted from the last one; span corruption counts from the first.

sentinels   s0 s1 s2 ...  [mode 1] [mode 0]  [prefix] [suffix] [middle]
"""

from collections.abc import Sequence

from lm import config
from lm.errors import UserError

FIM_MARKS = 3  # of prefix, suffix and middle


def fill_in_middle(sentinels: Sequence[int]) -> tuple[int, int, int]:
    """The tokens before prefix, suffix and middle: the last three sentinels. UserError if there are fewer."""
    prefix, suffix, middle = _last(sentinels, FIM_MARKS)
    return prefix, suffix, middle


def modes(c: config.Mixture, sentinels: Sequence[int]) -> dict[str, int]:
    """The token of each mode that a part names; UserError if there are too few sentinels.

    Sorted by name: the order of `parts` is lost when a config is read back from JSON.
    """
    names = sorted({part.mode for part in c.parts.values() if part.mode is not None})
    taken = _last(sentinels, FIM_MARKS + len(names)) if names else []
    return {name: taken[len(names) - 1 - i] for i, name in enumerate(names)}


def _last(sentinels: Sequence[int], count: int) -> list[int]:
    if len(sentinels) < count:
        raise UserError(
            f"marks of this objective take the last {count} sentinels, the tokenizer has {len(sentinels)}: "
            "use one that has more, or data.tokenizer.path=None to train one"
        )
    return [int(s) for s in sentinels[-count:]]
