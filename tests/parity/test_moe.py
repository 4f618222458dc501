"""Our mixture of experts compared with transformers' Mixtral, whose kernels are transposed and whose `gate` is our `up`."""

import jax
import numpy as np
import torch
from transformers import MixtralConfig
from transformers.models.mixtral.modeling_mixtral import MixtralSparseMoeBlock, load_balancing_loss_func

from lm.config import Mlp, Moe
from lm.models import moe


def test_mixtral():
    torch.manual_seed(0)
    theirs = MixtralSparseMoeBlock(
        MixtralConfig(hidden_size=16, intermediate_size=24, num_local_experts=8, num_experts_per_tok=2)
    ).eval()
    for p in theirs.parameters():
        torch.nn.init.normal_(p, std=0.3)
    x = torch.randn(2, 9, 16)
    turned = {name: p.detach().numpy().swapaxes(-1, -2) for name, p in theirs.named_parameters()}
    up, gate = np.split(turned["experts.gate_up_proj"], 2, axis=-1)
    kernels = dict(router=turned["gate.weight"], up=up, gate=gate, down=turned["experts.down_proj"])
    params = {name: {"kernel": kernel} for name, kernel in kernels.items()}
    ours = moe.Moe(Moe(8, 2, Mlp(24, "silu", gated=True)))
    with torch.no_grad():
        np.testing.assert_allclose(jax.jit(ours.apply)({"params": params}, x.numpy()), theirs(x).numpy(), atol=1e-5)


def test_balance_loss_with_padding():
    """Theirs counts an expert's tokens, ours its share of a token's K assignments. Rows of several lengths, one empty."""
    rng, e, k = np.random.default_rng(0), 8, 2
    logits = rng.normal(size=(4, 9, e)).astype(np.float32)
    real = np.arange(9) < np.array([[9], [4], [1], [0]])
    logits[~real] = 3 * np.eye(e, dtype=np.float32)[0]
    theirs = load_balancing_loss_func((torch.tensor(logits.reshape(-1, e)),), e, k, torch.tensor(real.astype(np.int64)))
    shares = jax.nn.softmax(logits)
    ours = jax.jit(moe.balance_loss)(shares, jax.lax.top_k(shares, k)[1], real)
    np.testing.assert_allclose(ours, float(theirs) / k, rtol=1e-5)
