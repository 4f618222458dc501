"""A vocabulary, texts and helpers that the tests of objectives share."""

from types import SimpleNamespace

import numpy as np

from lm import config, objectives
from lm.types import CHARACTER, WORD

BOS, EOS, MASK, RESERVED, V = 1, 2, 4, 20, 500
SENTINELS = tuple(range(5, 17))
STOP, NEWLINE = 30, 31  # end a sentence
ENDS = dict(bos=BOS, eos=EOS)
NOISE = dict(mask_id=MASK, text=np.arange(V) >= RESERVED, ids=np.arange(RESERVED, V))
DATA = config.Data(encoder_length=64, decoder_length=64)
GENERATOR = config.Model(V, 16, encoder=config.Stack(1, {"L": config.Block(config.Attention(2), config.Mlp(16))}))


def sentence_ends(tokens):
    return np.isin(tokens, (STOP, NEWLINE))


def boundaries(tokens):
    return np.where(tokens % 3 == 0, WORD, CHARACTER)


def rng(*seed):
    return np.random.default_rng(seed or 0)


def first(make, wanted, seeds=5000):
    """What `make` gives of the first seed for which `wanted` holds."""
    return next(made for made in (make(rng(s)) for s in range(seeds)) if wanted(made))


def vocabulary(**changes):
    known = dict(vocab_size=V, bos_id=BOS, eos_id=EOS, mask_id=MASK, sentinel_ids=SENTINELS)
    words = dict(special=np.arange(V) < RESERVED, boundaries=boundaries, sentence_ends=sentence_ends)
    return SimpleNamespace(**(known | words | changes))


def build(c, architecture="encoder_decoder", data=DATA, **changes):
    """The objective over a vocabulary with these changes."""
    return objectives.build(c, architecture, data, vocabulary(**changes))


def mix(**parts):
    return config.Mixture({name: config.Part(*part) if isinstance(part, tuple) else part for name, part in parts.items()})


def text(n, *seed):
    return rng(*seed, 77).integers(RESERVED, V, n).astype(np.int32)


def equal(array, expected):
    assert np.asarray(array).tolist() == expected
