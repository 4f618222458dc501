"""A look into a model: its weights are those that attention uses, its last layer is the model's own answer."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from lm.config import Norm
from lm.generation.vectors import stack_of
from lm.models import attention
from lm.models.transformer import Transformer, stack_groups
from lm.serving.looks import look
from lm.types import TokenStream
from tests.fakes import small_model, small_params

T = 7


def stream(size=T, length=T):
    place = np.arange(length, dtype=np.int32)[None]
    return TokenStream(place % 20 + 3, place, (place < size).astype(np.int32), None)


def deep(architecture, **attention):
    """Two layers, with what changes in their attention."""
    config = small_model(architecture)
    name = stack_of(config)
    stack = getattr(config, name)
    block = replace(stack.blocks["L"], attention=replace(stack.blocks["L"].attention, **attention))
    return replace(config, **{name: replace(stack, num_layers=2, blocks={"L": block}, final_norm=True)})


@pytest.mark.parametrize(
    ("architecture", "changes"),
    [
        ("decoder", {}),
        ("decoder", dict(num_heads=4, num_kv_heads=2, head_dim=4, qk_norm=Norm("rms"), softcap=5.0, window=3)),
        ("encoder", {}),
        ("encoder_decoder", {}),
    ],
)
def test_the_weights_are_those_that_attention_uses(architecture, changes, monkeypatch):
    model = Transformer(deep(architecture, **changes))
    params = small_params(model.config)
    used, attend = [], attention.attend

    def spy(q, k, v, **settings):
        out = attend(q, k, v, **settings)
        used.append((np.asarray(v), np.asarray(out)))
        return out

    method = "encode" if stack_of(model.config) == "encoder" else "decode"
    found = look(model, params, stream(), top=3)
    with monkeypatch.context() as patch:
        patch.setattr(attention, "attend", spy)
        hidden = model.apply({"params": params}, stream(), method=method)
    assert found.attention.shape == (2, changes.get("num_heads", 2), T, T)
    assert np.allclose(found.attention.sum(-1), 1, atol=1e-6)
    for layer, (v, out) in enumerate(used):
        v = np.repeat(v, out.shape[2] // v.shape[2], axis=2)
        assert np.allclose(np.einsum("nts,bsnh->btnh", found.attention[layer], v), out, atol=1e-5)
    last = jax.nn.log_softmax(model.apply({"params": params}, hidden, method="logits"))[0]
    wanted, tokens = jax.lax.top_k(last, 3)
    assert np.allclose(found.log_probs[-1], wanted, atol=1e-5) and np.array_equal(found.tokens[-1], tokens)
    assert not np.allclose(found.log_probs[0], wanted, atol=1e-2)


def test_a_scanned_stack_looks_the_same_and_padding_is_not_read():
    config = deep("decoder")
    scanned = replace(config, decoder=replace(config.decoder, scan=True, remat="dots", keep=("attention",)))
    params = small_params(config)
    stacked = stack_groups(params)
    one, other = look(Transformer(config), params, stream(), top=2), look(Transformer(scanned), stacked, stream(), top=2)
    padded = look(Transformer(config), params, stream(T, 12), top=2)
    assert all(np.allclose(a, b, atol=1e-5) for a, b in zip(one, other, strict=True))
    assert np.allclose(padded.attention[:, :, :T, :T], one.attention, atol=1e-5)
    assert np.allclose(padded.log_probs[:, :T], one.log_probs, atol=1e-5)
