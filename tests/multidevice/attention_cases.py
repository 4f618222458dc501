"""With 8 simulated devices: the TPU kernel (interpreted) and sequence-sharded attention agree with plain attention."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import config, sharding
from lm.errors import UserError
from lm.models import attention
from lm.models.kernels import cudnn, splash
from lm.models.mask import Mask

T, HEADS = 512, (4, 2, 32)  # query heads, key-value heads, head dimension
MESHES = {
    "one device": None,
    "rows and heads": config.Mesh(data=2, fsdp=2, tensor=2),
    "sequence": config.Mesh(data=1, fsdp=2, sequence=2, tensor=2),
}
MASKS = {
    "causal": dict(causal=True),
    "causal window": dict(causal=True, window=100),
    "both ways": dict(),
    "both ways, window": dict(window=100),
    "prefix": dict(causal=True, prefix=True),
    "prefix, window": dict(causal=True, prefix=True, window=100),
    "soft cap": dict(causal=True, softcap=5.0),
    "cross": dict(keys=256),
    "one key head": dict(causal=True, kv_heads=1),
    "blocks": dict(blocks=16),
}


def inputs(keys=T, causal=False, prefix=False, kv_heads=HEADS[1], blocks=0, **how):
    """Four rows of packed documents and padding; each document begins with a bidirectional prefix, or is a text and its noised
    copy in blocks of so many tokens."""
    rng = np.random.default_rng(0)
    n, k, h = HEADS[0], kv_heads, HEADS[2]
    arrays = [rng.normal(size=(4, *shape)).astype(np.float32) for shape in ((T, n, h), (keys, k, h), (keys, k, h), (T, n, h))]
    ends = np.sort(rng.choice(np.arange(1, 8) * 61, (4, 3)), axis=1)
    place = np.arange(T)
    segments = 1 + (place[None, :, None] >= ends[:, None]).sum(-1)
    segments = np.where(place < 480, segments, 0).astype(np.int32)
    starts = np.concatenate([np.zeros((4, 1), int), ends], 1)
    known = place[None] - np.take_along_axis(starts, np.maximum(segments - 1, 0), 1) < 20 if prefix else None
    mask = Mask(segments, segments[:, :keys], known, causal=causal)
    if blocks:
        within = place[None] - np.take_along_axis(starts, np.maximum(segments - 1, 0), 1)
        half = np.take_along_axis(np.diff(starts, append=480), np.maximum(segments - 1, 0), 1) // 2
        number = np.where(within < half, 2 * (within // blocks) + 1, 2 * ((within - half) // blocks)).astype(np.int32)
        mask = mask.replace(q_blocks=number, k_blocks=number)
    return arrays, mask, dict(scale=0.2, **how)


def both(fn, arrays, mask, how, mesh):
    """The output and the gradients of q, k and v, at positions that are not padding and attend to something."""
    *qkv, weights = arrays
    sees = (mask.q_segments > 0) & np.asarray(mask.dense(how.get("window"))).any(-1)
    weights = weights * sees[..., None, None]

    def total(qkv, mask):
        y = fn(*qkv, mask=mask, **how)
        return jnp.sum(y * weights), y

    run = jax.jit(jax.value_and_grad(total, has_aux=True))
    if mesh is None:
        (_, y), grads = run(qkv, mask)
    else:
        with sharding.use(sharding.make_mesh(mesh)):
            (_, y), grads = run(qkv, mask)
    return [np.asarray(x) for x in (y * (weights != 0), *grads)]


PLACES = [(name, "sequence") for name in MASKS] + [("causal", "one device"), ("prefix", "rows and heads")]


@pytest.mark.parametrize(("name", "place"), PLACES)
def test_the_kernel_gives_what_plain_attention_gives(name, place, monkeypatch):
    monkeypatch.setattr(splash, "INTERPRET", True)
    case = inputs(**MASKS[name])
    ours = both(splash.attend, *case, MESHES[place])
    plain = both(attention.attend, *case, None)
    for a, b in zip(ours, plain, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("name", ["causal", "causal window", "prefix", "both ways"])
def test_the_backward_kernel_may_load_several_tiles_of_keys_at_once(name, monkeypatch):
    monkeypatch.setattr(splash, "INTERPRET", True)
    monkeypatch.setattr(splash, "TILES", (128,))
    case = inputs(**MASKS[name])
    plain = both(attention.attend, *case, None)
    loaded, make = [], splash.kernels.BlockSizes
    monkeypatch.setattr(splash.kernels, "BlockSizes", lambda **sizes: loaded.append(sizes["block_kv_dkv"]) or make(**sizes))
    for parts in (1, 2, 32):
        monkeypatch.setattr(splash, "PARTS", parts)
        for a, b in zip(both(splash.attend, *case, None), plain, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-5)
    assert sorted(set(loaded)) == [128, 256, 512]


@pytest.mark.parametrize(("keep", "times"), [((), 2), (("attention",), 1)])
def test_the_kernel_runs_once_if_its_output_is_kept(keep, times):
    (q, k, v, _), mask, how = inputs(causal=True)
    policy = jax.checkpoint_policies.save_only_these_names(*keep)
    layer = jax.checkpoint(lambda q: jnp.sum(splash.attend(q, k, v, mask=mask, **how) ** 2), policy=policy)
    lowered = jax.jit(jax.value_and_grad(layer)).trace(q).lower(lowering_platforms=("tpu",)).as_text()
    assert len(re.findall(r'kernel_name = "splash_mha_fwd', lowered)) == times


@pytest.mark.parametrize("name", ["causal", "causal window", "prefix", "cross", "one key head", "blocks"])
def test_what_is_asked_of_a_gpus_kernel_is_the_same_on_several_devices(name, monkeypatch):
    """As XLA computes it; a row on several devices is refused."""
    of_jax = jax.nn.dot_product_attention
    monkeypatch.setattr(jax.nn, "dot_product_attention", lambda *qkv, implementation, **how: of_jax(*qkv, **how))
    case = inputs(**MASKS[name])
    ours = both(cudnn.attend, *case, MESHES["rows and heads"])
    for a, b in zip(ours, both(attention.attend, *case, None), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    with pytest.raises(UserError, match="needs whole rows on a device"):
        both(cudnn.attend, *case, MESHES["sequence"])


@pytest.mark.parametrize("name", MASKS)
def test_plain_attention_is_the_same_with_a_row_on_several_devices(name):
    case = inputs(**MASKS[name])
    spread = both(attention.attend, *case, MESHES["sequence"])
    for a, b in zip(spread, both(attention.attend, *case, None), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)


@pytest.mark.parametrize("parts", [1, 2, 3, 8])
def test_the_zigzag_gives_each_device_an_early_and_a_late_part(parts):
    even, odd = splash._zigzag_chunks(parts)
    assert sorted(even + odd) == list(range(2 * parts))
    assert all(sorted(pair) == [i, 2 * parts - 1 - i] for i, pair in enumerate(zip(even, odd, strict=True)))


@pytest.mark.parametrize("window", [None, 1, 5, 16, 100])
@pytest.mark.parametrize(("causal", "parts"), [(True, 1), (True, 2), (False, 1)])
def test_corners_say_of_every_tile_what_its_places_say(window, causal, parts):
    """With 64 queries, in their order or zigzag order, and 64 keys, in tiles of 8 x 4."""
    if window is None and not causal:
        return  # it has no static mask
    row = np.ones((1, 64), np.int32)
    mask = splash._static_mask(Mask(row, row, causal=causal), 64, 64, window, parts)
    whole = mask.mask_function(mask.q_sequence[:, None], np.arange(64)[None])
    kinds = set()
    for i in range(0, 64, 8):
        for j in range(0, 64, 4):
            tile = mask[slice(i, i + 8), slice(j, j + 4)]
            np.testing.assert_array_equal(tile, whole[i : i + 8, j : j + 4])
            kinds.add("mixed" if tile.flags.writeable else bool(tile.all()))
    assert {"mixed", False} <= kinds and (window in (1, 5) or True in kinds)


def test_lengths_that_the_kernel_cannot_take_are_named():
    (q, k, v, _), mask, how = inputs()
    with pytest.raises(UserError, match=r"queries in multiples of 128, not 200: change data.\*_length, or set"):
        splash.attend(q[:, :200], k, v, mask=mask, **how)
