"""Preference losses against trl's, called on the same log-probabilities."""

import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lm.losses.preference import METHODS, Answers, compared

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")
    orpo = pytest.importorskip("trl.experimental.orpo")
    cpo = pytest.importorskip("trl.experimental.cpo")


def drawn():
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 9, (6, 2)).astype(np.float32)
    own, theirs = (-(tokens * rng.uniform(0.1, 3.0, (6, 2))).astype(np.float32) for _ in range(2))
    return own, theirs, tokens


def both(scores):
    return [torch.from_numpy(np.ascontiguousarray(scores[:, i])) for i in range(2)]


@pytest.mark.parametrize(
    ("name", "kind", "smoothing"),
    [("dpo", "sigmoid", 0.0), ("dpo", "sigmoid", 0.2), ("hinge", "hinge", 0.0), ("ipo", "ipo", 0.0), ("simpo", "simpo", 0.0)],
)
def test_losses_of_differences(name, kind, smoothing):
    """trl's CPO compares what it is given: log-ratios (of IPO a token's) are those of DPO."""
    method, (own, theirs, tokens) = METHODS[name], drawn()
    scores = {"dpo": own - theirs, "hinge": own - theirs, "ipo": (own - theirs) / tokens, "simpo": own / tokens}[name]
    of = SimpleNamespace(
        alpha=0.0,
        beta=method.beta,
        loss_type=kind,
        simpo_gamma=1.0,
        label_smoothing=smoothing,
        accelerator=SimpleNamespace(device="cpu"),
    )
    wanted, chosen, rejected = cpo.CPOTrainer.cpo_loss(of, *both(scores))
    a = Answers(own, theirs if method.reads_reference else None, tokens)
    found = compared(a, np.zeros(6, np.float32), method, smoothing=smoothing)
    np.testing.assert_allclose(found["loss"][0], wanted.numpy(), rtol=1e-5)
    np.testing.assert_allclose(found["reward_chosen"][0], chosen.numpy(), rtol=1e-5)
    np.testing.assert_allclose(found["reward_rejected"][0], rejected.numpy(), rtol=1e-5)


def test_odds_ratios():
    own, _, tokens = drawn()
    of = SimpleNamespace(beta=0.1, accelerator=SimpleNamespace(device="cpu"))
    wanted = orpo.ORPOTrainer.odds_ratio_loss(of, *both(own / tokens))[0]  # without the minus
    found = compared(Answers(own, None, tokens), np.zeros(6, np.float32), replace(METHODS["orpo"], nll=0.0))
    np.testing.assert_allclose(found["loss"][0], -wanted.numpy(), rtol=1e-5)
