"""Filling in masks: what was given stays, each step fills its share, the order is the one that was asked for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.generation.diffusion import fill, write_blocks
from lm.generation.padding import left_padded
from lm.objectives.block_diffusion import twice
from lm.types import Example, TokenStream
from tests.unit.evaluation.test_spans import model
from tests.unit.objectives.asking import BOS, MASK, TEXT, WIDE

ROWS = [np.array([BOS, TEXT, MASK, MASK, TEXT + 1, MASK, MASK]), np.array([BOS, MASK, MASK, MASK])]
FORBIDDEN = np.arange(WIDE) < TEXT


def filled(rows=ROWS, **settings):
    module, params = model("encoder")
    stream = left_padded([np.asarray(row, np.int32) for row in rows])
    settings = dict(steps=4, forbidden=FORBIDDEN) | settings
    return stream, np.asarray(fill(module, params, stream, stream.tokens == MASK, jax.random.key(0), **settings))


@pytest.mark.parametrize("order", ["confidence", "entropy", "margin", "random", "left"])
@pytest.mark.parametrize("settings", [{}, {"block": 2}, {"temperature": 1.0}, {"steps": 1}, {"steps": 9}])
def test_masks_become_text_and_the_rest_stays(order, settings):
    stream, tokens = filled(order=order, **settings)
    given = stream.tokens != MASK
    assert np.array_equal(tokens[given], stream.tokens[given])
    assert not FORBIDDEN[tokens[~given]].any() and tokens.dtype == np.int32


@pytest.mark.parametrize("order", ["left", "confidence"])
def test_a_decoder_fills_in_each_mask_from_the_place_before_it(order):
    module, params = model("decoder")
    tokens = ROWS[0].copy()
    stream = left_padded([np.asarray(tokens, np.int32)])
    settings = dict(steps=4, forbidden=FORBIDDEN, order=order)
    got = np.asarray(fill(module, params, stream, stream.tokens == MASK, jax.random.key(0), **settings))[0]
    while (left := np.flatnonzero(tokens == MASK)).size:
        one = np.asarray(tokens[None], np.int32)
        read = TokenStream(one, np.arange(len(tokens))[None], np.ones_like(one), np.ones(one.shape, bool))
        logits = np.array(module.apply({"params": params}, Example(None, read, None, None)), float)[0]
        logits[:, FORBIDDEN] = -np.inf
        logp = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        place = left[0] if order == "left" else max(left, key=lambda i: logp[i - 1].max())
        tokens[place] = logp[place - 1].argmax()
    assert got.tolist() == tokens.tolist()


def one_at_a_time(order, block=None):
    """The same by hand: one mask a step, chosen from the model's own probabilities."""
    module, params = model("encoder")
    tokens, out = ROWS[0].copy(), []
    masks = np.flatnonzero(tokens == MASK)
    for step in range(len(masks)):
        one = jnp.asarray(tokens[None], jnp.int32)
        stream = TokenStream(one, jnp.arange(len(tokens))[None], jnp.ones_like(one))
        logits = np.array(module.apply({"params": params}, stream_example(stream)), float)[0]
        logits[:, FORBIDDEN] = -np.inf
        p = np.exp(logits - logits.max(-1, keepdims=True))
        p /= p.sum(-1, keepdims=True)
        top = np.sort(p, axis=-1)[:, ::-1]
        entropy = -np.sum(np.where(p > 0, p * np.log(np.maximum(p, 1e-300)), 0), axis=-1)
        score = {"confidence": top[:, 0], "entropy": -entropy, "margin": top[:, 0] - top[:, 1], "left": -np.arange(len(tokens))}
        open_ = [
            m for m in masks if tokens[m] == MASK and (block is None or np.searchsorted(masks, m) // block == step // block)
        ]
        best = max(open_, key=lambda m: score[order][m])
        tokens[best] = p[best].argmax()
        out.append(int(best))
    return tokens, out


def stream_example(stream):
    return Example(stream, None, None, None)


@pytest.mark.parametrize("order", ["confidence", "entropy", "margin", "left"])
@pytest.mark.parametrize("block", [None, 2])
def test_the_order_is_that_of_the_probabilities(order, block):
    """Against a loop over single masks; other orders give other texts here, so that the order is what is tested."""
    tokens, _ = filled([ROWS[0]], order=order, block=block)[1], None
    assert np.array_equal(tokens[0], one_at_a_time(order, block)[0])
    assert order == "left" or one_at_a_time(order, block)[1] != sorted(one_at_a_time(order, block)[1]) or block


def test_random_orders_differ_by_key_and_repeat():
    module, params = model("encoder")
    stream = left_padded([np.array([BOS] + [MASK] * 12, np.int32)])
    draw = lambda key: np.asarray(
        fill(module, params, stream, stream.tokens == MASK, jax.random.key(key), steps=6, order="random", temperature=1.0)
    )
    assert np.array_equal(draw(0), draw(0)) and len({draw(k).tobytes() for k in range(4)}) > 1


def test_padding_before_a_row_changes_nothing():
    both, alone = filled()[1], filled(ROWS[1:], steps=4)[1]
    assert np.array_equal(both[1, -4:], alone[0])


def test_blocks_are_written_with_kept_keys_as_without():
    """Each token as it is filled in a row of text and copy that goes through the model whole; up to the end of the text."""
    module, params = model("decoder")
    for length, block in ((5, 2), (3, 4)):
        prompt = np.array([BOS, *([TEXT, TEXT + 1] * 4)][:length], np.int32)
        settings = dict(new_tokens=5, block=block, mask_id=MASK, eos_id=-1, forbidden=FORBIDDEN)
        new = write_blocks(module, params, prompt, jax.random.key(0), **settings)
        known = list(prompt)
        while len(known) < length + 5:
            first = len(known) // block * block
            size = min(block, length + 5 - first)
            noised = np.array([*known[first:], *[MASK] * (first + size - len(known))])
            while MASK in noised:
                row = twice(np.array(known[:first], int), noised, block, first)
                row = jax.tree.map(lambda x: jnp.asarray(x)[None], row)
                logits = np.array(module.apply({"params": params}, Example(None, row, None, None)), float)[0, first:]
                logits[:, FORBIDDEN] = -np.inf
                best = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
                place = max(np.flatnonzero(noised == MASK), key=lambda i: best[i].max())
                noised[place] = best[place].argmax()
            known[first:] = noised.tolist()
        assert new.tolist() == known[length:]
        end = int(new[2])
        cut = write_blocks(module, params, prompt, jax.random.key(0), **settings | {"eos_id": end})
        stop = new.tolist().index(end)
        assert cut[:stop].tolist() == new[:stop].tolist() and (cut[stop:] == end).all() and len(cut) == 5
