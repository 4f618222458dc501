"""Examples of records: what is read, at which positions, and which tokens have loss."""

import numpy as np
import pytest

from lm.data.examples import ExampleBuilder, shorten
from lm.data.rows import pack
from tests.fakes import WordTokenizer


def test_a_long_text_keeps_both_ends():
    np.testing.assert_array_equal(shorten(np.arange(5, 10), 4), [5, 6, 8, 9])
    np.testing.assert_array_equal(shorten(np.arange(5, 8), 4), [5, 6, 7])
    builder = ExampleBuilder(WordTokenizer(), "decoder", length=6, answer=2, prefix=False)
    assert [len(t) for t in builder.encode([" ".join(["w1"] * 9)])] == [4]


@pytest.mark.parametrize("prefix", [False, True])
def test_loss_only_on_the_answer(prefix):
    text, answer = np.array([7, 8]), np.array([20, 2])
    builder = ExampleBuilder(WordTokenizer(), "decoder", length=6, answer=3, prefix=prefix)
    row = pack([builder.answer_example(text, answer)], builder.answer_lengths)
    np.testing.assert_array_equal(row.decoder.tokens, [1, 7, 8, 2, 20, 0, 0, 0])
    np.testing.assert_array_equal(row.where, [3, 4, 0])
    np.testing.assert_array_equal(row.targets, [20, 2, 0])
    np.testing.assert_array_equal(row.weights, [1, 1, 0])
    assert (row.decoder.prefix is None) != prefix
    if prefix:
        np.testing.assert_array_equal(row.decoder.prefix, [1, 1, 1, 1, 0, 0, 0, 0])


def test_an_encoder_decoder_reads_the_text_and_says_the_answer():
    builder = ExampleBuilder(WordTokenizer(), "encoder_decoder", length=6, answer=3, prefix=True)
    row = pack([builder.answer_example(np.array([7, 8]), np.array([20, 2]))], builder.answer_lengths)
    np.testing.assert_array_equal(row.encoder.tokens, [7, 8, 2, 0, 0, 0])
    np.testing.assert_array_equal(row.decoder.tokens, [1, 20, 0])
    np.testing.assert_array_equal(row.weights, [1, 1, 0])
    assert row.where is None and row.decoder.prefix is None


@pytest.mark.parametrize("architecture,place", [("encoder", 0), ("decoder", 3), ("encoder_decoder", 3)])
def test_a_head_reads_one_place(architecture, place):
    builder = ExampleBuilder(WordTokenizer(), architecture, length=6, answer=1, prefix=False)
    row = pack([builder.label_example(np.array([7, 8]), 1)], builder.label_lengths)
    for name in ("encoder", "decoder"):
        if name in architecture:
            np.testing.assert_array_equal(getattr(row, name).tokens, [1, 7, 8, 2, 0, 0])
    assert (row.where.tolist(), row.targets.tolist(), row.weights.tolist()) == ([place], [1], [1.0])
