"""Attention by cuDNN without a GPU: what is asked of `jax.nn`, computed by XLA, against plain attention; the CUDA program."""

import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from lm import config
from lm.config import Attention, Block, Mlp, Model, Rope, Stack
from lm.errors import UserError
from lm.models import attention
from lm.models.kernels import cudnn
from lm.models.mask import Mask
from lm.models.transformer import remat_policy, with_kernel
from lm.objectives import Lengths
from lm.training.assembly import with_chosen_kernel

B, T, N, K, H = 2, 16, 4, 2, 8
MASKS = {
    "causal": dict(causal=True),
    "window": dict(causal=True, window=3),
    "both ways": dict(),
    "both ways, window": dict(window=4),
    "prefix": dict(causal=True, prefix=True),
    "blocks": dict(blocks=True),
    "cross": dict(keys=10),
}


def inputs(keys=T, causal=False, prefix=False, blocks=False, window=None):
    """Rows of two documents and padding."""
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(size=(B, n, h, H)), jnp.float32) for n, h in ((T, N), (keys, K), (keys, K)))
    segments = np.array([[1] * 7 + [2] * 6 + [0] * 3, [1] * 12 + [2] * 4], np.int32)
    begun = np.arange(T)[None] % 7 < 3
    mask = Mask(segments, segments[:, :keys], begun if prefix else None, causal=causal)
    if blocks:
        number = np.broadcast_to((np.arange(T) // 4).astype(np.int32), (B, T))
        mask = mask.replace(q_blocks=number, k_blocks=number)
    return (q, k, v), dict(mask=mask, scale=0.3, window=window)


@pytest.mark.parametrize("name", MASKS)
def test_what_is_asked_of_the_kernel_is_plain_attention(name, monkeypatch):
    """Outputs and gradients where a query sees a key, as XLA computes them for the same arguments."""
    asked = []

    def by_xla(*arrays, implementation, **options):
        asked.append((implementation, options["is_causal"]))
        return attention_of_jax(*arrays, implementation="xla", **options)

    attention_of_jax = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", by_xla)
    arrays, how = inputs(**MASKS[name])
    sees = np.asarray(how["mask"].dense(how["window"])).any(-1)[..., None, None]

    def both(fn):
        return jax.jit(jax.value_and_grad(lambda qkv: jnp.sum(jnp.sin(fn(*qkv, **how)) * sees)))(arrays)

    (ours, d_ours), (plain, d_plain) = both(cudnn.attend), both(attention.attend)
    np.testing.assert_allclose(ours, plain, rtol=1e-5)
    for a, b in zip(d_ours, d_plain, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    assert asked[0] == ("cudnn", name in ("causal", "window"))


def test_the_program_for_cuda_calls_the_kernel_forward_and_backward(monkeypatch):
    """Exported without a GPU; only the version of cuDNN is pretended."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91200)
    block = Block(Attention(N), Mlp(32))
    model = attention.Attention(block.attention, Rope(), dtype="bfloat16", kernel="cudnn")
    x, segments = jnp.ones((B, T, N * H)), jnp.ones((B, T), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(T), (B, T))
    call = partial(model.apply, mask=Mask(segments, segments, causal=True), positions=positions)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), x, mask=Mask(segments, segments)))

    def step(params, x):
        return jax.grad(lambda p: jnp.sum(call(p, x).astype(jnp.float32)))(params)

    names = ("__cudnn$fmhaScaleBiasSoftmax", "__cudnn$fmhaScaleBiasSoftmaxBackward")
    allowed = [jax.export.DisabledSafetyCheck.custom_call(name) for name in names]
    text = jax.export.export(jax.jit(step), platforms=["cuda"], disabled_checks=allowed)(params, x).mlir_module()
    assert all(f"@{name}(" in text or f'"{name}"' in text for name in names), text
    assert f"tensor<{B}x{N}x{T}x{T}xf32>" not in text, "the scores of all heads are stored"


@pytest.mark.parametrize(("keep", "times"), [((), 2), (("attention",), 1)])
def test_the_kernel_runs_once_if_its_output_is_kept(keep, times, monkeypatch):
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91200)
    arrays, how = inputs(causal=True)
    q, k, v = (x.astype(jnp.bfloat16) for x in arrays)
    kept = remat_policy(Stack(1, {"L": Block(Attention(N), Mlp(32))}, remat="full", keep=keep))
    layer = jax.checkpoint(lambda q: jnp.sum(cudnn.attend(q, k, v, **how).astype(jnp.float32) ** 2), policy=kept)
    lowered = jax.jit(jax.value_and_grad(layer)).trace(q).lower(lowering_platforms=("cuda",)).as_text()
    assert len(re.findall(r"custom_call @__cudnn\$fmhaScaleBiasSoftmax\(", lowered)) == times


@pytest.mark.parametrize(
    ("settings", "cause"),
    [
        (dict(dtype="float32"), "computes in bfloat16, and dtype=float32"),
        (dict(softcap=5.0), r"knows no soft cap: set decoder.blocks.L.attention.softcap=None"),
        (dict(head_dim=12), "takes heads of 8, 16, .* up to 256 dimensions, and decoder.blocks.L.attention has 12"),
        (dict(dropout=0.1), "knows neither biases nor dropout, and the decoder has dropout"),
        (dict(position=config.Alibi()), "knows neither biases nor dropout, and the decoder has positions of kind 'alibi'"),
    ],
)
def test_what_the_kernel_lacks_is_refused(settings, cause):
    of_model = {"dtype": settings.pop("dtype", "bfloat16"), "kernel": "cudnn"}
    position = settings.pop("position", None)
    with pytest.raises(UserError, match=cause):
        Model(64, 32, decoder=Stack(1, {"L": Block(Attention(4, **settings), Mlp(32))}, position=position), **of_model)


ANY, A100, H100, TPU = (
    SimpleNamespace(platform=platform, compute_capability=capability)
    for platform, capability in (("cpu", None), ("gpu", "8.0"), ("gpu", "9.0"), ("tpu", None))
)


@pytest.mark.parametrize(
    ("device", "settings", "lengths", "sequence", "kernel"),
    [
        (ANY, {}, (None, 128), 1, "plain"),
        (A100, {}, (None, 128), 1, "cudnn"),
        (A100, {}, (64, 129), 1, "plain"),  # an odd length
        (A100, {}, (None, 128), 2, "plain"),  # rows on several devices
        (A100, dict(dtype="float32"), (None, 128), 1, "plain"),
        (A100, dict(head_dim=256), (None, 128), 1, "plain"),
        (H100, dict(head_dim=256), (None, 128), 1, "cudnn"),
        (TPU, {}, (None, 128), 1, "splash"),
        (TPU, dict(softcap=5.0), (None, 128), 1, "splash"),
        (TPU, dict(dropout=0.1), (None, 128), 1, "plain"),
        (TPU, {}, (128, 192), 1, "plain"),  # no tile of 128 divides it
        (TPU, {}, (None, 256), 2, "plain"),  # nor the four parts of a row
        (TPU, {}, (None, 512), 2, "splash"),
    ],
)
def test_the_kernel_of_the_devices_is_chosen_where_it_takes_the_model_and_its_rows(device, settings, lengths, sequence, kernel):
    dtype, (encoder, decoder) = settings.pop("dtype", "bfloat16"), lengths
    block = Block(Attention(4, **settings), Mlp(32), cross=bool(encoder))
    stacks = dict(decoder=Stack(1, {"L": block}), encoder=Stack(1, {"L": replace(block, cross=False)}) if encoder else None)
    run = config.Run(model=Model(64, 32, dtype=dtype, kernel="auto", **stacks))
    mesh = SimpleNamespace(devices=np.array([device]), shape={"sequence": sequence})
    assert with_chosen_kernel(run, mesh, Lengths(encoder, decoder)).model.kernel == kernel


def test_what_was_asked_for_is_not_replaced():
    run = config.Run(model=Model(64, 32, decoder=Stack(1, {"L": Block(Attention(4), Mlp(32))}), kernel="splash"))
    assert with_chosen_kernel(run, SimpleNamespace(), Lengths(None, 7)) is run


def test_rows_of_an_odd_length_are_refused():
    (q, k, v), how = inputs()
    with pytest.raises(UserError, match="rows of an even length, not 15 and 16"):
        cudnn.attend(q[:, :15], k, v, mask=how["mask"], scale=1.0)


def test_a_model_that_is_read_takes_the_kernel_of_the_run_where_it_can():
    """A teacher in float32 has the plain one beside a student with cuDNN's."""
    made = Model(64, 32, decoder=Stack(1, {"L": Block(Attention(4), Mlp(32))}), dtype="bfloat16")
    assert with_kernel(made, "cudnn").kernel == "cudnn"
    assert with_kernel(replace(made, dtype="float32"), "cudnn").kernel == "plain"
