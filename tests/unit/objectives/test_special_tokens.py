"""Marks and modes are counted from the last sentinel."""

from lm import config
from lm.objectives import special_tokens
from tests.unit.objectives.common import SENTINELS, mix


def test_modes_are_counted_from_behind_the_marks():
    c = mix(b=(config.Causal(), 1.0, "s"), a=(config.Prefix(), 1.0, "r"), c=(config.Prefix(), 1.0, "s"), d=(config.Causal(),))
    assert special_tokens.modes(c, SENTINELS) == {"r": SENTINELS[-4], "s": SENTINELS[-5]}
    assert special_tokens.modes(config.Mixture(dict(reversed(c.parts.items()))), SENTINELS) == special_tokens.modes(
        c, SENTINELS
    )
    assert special_tokens.modes(mix(a=(config.Causal(),)), ()) == {}
    assert special_tokens.fill_in_middle(SENTINELS) == SENTINELS[-3:]
