"""A small valid config to break, and the check that a refusal is one short line."""

import dataclasses

import pytest

from lm.config import Attention, Block, Mlp, Model, Run, Stack
from lm.config.resolve import to_dict
from lm.errors import UserError

BLOCK = Block(Attention(2), Mlp(8))
CROSS = dataclasses.replace(BLOCK, cross=True)
STACK = Stack(2, {"L": BLOCK})
MODEL = Model(16, 8, decoder=STACK)
TREE = to_dict(Run(MODEL))


def refused(words, function, *arguments):
    with pytest.raises(UserError, match=words) as error:
        function(*arguments)
    said = str(error.value)
    assert said.isprintable() and len(said) < 400, said
