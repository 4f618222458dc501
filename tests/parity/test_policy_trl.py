"""Losses and gradients of a batch equal those of trl's GRPOTrainer, whose `_compute_loss` is called on given tensors."""

from collections import defaultdict
from types import SimpleNamespace
from unittest.mock import MagicMock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.losses import policy
from lm.losses.policy import METHODS, Rollouts, TokenScores
from lm.types import Example

torch = pytest.importorskip("torch")
trl = pytest.importorskip("trl")

B, G, T = 8, 4, 6
RNG = np.random.default_rng(0)
LENGTHS = RNG.integers(1, T + 1, B)
MASK = (np.arange(T) < LENGTHS[:, None]).astype(np.float32)
OLD, NEW, REFERENCE = (RNG.normal(m, 0.4, (B, T)).astype(np.float32) for m in (-1.5, -1.4, -1.7))
REWARDS = RNG.normal(size=B).astype(np.float32)
# Of ours: trl's loss_type, level of the ratio, beta.
CASES = {
    "grpo": ("grpo", "token", 0.3),
    "dr_grpo": ("dr_grpo", "token", 0.0),
    "dapo": ("bnpo", "token", 0.0),
    "gspo": ("grpo", "sequence", 0.0),
}


def theirs(name, advantages):
    """The loss, and its gradient in the log-probabilities."""
    loss_type, level, beta = CASES[name]
    new = torch.tensor(NEW, requires_grad=True)
    gather = SimpleNamespace(gather=lambda x: x, num_processes=1, sync_gradients=False, reduce=lambda x, reduction: x)
    fake = MagicMock(
        loss_type=loss_type,
        importance_sampling_level=level,
        beta=beta,
        epsilon_low=METHODS[name].clip_low,
        epsilon_high=METHODS[name].clip_high,
        max_completion_length=T,
        current_gradient_accumulation_steps=1,
        top_entropy_quantile=1.0,
        off_policy_mask_threshold=None,
        use_vllm=False,
        aux_loss_enabled=False,
        use_adaptive_entropy=False,
        entropy_coef=0.0,
        args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
        accelerator=gather,
        _metrics={"train": defaultdict(list), "eval": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *a, **k: (new, torch.ones(B, T), None),
    )
    ids, mask = torch.zeros(B, T, dtype=torch.long), torch.tensor(MASK)
    given = dict(prompt_ids=ids, prompt_mask=mask, completion_ids=ids, completion_mask=mask)
    given |= dict(advantages=torch.tensor(advantages), old_per_token_logps=torch.tensor(OLD))
    given |= dict(ref_per_token_logps=torch.tensor(REFERENCE), num_items_in_batch=mask.sum())
    loss = trl.GRPOTrainer._compute_loss(fake, None, given)
    loss.backward()
    return float(loss.detach()), new.grad.numpy()


@pytest.mark.parametrize("name", CASES)
def test_losses_are_trls(name):
    method, beta = METHODS[name], CASES[name][2]
    by_group = torch.tensor(REWARDS).view(-1, G)  # as in GRPOTrainer._generate_and_score_completions
    advantages = by_group - by_group.mean(1, keepdim=True)
    advantages = advantages if name == "dr_grpo" else advantages / (by_group.std(1, keepdim=True) + 1e-4)
    example = Example(None, None, jnp.zeros((B, T), jnp.int32), jnp.asarray(MASK))
    batch = Rollouts(example, *map(jnp.asarray, (OLD, REWARDS, LENGTHS)), jnp.zeros(B), fresh=jnp.ones(B))
    ready = policy.prepared(batch, method, group=G, reference=jnp.asarray(REFERENCE))
    np.testing.assert_allclose(ready.advantages[:, 0], advantages.flatten().numpy(), atol=1e-6)
    ours = lambda new: policy.loss(TokenScores(new, new), ready, method, kl_weight=beta)[0].mean
    loss, gradient = jax.value_and_grad(ours)(jnp.asarray(NEW))
    expected, expected_gradient = theirs(name, advantages.flatten().numpy())
    np.testing.assert_allclose(float(loss), expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, expected_gradient, atol=1e-6)
