"""Recurrent layers: equal to torch's and to their equations token by token; documents of a row do not see each other."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm import config, flops
from lm.config import Attention, Block, GatedLinear, Gru, Head, Lstm, Mamba2, Mlp, Model, Rope, Sampling, Stack
from lm.errors import UserError
from lm.generation.engine import Engine, Request
from lm.losses.cross_entropy import cross_entropy
from lm.models.block import MIXERS
from lm.models.context import Context
from lm.models.mask import Mask
from lm.models.mixers.common import Recurrent
from lm.models.transformer import Transformer, head_params, stack_groups
from lm.recipes.pretrain import objective_of
from lm.types import Example
from tests.unit.models.small import D, T, V, close, decoder, example_for, logits, random_stream, start, stream

KINDS = {
    "lstm": Lstm(hidden=12),
    "gru": Gru(),
    "gated_linear": GatedLinear(num_heads=2, bias=True),
    "mamba2": Mamba2(hidden=32, head_dim=8, state=4, groups=2, chunk=4),
}
SEGMENTS = np.array([[1, 1, 1, 1, 2, 2, 2, 2, 2, 0], [0, 1, 1, 2, 3, 3, 3, 3, 0, 0]], np.int32)
# Two runs of the test suite's random parameters forget at once; these remember several tokens.
slow = lambda path, x: 0.3 * x - 4 if path[-1].key == "decay" and "decay_gate" not in str(path) else x


def of(mixer, **changes) -> Model:
    return decoder(Block(None, Mlp(24), mixer=mixer), num_layers=1, **changes)


def alone(mixer, x, segments, seed=0):
    """(apply, parameters): the layer by itself, with random parameters."""
    module = MIXERS[type(mixer)](mixer)
    context = Context(Mask(segments, segments), np.zeros_like(segments))
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), x, context))["params"]
    rng = np.random.default_rng(seed)
    params = jax.tree.map(lambda leaf: jnp.asarray(0.4 * rng.normal(size=leaf.shape), jnp.float32), shapes)
    params = jax.tree_util.tree_map_with_path(slow, params) if isinstance(mixer, GatedLinear) else params
    return jax.jit(lambda p, x: module.apply({"params": p}, x, context)), params


# ------------------------------------------------------------------------------------------------------- torch


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("kind", [Lstm, Gru])
def test_outputs_and_gradients_are_those_of_torch(kind, direction):
    """The units of each direction are written beside each other, as torch does; the second row is shorter than the first."""
    torch = pytest.importorskip("torch")
    H, width, lengths, rng = 5, 10, (9, 6), np.random.default_rng(1)
    torch.manual_seed(0)
    theirs = (torch.nn.LSTM if kind is Lstm else torch.nn.GRU)(width, H, batch_first=True, bidirectional=True)
    x, weight = (rng.normal(size=(2, 9, size)).astype(np.float32) for size in (width, width))
    segments = (np.arange(9) < np.array(lengths)[:, None]).astype(np.int32)
    apply, params = alone(kind(hidden=H, direction=direction), x, segments)
    names = {"forward": "", "backward": "_reverse"}
    for way in params:
        params[way] = from_torch(theirs, names[way], H) | {"out": {"kernel": jnp.eye(H, width, H * (way == "backward"))}}
    loss = lambda p, x: (jnp.sum(jnp.sin(apply(p, x)) * weight * segments[..., None]), apply(p, x))
    grads, y = jax.grad(loss, argnums=(0, 1), has_aux=True)(params, jnp.asarray(x))

    given = torch.tensor(x, requires_grad=True)
    packed = torch.nn.utils.rnn.pack_padded_sequence(given, lengths, batch_first=True)
    wanted, _ = torch.nn.utils.rnn.pad_packed_sequence(theirs(packed)[0], batch_first=True)
    used = np.array([[way in params] * H for way in names]).reshape(-1)
    (torch.sin(wanted) * torch.tensor(weight * segments[..., None] * used)).sum().backward()
    close(np.where(segments[..., None] > 0, y, 0), wanted.detach().numpy() * used, 1e-6)
    close(grads[1], given.grad.numpy(), 2e-6)
    for way in params:
        del grads[0][way]["out"]
        jax.tree.map(partial(close, atol=1e-5), grads[0][way], from_torch(theirs, names[way], H, grad=True))


def from_torch(module, name: str, H: int, *, grad: bool = False) -> dict:
    """Our parameters of one direction of theirs, or their gradients. Of an LSTM's two biases, which are added, ours is the sum;
    a gradient is the same for both."""
    read = lambda kind: getattr(module, f"{kind}_l0{name}")
    of = lambda kind: (read(kind).grad if grad else read(kind)).detach().numpy()
    kernel = lambda kind: jnp.asarray(of(kind).reshape(-1, H, of(kind).shape[1]).transpose(2, 0, 1))
    first, second = (of(kind).reshape(-1, H) for kind in ("bias_ih", "bias_hh"))
    tree = {"in": {"kernel": kernel("weight_ih")}, "recurrent": {"kernel": kernel("weight_hh")}}
    if len(first) == 4:
        return tree | {"bias": first if grad else first + second}
    both = first if grad else np.stack([*(first + second)[:2], first[2]])
    return tree | {"bias": both, "recurrent_bias": second[2]}


# -------------------------------------------------------------------------------------- the equations, token by token


def silu(x):
    return x / (1 + np.exp(-x))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(x))


def convolved(p, inputs):
    """The last input's convolution with those before it, of one document [n, ...]."""
    taps = p["taps"][-len(inputs) :]
    return p["bias"] + sum(tap * x for tap, x in zip(taps, inputs[-len(taps) :], strict=True))


def gated_linear(p, document):
    """arXiv 2402.19427, equations 1 to 4, and section 2.3's block."""
    h, inputs, out = 0.0, [], []
    for x in document:
        inputs.append(x @ p["up"]["kernel"] + p["up"]["bias"])
        u = convolved(p["conv"], np.array(inputs))
        gate = lambda q, u=u: sigmoid(
            np.einsum("ni,nij->nj", u.reshape(len(q["bias"]), -1), q["blocks"]["kernel"]).reshape(-1) + q["bias"].reshape(-1)
        )
        a = np.exp(-8 * softplus(p["decay"]) * gate(p["decay_gate"]))
        first = len(inputs) == 1
        h = (0 if first else a * h) + (1 if first else np.sqrt(1 - a**2)) * gate(p["input_gate"]) * u
        g = x @ p["gate"]["kernel"] + p["gate"]["bias"]
        branch = 0.5 * g * (1 + np.tanh(np.sqrt(2 / np.pi) * (g + 0.044715 * g**3)))
        out.append((branch * h) @ p["out"]["kernel"] + p["out"]["bias"])
    return out


def mamba2(p, document):
    """arXiv 2405.21060, section 2.1 with a scalar A for each head, and section 7's block."""
    state, made, out = 0.0, {"up": [], "b": [], "c": []}, []
    for x in document:
        for name in made:
            made[name].append(np.tensordot(x, p[name]["kernel"], 1))
        u, b, c = (silu(convolved(p[f"{name}_conv"], np.array(made[name]))) for name in made)
        heads, groups = len(u), len(b)
        b, c = (np.repeat(y, heads // groups, axis=0) for y in (b, c))
        step = softplus(x @ p["step"]["kernel"] + p["step_bias"])
        state = state * np.exp(-np.exp(p["decay"]) * step)[:, None, None] + step[:, None, None] * u[..., None] * b[:, None]
        y = (state * c[:, None]).sum(-1) + p["skip"][:, None] * u
        y = (y * silu(np.tensordot(x, p["gate"]["kernel"], 1))).reshape(groups, -1)
        y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-5)
        out.append(np.tensordot(y.reshape(u.shape) * p["scale"], p["out"]["kernel"], 2))
    return out


@pytest.mark.parametrize("name", ["gated_linear", "mamba2"])
def test_outputs_are_those_of_the_equations(name):
    """For each document of packed rows, in float64."""
    x = np.random.default_rng(2).normal(size=(2, T, D)).astype(np.float32)
    apply, params = alone(KINDS[name], x, SEGMENTS)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)["forward"]
    y, reference = np.asarray(apply(params, x)), {"gated_linear": gated_linear, "mamba2": mamba2}[name]
    for row, segments in enumerate(SEGMENTS):
        for document in set(segments[segments > 0]):
            inside = segments == document
            close(y[row, inside], np.array(reference(p, x[row, inside].astype(np.float64))), 1e-5)


# ----------------------------------------------------------------------------------------------- documents and padding


@pytest.mark.parametrize("direction", ["forward", "backward", "both"])
@pytest.mark.parametrize("name", KINDS)
def test_documents_of_a_row_do_not_see_each_other(name, direction):
    """What another document or padding holds changes not a bit of the first, also of its gradients; alone it has the same
    outputs up to rounding."""
    x = np.random.default_rng(3).normal(size=(2, T, D)).astype(np.float32)
    apply, params = alone(replace(KINDS[name], direction=direction), x, SEGMENTS)
    of_two = jax.jit(lambda x: jax.vjp(partial(apply, params), x)[1](jnp.asarray(x * (SEGMENTS == 2)[..., None]))[0])
    y, mine = np.asarray(apply(params, x)), SEGMENTS == 2
    other = np.where(mine[..., None], x, np.random.default_rng(4).normal(size=x.shape)).astype(np.float32)
    np.testing.assert_array_equal(np.asarray(apply(params, other))[mine], y[mine])
    assert not np.asarray(of_two(x))[~mine].any()
    assert np.abs(np.asarray(apply(params, other))[~mine] - y[~mine]).max() > 0.1
    for row in range(2):
        document = x[row : row + 1, mine[row]]
        single, _ = alone(replace(KINDS[name], direction=direction), document, np.ones(document.shape[:2], np.int32))
        close(np.asarray(single(params, document))[0], y[row, mine[row]], 1e-5)


def test_a_layer_backward_reads_the_reversed_row():
    x, ones = np.random.default_rng(5).normal(size=(1, 7, D)).astype(np.float32), np.ones((1, 7), np.int32)
    forward, params = alone(Lstm(), x, ones)
    backward, _ = alone(Lstm(direction="backward"), x, ones)
    close(backward({"backward": params["forward"]}, x[:, ::-1])[:, ::-1], forward(params, x), 1e-6)


@pytest.mark.parametrize("name", KINDS)
def test_a_state_goes_on_over_padding_and_into_the_next_call(name):
    """Prompts of different lengths in one bucket, then tokens in twos; the second row goes on in the middle of a chunk."""
    model = of(KINDS[name])
    module, params = start(model)
    whole = logits(model, params, example_for(model))
    s, sizes = example_for(model).decoder, np.array([5, 3])

    def call(cache, tokens, segments):
        part = stream(tokens, segments)
        settings = dict(cache_length=16, method="decode", mutable=["cache"])
        hidden, cache = module.apply({"params": params} | cache, part, **settings)
        return cache, np.asarray(module.apply({"params": params}, hidden, method="logits"))

    bucket = (np.arange(8) < sizes[:, None]).astype(np.int32)
    cache, out = call({}, np.where(bucket, s.tokens[:, :8], 7), bucket)
    for row, size in enumerate(sizes):
        close(out[row, :size], whole[row, :size])
    for i in range(2):
        at = sizes[:, None] + 2 * i + np.arange(2)
        cache, out = call(cache, np.take_along_axis(s.tokens, at, 1), np.ones((2, 2), np.int32))
        close(out, np.take_along_axis(whole, at[..., None], 1))


@pytest.mark.parametrize("name", KINDS)
def test_scanned_and_recomputed_layers_are_the_same(name):
    unrolled = of(KINDS[name])
    unrolled = replace(unrolled, decoder=replace(unrolled.decoder, num_layers=2))
    scanned = replace(unrolled, decoder=replace(unrolled.decoder, scan=True, remat="full"))
    _, params = start(unrolled)
    example = example_for(unrolled)
    loss = lambda model, p: jnp.mean(jnp.sin(Transformer(model).apply({"params": p}, example)))
    value, grads = jax.jit(jax.value_and_grad(partial(loss, unrolled)))(params)
    other, others = jax.jit(jax.value_and_grad(partial(loss, scanned)))(stack_groups(params))
    close(other, value, 1e-6)
    jax.tree.map(lambda a, b: close(a, b, 1e-6), others, stack_groups(grads))


def test_bfloat16_carries_its_state_in_float32():
    model = of(KINDS["mamba2"], dtype="bfloat16")
    module, params = start(model)
    example = example_for(model)
    half, whole = logits(model, params, example), logits(replace(model, dtype="float32"), params, example)
    assert 0 < np.abs(half - whole).max() < 0.05 * np.abs(whole).max()
    step = lambda p: module.apply({"params": p}, example.decoder, cache_length=T, method="decode", mutable=["cache"])[1]
    mixer = jax.eval_shape(step, params)["cache"]["decoder"]["group_0"]["block_0"]["mixer"]
    assert mixer["forward"]["state"].dtype == jnp.float32


# ------------------------------------------------------------------------------------------------------------- FLOPs


@pytest.mark.parametrize("name", [*KINDS, "both"])
def test_as_many_flops_as_xla_counts(name, monkeypatch):
    """XLA counts a loop's body once, so that the loop over tokens is unrolled. Half of a chunk is not seen, and counted. With
    few rows, the sums of the gradients of a recurrent matrix over tokens would count too."""
    sizes = dict(hidden=512)
    mixer = dict(
        lstm=Lstm(512),
        gru=Gru(384),
        gated_linear=GatedLinear(num_heads=2, **sizes),
        mamba2=Mamba2(**sizes, head_dim=64, state=64, chunk=64),
        both=Lstm(direction="both"),
    )[name]
    length = 8 if isinstance(mixer, Lstm | Gru) else 128
    monkeypatch.setattr("lm.models.mixers.lstm.jax.lax.scan", partial(jax.lax.scan, unroll=True))
    stack = Stack(1, {"L": Block(mixer=mixer, norm=config.Norm("rms"))})
    both = name == "both"
    model = Model(256, 512, **{"encoder" if both else "decoder": stack})
    row = random_stream(length=length, batch=16)
    zeros = np.zeros_like(row.tokens)
    example = Example(row if both else None, None if both else row, zeros, zeros.astype(np.float32))
    module = Transformer(model)
    params = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), example))["params"]
    loss = lambda p: cross_entropy(p, module.apply, example, head_params=head_params, vocab_size=256, chunks=1).total
    xla = jax.jit(jax.grad(loss)).lower(params).cost_analysis()["flops"]
    ours = flops.count(model, batch=16, encoder=length, decoder=length, causal_share=1.0)
    assert ours.train == pytest.approx(xla, rel=0.02) and ours.mixer > ours.head > 0


def test_adapters_are_counted_beside_the_matrices_that_have_them():
    model = of(GatedLinear())
    count = lambda *modules: flops.count(model, batch=2, decoder=T, lora=config.Lora(rank=3, modules=modules)).adapters
    tokens = 2 * 2 * T * 3
    assert count("gate") == tokens * (D + D + D + 24) - tokens * (D + 24)  # the feed-forward has none of this name
    assert count("forward/up", "up") == tokens * (D + D + D + 24)


# ----------------------------------------------------------------------------------------------------------- refusals


def test_what_cannot_be_is_refused_in_one_line():
    attention, mixer = Attention(4), Lstm()
    refused = {
        "set one of them": lambda: Block(),
        "leave attention out": lambda: Block(attention, mixer=mixer),
        "set attention for it": lambda: Block(None, Mlp(8), mixer=mixer, cross=True),
        "set parallel=no": lambda: Block(attention, parallel="shared"),
        "direction=both reads what a decoder has yet to write": lambda: of(Lstm(direction="both")),
        "direction=backward reads what": lambda: of(Mamba2(direction="backward")),
        "num_heads=3 does not divide 16 units": lambda: of(GatedLinear(num_heads=3)),
        "which make no heads of head_dim=64": lambda: of(Mamba2(hidden=96)),
        "position of kind 'rope' is for self-attention": lambda: of(mixer, position=Rope()),
        "rules for attention with a feed-forward": lambda: widened(replace(of(mixer), width=32)),
    }
    for said, make in refused.items():
        with pytest.raises(UserError, match=said) as error:
            make()
        assert "\n" not in str(error.value)


def widened(model):
    from lm.config.widening import widened

    return widened(model, 16)


def test_a_decoder_whose_tokens_see_ahead_has_no_recurrent_layer():
    model = of(Lstm())
    module, params = start(model)
    example = Example(None, random_stream(prefix=np.ones((2, T), bool)), None, None)
    with pytest.raises(UserError, match="reads from left to right, .* take a causal objective"):
        module.apply({"params": params}, example)


@pytest.mark.parametrize("objective", [config.Prefix(), config.MaskedDiffusion(), config.BlockDiffusion(block=4)])
def test_objectives_by_which_a_decoder_sees_ahead_are_refused(objective):
    special = np.arange(V) < 8
    vocabulary = SimpleNamespace(vocab_size=V, bos_id=1, eos_id=2, mask_id=3, sentinel_ids=(4, 5), special=special)
    run = config.Run(of(Lstm()), config.Data(decoder_length=16), objective)
    with pytest.raises(UserError, match="lets a decoder's tokens see some that come after them"):
        objective_of(run, vocabulary)
    assert objective_of(replace(run, objective=config.Causal()), vocabulary)


def test_guesses_are_refused():
    model = of(Gru())
    with pytest.raises(UserError, match="cannot go back to an earlier state: leave out guesses"):
        Engine(*start(model), slots=1, length=8, guesses=2)


def test_an_engine_reads_prompts_anew_that_it_could_not_go_back_in():
    model = start(of(Lstm(), head=Head(tied=False)))
    engine = Engine(*model, slots=1, length=16, reuse=True)
    prompt = np.array([3, 4, 5, 6], np.int32)
    for _ in range(2):
        engine.write([Request(prompt, 3, Sampling(temperature=0.0))])
    assert engine.prefilled == 8


def test_the_registry_has_every_recurrent_layer():
    assert {type(k) for k in KINDS.values()} <= {k for k, make in MIXERS.items() if getattr(make, "func", None) is Recurrent}
    assert V > 20
