"""The loss of CTC against torch's, and against all paths of small cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.losses.ctc import ctc
from lm.types import Example, TokenStream, Unaligned
from tests.unit.generation.test_ctc import enumerated

BLANK = 0


def batch(labels, vectors: list[int], length: int) -> Unaligned:
    """Rows of these labels, and so many vectors of `length`."""
    most = max(map(len, labels))
    padded = np.array([[*row, *[0] * (most - len(row))] for row in labels], np.int32)
    weights = np.array([[1.0] * len(row) + [0.0] * (most - len(row)) for row in labels], np.float32)
    segments = (np.arange(length) < np.array(vectors)[:, None]).astype(np.int32)
    stream = TokenStream(np.zeros_like(segments), segments, segments)
    return Unaligned(Example(stream, None, stream.tokens, segments.astype(np.float32)), padded, weights)


def test_loss_and_gradient_equal_torchs():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    labels, vectors, T, V = [[3, 3, 1, 2], [4, 1], [2, 2, 2]], [9, 12, 6], 12, 6
    logits = rng.normal(0, 2, (3, T, V)).astype(np.float32)
    theirs = torch.tensor(logits, requires_grad=True)
    inputs = torch.log_softmax(theirs, -1).transpose(0, 1), torch.tensor(sum(labels, []))
    lengths = torch.tensor(vectors), torch.tensor([len(row) for row in labels])
    each = torch.nn.CTCLoss(blank=BLANK, reduction="none")(*inputs, *lengths)
    each.sum().backward()
    rows = batch(labels, vectors, T)
    mean = ctc(jnp.asarray(logits), rows, BLANK)
    np.testing.assert_allclose(mean.total, each.sum().item(), rtol=1e-5)
    assert mean.weight == 9 == rows.tokens_asked() and rows.tokens_read() == 27
    gradient = jax.grad(lambda x: ctc(x, rows, BLANK).total)(jnp.asarray(logits))
    np.testing.assert_allclose(gradient, theirs.grad.numpy(), atol=2e-5)


@pytest.mark.parametrize("labels", [[1], [1, 2], [2, 2], [1, 2, 1]])
def test_the_loss_is_minus_the_log_of_the_sum_over_all_paths(labels):
    logits = np.random.default_rng(1).normal(0, 1, (1, 5, 3)).astype(np.float32)
    log_probs = np.asarray(jax.nn.log_softmax(logits[0].astype(np.float64)))
    mean = ctc(jnp.asarray(logits), batch([labels], [5], 5), BLANK)
    assert float(mean.total) == pytest.approx(-enumerated(log_probs)[tuple(labels)], rel=1e-5)


def test_blank_rows_count_nothing():
    logits = np.random.default_rng(2).normal(0, 1, (2, 5, 3)).astype(np.float32)
    one = ctc(jnp.asarray(logits[:1]), batch([[1, 2]], [5], 5), BLANK)
    two = ctc(jnp.asarray(logits), batch([[1, 2], []], [5, 0], 5), BLANK)
    np.testing.assert_allclose(two.total, one.total, rtol=1e-6)
    assert two.weight == one.weight == 2
