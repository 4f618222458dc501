"""Mixture of experts: compared with loops over experts; its losses; its parameters in configs, FLOPs and optimizers."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm import config, flops, optim
from lm.config import Attention, Block, Head, Mlp, Model, Moe, Rope, Stack, resolve
from lm.errors import UserError
from lm.losses.cross_entropy import cross_entropy, scores, token_losses
from lm.models import moe
from lm.models.layers import ACTIVATIONS
from lm.models.matmul import BLOCK_ROWS, grouped_matmul
from lm.models.transformer import Transformer, head_params, stack_groups
from lm.types import Example, TokenStream

B, T, D, F, E, K, V = 3, 10, 8, 12, 4, 2, 23
GATED, PLAIN = Mlp(F, "silu", gated=True), Mlp(F, "gelu_tanh")
MOE = Moe(E, K, GATED)
EXPERTS = {
    "gated": MOE,
    "plain": replace(MOE, expert=PLAIN),
    "gated, not renormalized": replace(MOE, renormalize=False),
    "one of four": replace(MOE, top_k=1, renormalize=False),
}


def close(a, b, atol=1e-5, rtol=0.0):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=rtol), a, b)


def all_zero(tree):
    return not any(np.any(x) for x in jax.tree.leaves(tree))


def normal(tree, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(scale * rng.normal(size=x.shape), x.dtype), tree)


def params_of(c: Moe):
    x = jax.ShapeDtypeStruct((B, T, D), jnp.float32)
    return normal(nn.unbox(jax.eval_shape(moe.Moe(c).init, jax.random.key(0), x))["params"], scale=0.3)


X = normal(jax.ShapeDtypeStruct((B, T, D), jnp.float32), 1)


@partial(jax.jit, static_argnums=0)
def run(c: Moe, params, x):
    """Returns the output and the router's loss."""
    y, sown = moe.Moe(c).apply({"params": params}, x, mutable=["losses"])
    (loss,) = jax.tree.leaves(sown)
    return y, loss


def by_hand(c: Moe, params, x, kept=None):
    """Applies every expert to every token, weighted if the token chose it and, with `kept` [B, T, E], if it got a slot."""
    probs = jax.nn.softmax(x @ params["router"]["kernel"])
    chosen = probs >= jnp.sort(probs)[..., -c.top_k, None]
    weights = jnp.where(chosen, probs, 0.0)
    if c.renormalize:
        weights /= weights.sum(-1, keepdims=True)
    y = jnp.zeros_like(x)
    for e in range(c.num_experts):
        kernel = lambda name, e=e: params[name]["kernel"][e]
        hidden = ACTIVATIONS[c.expert.activation](x @ kernel("up"))
        if c.expert.gated:
            hidden *= x @ kernel("gate")
        y += weights[..., e, None] * (1.0 if kept is None else kept[..., e, None]) * (hidden @ kernel("down"))
    return y


# ------------------------------------------------------------------------------------------------------------ experts


def output_and_gradients(f, params):
    """f(params, X), and the gradients of the sum of its sines."""

    def total(p, x):
        y = f(p, x)
        return jnp.sum(jnp.sin(y)), y

    (_, y), gradients = jax.jit(jax.value_and_grad(total, argnums=(0, 1), has_aux=True))(params, X)
    return y, gradients


@cache
def looped(c: Moe):
    return output_and_gradients(partial(by_hand, c), params_of(c))


@pytest.mark.parametrize("capacity", [None, 4.0])
@pytest.mark.parametrize("name", EXPERTS)
def test_a_mixture_is_a_loop_over_its_experts(name, capacity):
    """Values and gradients, without a capacity and with one that no expert reaches."""
    c = EXPERTS[name]
    got = output_and_gradients(lambda p, x: run(replace(c, capacity=capacity), p, x)[0], params_of(c))
    close(got, looped(c))


@pytest.mark.parametrize(("capacity", "slots"), [(0.1, 1), (0.4, 2), (0.75, 4)])
def test_tokens_over_the_capacity_are_dropped_in_their_order(capacity, slots):
    c = replace(MOE, capacity=capacity)
    params = params_of(c)
    logits = np.asarray(X @ params["router"]["kernel"])
    kept = np.zeros((B, T, E), np.float32)
    for b in range(B):
        free = [slots] * E
        for t in range(T):
            for e in np.argsort(logits[b, t])[-K:]:
                kept[b, t, e] = free[e] > 0
                free[e] -= 1
    assert 0 < kept.sum() < B * T * K
    close(run(c, params, X)[0], jax.jit(by_hand, static_argnums=0)(c, params, X, kept))


def test_all_tokens_to_one_expert():
    """The worst case for sorting: one group with all rows, the others empty."""
    params = params_of(c := replace(MOE, top_k=1))
    params["router"]["kernel"] = jnp.zeros((D, E)).at[:, 2].set(100.0)
    x = jnp.abs(X)
    close(run(c, params, x)[0], jax.jit(by_hand, static_argnums=0)(c, params, x))


def test_grouped_matmul():
    """Values and gradients, with groups longer than a block and empty ones."""
    sizes = np.array([2 * BLOCK_ROWS + 3, 0, BLOCK_ROWS, 7, 0])
    owner = np.repeat(np.arange(5), sizes)
    x, w = normal((jax.ShapeDtypeStruct((len(owner), 6), jnp.float32), jax.ShapeDtypeStruct((5, 6, 4), jnp.float32)))
    plain = lambda x, w: jnp.einsum("mi,mio->mo", x, w[owner])
    ours = lambda x, w: grouped_matmul(x, w, sizes)
    close(jax.jit(ours)(x, w), jax.jit(plain)(x, w))
    gradient = lambda f: jax.jit(jax.grad(lambda x, w: jnp.sum(jnp.sin(f(x, w))), argnums=(0, 1)))(x, w)
    close(gradient(ours), gradient(plain))


@pytest.mark.parametrize("capacity", [None, 1.0])
def test_bfloat16(capacity):
    """Experts compute in bfloat16 and the router in float32, so that it chooses the experts of a float32 model."""
    c = replace(MOE, capacity=capacity)
    params = params_of(c)
    y, loss = jax.jit(lambda p, x: moe.Moe(c, dtype="bfloat16").apply({"params": p}, x, mutable=["losses"]))(params, X)
    exact, exact_loss = run(c, params, X)
    assert y.dtype == jnp.bfloat16
    close(y.astype(jnp.float32), exact, atol=0.05 * float(jnp.abs(exact).max()))
    close(jax.tree.leaves(loss)[0], exact_loss, 1e-6)


# ------------------------------------------------------------------------------------------------------------- losses


def test_balance_loss():
    """1 if the load is uniform, E if one expert gets all tokens, otherwise by the formula."""
    even = jnp.full((B, 8, E), 1 / E)
    turns = jnp.broadcast_to(jnp.stack([jnp.arange(8) % E, (jnp.arange(8) + 1) % E], -1), (B, 8, 2))
    balance = jax.jit(moe.balance_loss)
    close(balance(even, turns), 1.0, 1e-6)
    close(balance(jax.nn.one_hot(jnp.zeros((B, T), int), E), jnp.zeros((B, T, 1), int)), E, 1e-6)
    shares = np.asarray(jax.nn.softmax(normal(jax.ShapeDtypeStruct((B, T, E), jnp.float32), 2)))
    chosen = np.argsort(shares)[..., -K:]
    f = np.bincount(chosen.ravel(), minlength=E) / chosen.size
    close(balance(shares, chosen), E * sum(f[e] * shares[..., e].mean() for e in range(E)), 1e-5)


def test_router_losses_are_weighted_and_sown():
    params = params_of(c := replace(MOE, balance=0.3, z=0.7))
    logits = np.asarray(X @ params["router"]["kernel"], np.float64)
    z = np.mean(np.log(np.exp(logits).sum(-1)) ** 2)
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    f = np.bincount(np.argsort(shares)[..., -K:].ravel(), minlength=E) / (B * T * K)
    close(run(c, params, X)[1], 0.3 * E * np.sum(f * shares.mean((0, 1))) + 0.7 * z)
    close(run(replace(c, z=0.0, capacity=0.1), params, X)[1], 0.3 * E * np.sum(f * shares.mean((0, 1))))
    params["router"]["kernel"] = jnp.zeros((D, E))
    close(run(replace(c, z=0.0), params, X)[1], 0.3, 1e-6)


def test_router_losses_are_means_over_the_text():
    """The losses of a padded batch are those of its tokens in one row, whatever the padding holds."""
    params = params_of(c := replace(MOE, balance=0.3, z=0.7))
    token_mask = np.random.default_rng(3).random((B, T)) < 0.5
    loss = jax.jit(
        lambda p, x, token_mask: jax.tree.leaves(moe.Moe(c).apply({"params": p}, x, token_mask, mutable=["losses"])[1])[0]
    )
    text = X[token_mask][None]
    expected = loss(params, text, np.ones(text.shape[:2], bool))
    for padding in (0.0, 1.0, 1e4):
        close(loss(params, jnp.where(token_mask[..., None], X, padding), token_mask), expected, rtol=1e-5)
    value, gradient = jax.jit(jax.value_and_grad(loss))(params, X, np.zeros_like(token_mask))
    assert value == 0 and all_zero(gradient), "no text: nothing to balance"


def test_padding_takes_no_place_of_an_expert():
    """Padding takes no slot, before or after the tokens; its own output is 0."""
    params = params_of(c := replace(MOE, capacity=0.4))
    mixture = jax.jit(lambda x, token_mask: moe.Moe(c).apply({"params": params}, x, token_mask))
    text, n = X[:, :6], T - 6
    behind, front = (jnp.pad(text, ((0, 0), pad, (0, 0)), constant_values=0.5) for pad in ((0, n), (n, 0)))
    token_mask = np.broadcast_to(np.arange(T) < 6, (B, T))
    expected = mixture(behind, token_mask)
    close(expected[:, :6], mixture(behind, np.ones_like(token_mask))[:, :6], 0.0)  # behind, it never took one
    assert (expected[:, 6:] == 0).all() and (expected[:, :6] != 0).any()
    close(mixture(front, token_mask[:, ::-1])[:, n:], expected[:, :6])
    assert not np.allclose(mixture(front, np.ones_like(token_mask))[:, n:], expected[:, :6], atol=1e-3)


def model_of(*, layers=4, capacity=None, balance=0.5, z=0.2, **stack) -> Model:
    """A pattern of a plain layer and one with experts, repeated twice; with layers=2 once, where depth does not matter."""
    experts = replace(MOE, balance=balance, z=z, capacity=capacity)
    blocks = {"L": Block(Attention(2), PLAIN), "M": Block(Attention(2), experts)}
    return Model(V, D, decoder=Stack(layers, blocks, "LM", position=Rope(), **stack), head=Head())


def batch() -> Example:
    tokens = np.random.default_rng(0).integers(1, V, (B, T + 1)).astype(np.int32)
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    weights = (np.arange(T) < np.array([[T], [4], [1]])).astype(np.float32)
    stream = TokenStream(tokens[:, :-1], positions, weights.astype(np.int32))
    return jax.tree.map(jnp.asarray, Example(None, stream, tokens[:, 1:], weights))


@cache
def start(model: Model):
    shapes = nn.unbox(jax.eval_shape(Transformer(model).init, jax.random.key(0), batch()))
    assert set(shapes) == {"params"}, "an init gives parameters alone, no losses"
    return normal(shapes["params"], scale=0.3)


def loss_of(model: Model):
    return lambda p: cross_entropy(p, Transformer(model).apply, batch(), head_params=head_params, vocab_size=V).total


def test_the_loss_takes_what_routers_sow():
    model, example = model_of(), batch()
    params, apply = start(model), Transformer(model).apply
    _, sown = jax.jit(lambda p: apply({"params": p}, example, mutable=["losses"]))(params)
    sown = jax.tree.leaves(sown)
    assert len(sown) == 2 and all(x.shape == () and x.dtype == jnp.float32 and x > 0.5 for x in sown)
    found = jax.jit(lambda p: scores(p, apply, example, head_params=head_params, vocab_size=V))(params)
    expected = found["loss"].total + example.weights.sum() * sum(sown)
    close(jax.jit(loss_of(model))(params), expected, rtol=1e-6)


def test_a_model_without_experts_has_its_old_loss():
    model, example = Model(V, D, decoder=Stack(2, {"L": Block(Attention(2), PLAIN)}, position=Rope())), batch()
    params, apply = start(model), Transformer(model).apply
    logits = jax.jit(lambda p: apply({"params": p}, example))(params)
    expected = jnp.sum(example.weights * token_losses(logits, example.targets))
    close(jax.jit(loss_of(model))(params), expected, rtol=1e-6)


@cache
def unrolled():
    """Parameters, and the loss and gradient of the unrolled model."""
    params = start(model := model_of())
    return params, *jax.jit(jax.value_and_grad(loss_of(model)))(params)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_scanned_is_unrolled(remat):
    """The loss, which includes the routers', and gradients."""
    params, value, gradient = unrolled()
    scanned = jax.jit(jax.value_and_grad(loss_of(model_of(scan=True, remat=remat))))(stack_groups(params))
    close(scanned, (value, stack_groups(gradient)), atol=1e-4, rtol=1e-4)
    close(jax.jit(loss_of(model_of(remat=remat)))(params), value, rtol=1e-6)


@pytest.mark.parametrize(("ffn", "capacity"), [("experts", 2.0), ("experts", None), ("ffn", None)])
def test_what_is_kept_is_not_computed_again(ffn, capacity):
    """Gradients stay what they are, and by XLA's count each further part that is kept leaves fewer FLOPs."""
    block = Block(Attention(2), replace(MOE, capacity=capacity) if ffn == "experts" else GATED)
    counted, gradients = [], []
    for keep in ((), ("qkv", "attention"), ("qkv", "attention", ffn)):
        model = Model(V, D, decoder=Stack(2, {"L": block}, position=Rope(), remat="full", keep=keep))
        step = jax.jit(jax.grad(loss_of(model))).lower(start(model)).compile()
        counted.append(step.cost_analysis()["flops"])
        gradients.append(step(start(model)))
    for found in gradients[1:]:
        close(found, gradients[0], rtol=1e-5)
    assert counted == sorted(set(counted), reverse=True), counted
    other = "ffn" if ffn == "experts" else "experts"
    for settings, cause in (
        (dict(keep=("attention",)), "keep=attention is for remat=dots or full, .* set keep=()"),
        (dict(remat="full", keep=(other,)), f"keep names '{other}', and no block has"),
        (dict(remat="full", keep=("qkv", "qkv")), "names one part twice"),
    ):
        with pytest.raises(UserError, match=cause):
            Stack(2, {"L": block}, **settings)


def test_vectors_are_moved_with_their_gradient():
    """By index and back, with places that are none, as a product with a one-hot matrix moves them."""
    rng = np.random.default_rng(0)
    source = np.stack([rng.permutation(9)[:7] for _ in range(B)])  # of six vectors: 6 to 8 are none
    target = np.full((B, 6, 2), 7)
    for b in range(B):
        for place, vector in enumerate(source[b]):
            if vector < 6:
                target[b, vector, 0] = place
    source = np.minimum(source, 6)
    x, weights = rng.normal(size=(B, 6, D)).astype(np.float32), rng.normal(size=(B, 7, D)).astype(np.float32)
    matrix = (source[..., None] == np.arange(6)).astype(np.float32)
    ours = jax.value_and_grad(lambda x: jnp.sum(weights * moe.moved(x, source, target)))(x)
    plain = jax.value_and_grad(lambda x: jnp.sum(weights * jnp.einsum("bmn,bnd->bmd", matrix, x)))(x)
    close(ours, plain, rtol=1e-6)


def padded(example: Example, *, length: int = 0, rows: int = 0) -> Example:
    """The same tokens in longer rows, and with added rows of padding."""
    return jax.tree.map(lambda x: np.pad(x, ((0, rows), (0, length))), example)


@pytest.mark.parametrize(("capacity", "stack"), [(None, {"scan": True, "remat": "full"}), (40.0, {"layers": 2})])
def test_the_loss_is_the_same_however_far_a_row_is_padded(capacity, stack):
    """So are gradients, also with rows of padding alone, which give finite values on their own."""
    model = model_of(capacity=capacity, **stack)
    params = start(model)

    def loss(p, example):
        return cross_entropy(p, Transformer(model).apply, example, head_params=head_params, vocab_size=V).total

    both = jax.jit(jax.value_and_grad(loss))
    value, gradient = both(params, batch())
    close(both(params, padded(batch(), length=6, rows=2)), (value, gradient), atol=1e-4, rtol=1e-5)
    nothing, none = both(params, jax.tree.map(np.zeros_like, batch()))
    assert nothing == 0 and all_zero(none)


def test_microbatches_add_up_to_the_batch():
    """Microbatches of different weights, one empty. The balance loss is a product of means, so sums agree only nearly."""
    example = padded(batch(), rows=1)
    for settings, rtol in (({"balance": 0.0, "z": 0.5}, 1e-6), ({"balance": 0.05, "z": 0.0}, 0.02)):
        model = model_of(layers=2, **settings)
        params, apply = start(model_of(layers=2)), Transformer(model).apply
        mean = jax.jit(lambda e: cross_entropy(params, apply, e, head_params=head_params, vocab_size=V))  # noqa: B023
        parts = [mean(jax.tree.map(lambda x, i=i: np.asarray(x)[i : i + 1], example)) for i in range(4)]
        close(sum(parts[1:], parts[0]).mean, mean(example).mean, rtol=rtol)
        assert parts[-1].total == 0 and parts[-1].weight == 0


@pytest.mark.parametrize("scan", [False, True])
def test_decoded_is_whole(scan):
    """Decoding with a cache, where "losses" is not a mutable collection."""
    model, stream = model_of(scan=scan, layers=4 if scan else 2), batch().decoder
    stream = stream.replace(segments=jnp.ones_like(stream.segments))
    module, params = Transformer(model), start(model)
    whole = jax.jit(lambda p: module.apply({"params": p}, Example(None, stream, None, None), method="hidden"))(params)

    @jax.jit
    def step(cache, part):
        return module.apply({"params": params} | cache, part, cache_length=T, method="decode", mutable=["cache"])

    cache, parts = {}, []
    for t in range(T):
        part, cache = step(cache, jax.tree.map(lambda x, t=t: x[:, t : t + 1], stream))
        assert set(cache) == {"cache"}
        parts.append(part)
    close(np.concatenate(parts, 1), whole, 2e-5)


# -------------------------------------------------------------------------------------------- config, ledger, optimizer


def test_config():
    model = model_of()
    tree = resolve.to_dict(model)
    assert [tree["decoder"]["blocks"][b]["ffn"]["kind"] for b in "LM"] == ["mlp", "moe"]
    assert resolve.build(Model, tree) == model and hash(resolve.build(Model, tree)) == hash(model)
    del tree["decoder"]["blocks"]["L"]["ffn"]["kind"]
    assert resolve.build(Model, tree) == model, "a file without kinds means what it meant"
    for expert in (Mlp(F, bias=True), Mlp(F, dropout=0.1)):
        with pytest.raises(UserError, match="an expert has no bias and no dropout"):
            Moe(E, K, expert)
    with pytest.raises(UserError, match="ffn.top_k is 5; it must be 1 to ffn.num_experts=4"):
        Moe(E, 5, GATED)
    for capacity in (0.0, -1.0):
        with pytest.raises(UserError, match=rf"config.capacity={capacity:g}.* is too small: give more than 0"):
            resolve.build(Moe, dict(num_experts=E, top_k=K, expert=resolve.to_dict(GATED), capacity=capacity))


def test_flops_are_those_of_the_chosen():
    count = lambda ffn: flops.count(Model(V, D, decoder=Stack(1, {"L": Block(Attention(2), ffn)})), batch=B, decoder=T).ffn
    assert count(MOE) == K * count(GATED) + 2 * B * T * D * E
    assert count(replace(MOE, num_experts=64)) == K * count(GATED) + 2 * B * T * D * 64


def test_initial_experts():
    """Each expert is initialised like a feed-forward of its own, output projection included."""
    model = Model(V, 64, decoder=Stack(8, {"L": Block(Attention(2), Moe(E, K, Mlp(128)))}, scan=True))
    params = jax.jit(lambda k: nn.unbox(Transformer(model).init(k, batch()))["params"])(jax.random.key(0))
    ffn = params["decoder"]["groups"]["block_0"]["ffn"]
    stds = {name: ffn[name]["kernel"].std((-2, -1)) for name in ("router", "up", "down")}
    close(stds["router"], 64**-0.5, atol=0, rtol=0.2)
    close(stds["up"], 64**-0.5, atol=0, rtol=0.05)
    close(stds["down"], 128**-0.5 / 4, atol=0, rtol=0.05)


@pytest.mark.parametrize("scan", [False, True])
def test_experts_decay_and_muon_turns_each(scan):
    params, group = start(model_of(scan=scan, layers=4 if scan else 2)), "groups" if scan else "group_0"
    block = lambda tree: tree["decoder"][group]["block_1"]["ffn"]
    assert all(block(optim.is_matrix(params))[name]["kernel"] for name in ("router", "up", "gate", "down"))
    turned, first = block(optim.muon_dimensions(params)), int(scan)
    assert turned["router"]["kernel"] == ((first,), (first + 1,))
    for name in ("up", "gate", "down"):
        assert turned[name]["kernel"] == ((first + 1,), (first + 2,))
    plain = optim.muon_dimensions(params)["decoder"][group]["block_0"]
    assert plain["ffn"]["up"]["kernel"] == ((first,), (first + 1,))
    assert plain["attention"]["out"]["kernel"] == ((first, first + 1), (first + 2,))
    tx, _ = optim.make(config.Optimizer("muon"), 10)
    updates, _ = jax.jit(lambda p: tx.update(p, tx.init(p), p))(params)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(updates))
