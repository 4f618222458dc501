"""The rows of ELECTRA's generator."""

import numpy as np

from lm import config, objectives
from tests.unit.objectives.common import DATA, GENERATOR, MASK, RESERVED, V, rng, vocabulary


def test_a_generator_reads_masks_alone():
    """All that is chosen is masked: 0/100/0 instead of BERT's 80/10/10."""
    built = objectives.build(config.ReplacedTokens(GENERATOR, rate=0.25), "encoder", DATA, vocabulary())
    tokens = rng(1).integers(RESERVED, V, 64).astype(np.int32)
    e = built.make(tokens, rng())
    assert len(e.where) == 16 and built.lengths.predicted >= 16
    np.testing.assert_array_equal(e.encoder.tokens, np.where(np.isin(np.arange(64), e.where), MASK, tokens))
    np.testing.assert_array_equal(e.targets, tokens[e.where])
