"""Ranking answers from one cache gives what a forward pass over each gives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.data.examples import ExampleBuilder
from lm.data.rows import pack, stack
from lm.generation.padding import left_padded
from lm.generation.rank import rank
from lm.losses.cross_entropy import token_losses
from lm.models.transformer import Transformer
from tests.fakes import WORDS, WordTokenizer, small_model, small_params

YES, NO, VERY = (WORDS.index(word) for word in ("yes", "no", "very"))


@pytest.mark.parametrize("architecture,prefix", [("decoder", False), ("decoder", True), ("encoder_decoder", False)])
def test_ranking_is_every_candidate_by_itself(architecture, prefix):
    """Against a full forward pass over each text with each candidate behind it, with no cache and padding on the right."""
    m = small_model(architecture)
    network, p = Transformer(m), jax.tree.map(lambda x: 3 * x, small_params(m))
    texts = [np.array([7, 8, 9]), np.array([10])]
    answers = [np.array([YES, 2]), np.array([VERY, NO, 2])]
    builder = ExampleBuilder(WordTokenizer(), architecture, length=7, answer=3, prefix=prefix)
    whole = jax.tree.map(
        jnp.asarray, stack([pack([builder.answer_example(t, a)], builder.answer_lengths) for t in texts for a in answers])
    )
    logits = jax.jit(network.apply)({"params": p}, whole)
    expected = -np.asarray(jnp.sum(whole.weights * token_losses(logits, whole.targets), axis=1)).reshape(2, 2)
    candidates = np.array([[YES, 2, 0], [VERY, NO, 2]], np.int32)
    asked = [builder.prompt(t) for t in texts]
    encoder = left_padded([a[0] for a in asked], length=7) if architecture != "decoder" else None
    prompt = left_padded([a[1] for a in asked], prefix=prefix)
    got = rank(network, p, prompt, candidates, (candidates > 0).astype(np.float32), encoder=encoder)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)
    assert np.ptp(expected) > 0.1
