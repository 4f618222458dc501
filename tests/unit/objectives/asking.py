"""A tiny vocabulary and a span, for tests of how models are asked; and every way to ask."""

from types import SimpleNamespace

import numpy as np

from lm.config import Attention, Block, BlockDiffusion, MaskedDiffusion, Mlp, Model, Stack
from lm.objectives import DECLARATIONS, pairs
from lm.objectives.prompts import Span
from lm.types import CHARACTER, WORD

BOS, EOS, MASK, S0, TEXT, V = 1, 2, 3, 4, 5, 9  # texts are tokens 5 to 8
SENTINELS, WIDE = (S0, 9, 10), 11  # the model's vocabulary is wider than the tokenizer's
GENERATOR = Model(WIDE, 16, encoder=Stack(1, {"L": Block(Attention(2), Mlp(16))}))
# How each objective is asked, by architecture; a mixture as its parts are.
SUITS = {(a, o): DECLARATIONS[o].suits[a] for a, o in pairs()}
SPAN_PROMPTS = {key: suit.spans for key, suit in SUITS.items() if isinstance(suit.spans, dict) and suit.spans}
for _key in (("encoder", MaskedDiffusion), ("decoder", MaskedDiffusion), ("decoder", BlockDiffusion)):  # depend on the config
    SPAN_PROMPTS[_key] = SUITS[_key].spans(_key[1]())
ASKED = [(*key, kind) for key, known in SPAN_PROMPTS.items() for kind in known]
NAMES = [f"{a}-{o.__name__}-{k}" for a, o, k in ASKED]


def vocabulary(word_start):
    return SimpleNamespace(
        vocab_size=V,
        bos_id=BOS,
        eos_id=EOS,
        mask_id=MASK,
        sentinel_ids=SENTINELS,
        special=np.arange(V) < TEXT,
        boundaries=lambda tokens: np.where(np.array(word_start)[tokens], WORD, CHARACTER),
    )


WORDS = vocabulary([True] * V)  # every token a word
SPAN = Span(*(np.array(x, np.int32) for x in ([5, 7, 6], [8, 5], [6, 8])), num_bytes=4)


def equal(array, expected):
    assert np.asarray(array).tolist() == expected
