"""Each noise gives what its docstring shows, at its rate; the text comes back."""

from functools import partial

import numpy as np
import pytest

from lm import config
from lm.objectives import denoise
from tests.unit.objectives.common import (
    BOS,
    ENDS,
    EOS,
    MASK,
    NEWLINE,
    RESERVED,
    STOP,
    build,
    equal,
    first,
    rng,
    sentence_ends,
    text,
)


def test_infill_docstring():
    make = lambda r: denoise.infill(np.arange(20, 26), r, rate=0.5, mean_span=2.0, mask_id=MASK)
    wanted = [20, MASK, 23, MASK, 24, MASK]
    equal(first(make, lambda x: x.tolist() == wanted), wanted)


@pytest.mark.parametrize("rate,mean_span", [(0.3, 3.0), (0.15, 1.0), (0.5, 8.0), (1.0, 3.0)])
def test_infill_takes_the_rate_in_poisson_spans(rate, mean_span):
    """Kept tokens are in order; the number gone is exact; spans are as long as Poisson's, empty ones as frequent."""
    n, spans, masks, empty = 200, 0, 0, 0
    for s in range(300):
        tokens = np.arange(100, 100 + n)
        noised = denoise.infill(tokens, rng(s), rate=rate, mean_span=mean_span, mask_id=MASK)
        kept = noised[noised != MASK]
        assert (np.diff(kept) > 0).all() and n - len(kept) == round(rate * n) and len(noised) <= n
        masks += len(noised) - len(kept)
        # Masks with no token gone at them, counted where no other mask stands next to them.
        padded = np.concatenate([[99], noised, [100 + n]])
        alone = np.flatnonzero((padded[1:-1] == MASK) & (padded[:-2] != MASK) & (padded[2:] != MASK))
        gone = padded[2:][alone] - padded[:-2][alone] - 1
        spans, empty = spans + len(alone), empty + (gone == 0).sum()
    if rate < 1:
        assert abs(masks / 300 - rate * n / mean_span) < 0.12 * rate * n / mean_span + 1  # the last span is cut short
        assert abs(empty / spans - np.exp(-mean_span)) < 0.06


def test_permute_docstring():
    tokens = np.array([20, 21, STOP, 22, STOP, NEWLINE, 23, 24, 25, STOP])
    make = lambda r: denoise.permute(tokens, r, share=1.0, sentence_ends=sentence_ends)
    wanted = [22, STOP, NEWLINE, 23, 24, 25, STOP, 20, 21, STOP]
    equal(first(make, lambda x: x.tolist() == wanted), wanted)
    assert {make(rng(s)).tolist()[0] for s in range(60)} == {20, 22, 23}


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_permute_keeps_sentences_whole(share):
    sentences = [[100 + 10 * i, 101 + 10 * i, STOP] for i in range(10)]
    moved = 0
    for s in range(200):
        noised = denoise.permute(np.concatenate(sentences), rng(s), share=share, sentence_ends=sentence_ends).reshape(10, 3)
        assert sorted(noised.tolist()) == sentences
        stayed = sum(a == b for a, b in zip(noised.tolist(), sentences, strict=True))
        assert stayed >= 10 - round(share * 10)
        moved += 10 - stayed
    assert abs(moved / 200 - max(0, share * 10 - 1)) < 0.4  # a permutation has one fixed point on average


def test_rotate_delete_and_mask_docstrings():
    tokens = np.arange(20, 25)
    equal(first(lambda r: denoise.rotate(tokens, r, share=1.0), lambda x: x[0] == 23), [23, 24, 20, 21, 22])
    equal(first(lambda r: denoise.delete(tokens, r, rate=0.4), lambda x: x.tolist() == [20, 22, 23]), [20, 22, 23])
    make = lambda r: denoise.mask(tokens, r, rate=0.4, mask_id=MASK)
    equal(first(make, lambda x: x.tolist() == [20, MASK, 22, 23, MASK]), [20, MASK, 22, 23, MASK])
    assert {denoise.rotate(tokens, rng(s), share=1.0)[0] for s in range(80)} == set(range(20, 25))
    assert np.mean([denoise.rotate(tokens, rng(s), share=0.5)[0] != 20 for s in range(1000)]) == pytest.approx(0.4, abs=0.05)


def test_denoise_encoder_decoder_docstring():
    noise = partial(denoise.infill, rate=0.5, mean_span=3.0, mask_id=MASK)
    plain = np.array([20, 21, 22, 23])
    for tokens in (plain, np.array([BOS, *plain, EOS])):
        make = partial(lambda t, r: denoise.encoder_decoder(t, r, noise=noise, **ENDS), tokens)
        e = first(make, lambda e: e.encoder.tokens.tolist() == [20, MASK, 23, EOS])
        equal(e.decoder.tokens, [BOS, 20, 21, 22, 23])
        equal(e.targets, [20, 21, 22, 23, EOS])
        equal(e.weights, [1, 1, 1, 1, 1])


EVERYTHING = config.Denoise(mask=0.2, delete=0.2, rotate=1.0)


@pytest.mark.parametrize("c", [config.Denoise(), EVERYTHING, config.Denoise(0, 3, 0), config.Denoise(1, 1, 1, 1, 1, 1)])
@pytest.mark.parametrize("n", [2, 3, 10, 63])
def test_denoised_text_is_given_back_and_fits(c, n):
    o = build(c)
    for s in range(50):
        tokens = text(n, s)
        e, again = o.make(tokens, rng(s)), o.make(tokens, rng(s))
        equal(e.encoder.tokens, again.encoder.tokens.tolist())
        equal(e.targets, [*tokens, EOS])
        assert len(e.encoder.tokens) <= n + 1 and e.encoder.tokens[-1] == EOS
        assert np.isin(e.encoder.tokens, [*tokens, MASK, EOS]).all()
    if c == config.Denoise(0, 3, 0):
        equal(e.encoder.tokens, e.targets.tolist())


def test_all_noises_act():
    """Each field of the config changes what the encoder reads, and only where it is on."""
    tokens = np.append(np.arange(RESERVED + 20, RESERVED + 58), [STOP, 60, 61, STOP])
    reads = lambda **c: build(config.Denoise(**(dict(infill=0, permute=0) | c))).make(tokens, rng(3)).encoder.tokens[:-1]
    equal(reads(), tokens.tolist())
    n = len(tokens)
    assert (reads(mask=0.5) == MASK).sum() == n / 2 and len(reads(delete=0.5)) == n / 2
    assert (reads(infill=0.5) != MASK).sum() == n / 2 and len(reads(infill=0.5)) < n
    assert sorted(reads(rotate=1)) == sorted(tokens) and reads(rotate=1)[0] != tokens[0]
    permuted = [build(config.Denoise(infill=0)).make(tokens, rng(s)).encoder.tokens[:4].tolist() for s in range(9)]
    assert [60, 61, STOP, int(tokens[0])] in permuted


def test_no_mask_token_is_needed_where_none_is_used():
    tokens = text(20)
    e = build(config.Denoise(infill=0.0, delete=0.2), mask_id=None).make(tokens, rng())
    equal(e.targets, [*tokens, EOS])
