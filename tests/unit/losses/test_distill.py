"""What a student matches of its teacher, against NumPy, and over all texts of a small language."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm.config import Attention, Block, Head, Mlp, Model, Rope, Stack
from lm.losses import distill
from lm.models.transformer import Transformer, head_params
from lm.types import Example, TokenStream

V, B, T = 11, 2, 6
RNG = np.random.default_rng(0)
STUDENT, TEACHER = (3 * RNG.normal(size=(B, T, V)).astype(np.float32) for _ in range(2))
BETAS = (0.0, 0.3, 1.0)


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def plain(student, teacher, beta, temperature):
    """The definition, in float64."""
    q, p = (softmax(np.float64(x) / temperature) for x in (student, teacher))
    kl = lambda a, b: (a * np.log(a / b)).sum(-1)
    m = beta * p + (1 - beta) * q
    found = {0.0: kl(p, q), 1.0: kl(q, p)}.get(beta, beta * kl(p, m) + (1 - beta) * kl(q, m))
    return temperature**2 * found


@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("beta", BETAS)
def test_a_divergence_and_its_gradient_are_their_definitions(beta, temperature):
    found = jax.jit(partial(distill.divergence, beta=beta, temperature=temperature))
    np.testing.assert_allclose(found(STUDENT, TEACHER), plain(STUDENT, TEACHER, beta, temperature), rtol=2e-5)
    gradient = jax.jit(jax.grad(lambda x: found(x, TEACHER).sum()))(STUDENT)
    step, numeric = 1e-5, np.zeros_like(STUDENT)
    for v in range(V):  # each position depends on its own logits alone
        change = step * (np.arange(V) == v)
        apart = plain(STUDENT + change, TEACHER, beta, temperature) - plain(STUDENT - change, TEACHER, beta, temperature)
        numeric[..., v] = apart / (2 * step)
    np.testing.assert_allclose(gradient, numeric, rtol=2e-3, atol=2e-5)


def test_a_divergence_is_zero_only_of_equals_and_gives_its_teacher_no_gradient():
    for beta in BETAS:
        found = partial(distill.divergence, beta=beta)
        assert np.all(np.abs(found(TEACHER + 5, TEACHER)) < 1e-5) and np.all(found(STUDENT, TEACHER) > 1e-3)
        assert not np.any(jax.grad(lambda t, f=found: f(STUDENT, t).sum())(TEACHER))


def test_jensen_shannon_goes_over_into_both_kls():
    """Divided by beta (1 - beta) it tends to the forward KL at 0 and the reverse at 1 (2306.13649, section 3)."""
    near = STUDENT / 4, TEACHER / 4
    for beta, limit in ((1e-3, 0.0), (1 - 1e-3, 1.0)):
        scaled = np.asarray(distill.divergence(*near, beta=beta)) / (beta * (1 - beta))
        np.testing.assert_allclose(scaled, plain(*near, limit, 1.0), rtol=0.01)
    assert np.all(np.asarray(distill.divergence(STUDENT, TEACHER, beta=0.5)) < np.log(2))


def test_temperature_keeps_the_size_of_the_gradient():
    """At high temperature it is the difference of the centred logits over V (1503.02531, section 2.1)."""
    gradient = jax.grad(lambda x: distill.divergence(x, TEACHER, temperature=1e3).sum())(STUDENT)
    centred = lambda x: x - x.mean(-1, keepdims=True)
    np.testing.assert_allclose(gradient, (centred(STUDENT) - centred(TEACHER)) / V, rtol=0.02, atol=2e-3)


# ------------------------------------------------------------------------------------------------ the likeliest tokens


def lumped(p, ids):
    """Probabilities [..., V] at `ids`, and the sum of all others: float64 [..., K + 1]."""
    kept = np.take_along_axis(p, ids, -1)
    return np.concatenate([kept, 1 - kept.sum(-1, keepdims=True)], -1)


@pytest.mark.parametrize(("beta", "temperature"), [(0.0, 1.0), (0.3, 2.5), (1.0, 1.0)])
def test_the_likeliest_tokens_and_the_mass_of_the_rest_are_compared(beta, temperature):
    """By NumPy; it is no more than the whole divergence (data processing), grows with K, and is 0 of equals."""
    whole, before = plain(STUDENT, TEACHER, beta, temperature), 0.0
    for k in (1, 4, V - 1):
        known = distill.top_k(TEACHER, k, temperature=temperature)
        assert known.log_probs.shape == (B, T, k + 1) and known.log_probs.dtype == jnp.float32
        np.testing.assert_array_equal(np.sort(known.ids), np.sort(np.argsort(-TEACHER, -1)[..., :k]))
        found = distill.top_k_divergence(STUDENT, known, beta=beta, temperature=temperature)
        q, p = (lumped(softmax(np.float64(x) / temperature), np.asarray(known.ids)) for x in (STUDENT, TEACHER))
        expected = plain(temperature * np.log(q), temperature * np.log(p), beta, temperature)
        np.testing.assert_allclose(found, expected, rtol=2e-4, atol=1e-6)
        assert np.all(found <= whole + 1e-5) and found.mean() > before
        before = found.mean()
        own = distill.top_k_divergence(TEACHER + 5, known, beta=beta, temperature=temperature)
        assert np.all(np.abs(own) < 1e-5)


@pytest.mark.parametrize("beta", BETAS)
def test_all_tokens_kept_are_the_teacher_itself(beta):
    known = distill.top_k(TEACHER, V, temperature=2.0)
    assert known.log_probs.shape == (B, T, V)
    value = jax.value_and_grad(lambda x: distill.top_k_divergence(x, known, beta=beta, temperature=2.0).sum())
    expected = jax.value_and_grad(lambda x: distill.divergence(x, TEACHER, beta=beta, temperature=2.0).sum())
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), value(STUDENT), expected(STUDENT))


def test_the_gradient_is_finite_where_the_kept_tokens_have_all_of_the_mass():
    """The forward KL's is q - p at a kept token, and at the others their own share of q(rest) - p(rest)."""
    sure = np.where(np.arange(V) == 3, 60.0, STUDENT).astype(np.float32)
    for student, teacher in ((sure, TEACHER), (TEACHER, sure), (sure, sure)):
        known = distill.top_k(teacher, 2)
        gradient = jax.grad(lambda x, k=known: distill.top_k_divergence(x, k).sum())(student)
        p, ids = lumped(softmax(np.float64(teacher)), np.asarray(known.ids)), np.asarray(known.ids)
        q = softmax(np.float64(student))
        expected = q - np.maximum(p[..., -1:], 0) * q / np.maximum(lumped(q, ids)[..., -1:], 1e-300)
        np.put_along_axis(expected, ids, np.take_along_axis(q, ids, -1) - p[..., :-1], -1)
        assert np.all(np.isfinite(gradient))
        np.testing.assert_allclose(
            np.take_along_axis(np.asarray(gradient), ids, -1), np.take_along_axis(expected, ids, -1), atol=1e-5
        )


# -------------------------------------------------------------------------------------------------- chunks and mixing


def decoder(width, layers):
    stack = Stack(layers, {"L": Block(Attention(2), Mlp(2 * width))}, position=Rope())
    return Transformer(Model(V, width, decoder=stack, head=Head(bias=True)))


def example():
    tokens = RNG.integers(1, V, (B, T + 1)).astype(np.int32)
    weights = (np.arange(T) < np.array([[T], [T - 2]])).astype(np.float32)
    positions = np.broadcast_to(np.arange(T, dtype=np.int32), (B, T))
    return Example(None, TokenStream(tokens[:, :-1], positions, weights.astype(np.int32)), tokens[:, 1:], weights)


def test_chunks_of_both_models_change_nothing():
    """Value, parts and gradient are those of whole logits; a token may be excluded from both."""
    batch, models = example(), (decoder(8, 1), decoder(12, 2))
    params = [nn.unbox(jax.jit(m.init)(jax.random.key(i), batch)["params"]) for i, m in enumerate(models)]
    excluded = np.where(batch.targets == 3, 4, 3).astype(np.int32)
    weights = dict(logits=0.7, labels=0.2)

    def sides(own, theirs):
        hiddens = [m.apply({"params": p}, batch, method="hidden") for m, p in zip(models, (own, theirs), strict=True)]
        return [distill.Side(head_params(p), m.apply, h) for m, p, h in zip(models, (own, theirs), hiddens, strict=True)]

    def chunked(own, theirs, chunks):
        settings = dict(vocab_size=V, beta=0.3, temperature=2.0, excluded=excluded, chunks=chunks) | weights
        total, apart, nats = distill.mixed(*sides(own, theirs), batch.targets, batch.weights, **settings)
        return total, (apart, nats)

    def whole(own, theirs):
        logits = [m.apply({"params": p}, batch) for m, p in zip(models, (own, theirs), strict=True)]
        a, b = (jnp.where(jnp.arange(V) == excluded[..., None], -1e30, x) for x in logits)
        apart = distill.divergence(a, b, beta=0.3, temperature=2.0)
        nats = -jnp.take_along_axis(jax.nn.log_softmax(a), batch.targets[..., None], -1)[..., 0]
        return jnp.sum(batch.weights * (0.7 * apart + 0.2 * nats)), (apart, nats)

    expected, by_hand = jax.jit(jax.value_and_grad(whole, has_aux=True))(*params)
    gradient = jax.value_and_grad(partial(chunked, chunks=3), argnums=(0, 1), has_aux=True)
    got, (gradient, of_teacher) = jax.jit(gradient)(*params)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), got, expected)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5), gradient, by_hand)
    assert np.isfinite(expected[0]) and np.all(np.isfinite(expected[1][0]))
    assert not any(map(np.any, jax.tree.leaves(of_teacher))), "the teacher gets no gradient"

    known = distill.kept_of(sides(*params)[1], V, vocab_size=V, temperature=2.0, excluded=excluded)
    settings = dict(vocab_size=V, beta=0.3, temperature=2.0, excluded=excluded) | weights
    total, apart, nats = distill.mixed(sides(*params)[0], known, batch.targets, batch.weights, chunks=3, **settings)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-6), (total, (apart, nats)), got)
    everywhere = distill.mixed(*sides(*params), batch.targets, 0 * batch.weights, compared=batch.weights, chunks=2, **settings)
    np.testing.assert_allclose(everywhere[0], 0.7 * np.sum(batch.weights * apart), rtol=1e-3)


# ------------------------------------------------------------------------------------------ hidden vectors, relations


def test_cosine_distance_is_its_definition_also_of_nothing():
    a, b = RNG.normal(size=(2, 3, 4, 5)).astype(np.float32)
    expected = 1 - (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    np.testing.assert_allclose(distill.cosine_distance(a, b), expected, rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda x: distill.cosine_distance(x, b).sum())(np.zeros_like(a))  # a vector of zeros, as padding has
    assert np.all(np.isfinite(gradient))


def test_relations_are_their_definition_and_need_no_equal_widths():
    """MiniLMv2: a student of 2 heads of 6 numbers and a teacher of 3 heads of 8, compared by 4 relation heads."""
    student, teacher = RNG.normal(size=(B, T, 2, 6)).astype(np.float32), RNG.normal(size=(B, T, 3, 8)).astype(np.float32)
    visible = np.broadcast_to(np.tri(T, dtype=bool), (B, T, T))

    def relation(x, b, r):
        part = np.float64(x[b]).reshape(T, 4, -1)[:, r]
        products = part @ part.T / np.sqrt(part.shape[-1])
        return softmax(np.where(visible[b], products, -np.inf))

    expected = np.zeros((B, T))
    for b, r in itertools.product(range(B), range(4)):
        p, q = relation(teacher, b, r), relation(student, b, r)
        with np.errstate(divide="ignore", invalid="ignore"):
            expected[b] += np.where(p > 0, p * np.log(p / q), 0).sum(-1) / 4
    found = jax.jit(partial(distill.relation_divergence, heads=4))
    np.testing.assert_allclose(found(student, teacher, visible), expected, rtol=1e-4, atol=1e-6)
    assert np.all(np.abs(found(teacher, teacher, visible)) < 1e-6)
    padded = visible & (np.arange(T) < 4)[:, None]  # a query that sees nothing
    assert np.all(np.isfinite(jax.grad(lambda x: found(x, teacher, padded).sum())(student)))


# ------------------------------------------------------------------------------------- all texts of a small language

ALL = np.array(list(itertools.product(range(5), repeat=3)))  # every text of length 3 over 5 tokens


def small():
    """(student, teacher): each a function (parameters, texts [N, 3]) -> log-probabilities [N, 3, 5] of what comes next."""
    shape = [(5,), (5, 5), (5, 5, 5)]
    tables = [[RNG.normal(size=s).astype(np.float32) for s in shape] for _ in range(2)]

    def logits(params, texts):
        first, second, third = params
        rows = [jnp.broadcast_to(first, (len(texts), 5)), second[texts[:, 0]], third[texts[:, 0], texts[:, 1]]]
        return jnp.stack(rows, 1)

    return logits, *tables


def chosen(logits, texts):
    """float32 [N]: the log-probability of each text."""
    return jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(logits), texts[..., None], -1)[..., 0], axis=1)


def test_on_policy_reverse_kl_is_that_of_whole_texts():
    """Over the student's samples the sum of next-token KL(Q || P) is KL(Q || P) of texts; over the teacher's, of KL(P || Q)."""
    logits, q, p = small()
    ours, theirs = logits(q, ALL), logits(p, ALL)
    log_q, log_p = chosen(ours, ALL), chosen(theirs, ALL)
    for beta, (own, other) in ((1.0, (log_q, log_p)), (0.0, (log_p, log_q))):
        whole = float(jnp.sum(jnp.exp(own) * (own - other)))
        by_token = distill.divergence(ours, theirs, beta=beta).sum(1)
        assert float(jnp.sum(jnp.exp(own) * by_token)) == pytest.approx(whole, rel=1e-5)
        assert float(jnp.mean(by_token)) != pytest.approx(whole, rel=0.05), "texts that neither wrote give another number"


def test_cross_entropy_on_own_samples_teaches_nothing_and_the_divergence_does():
    """The gradient of the cross-entropy, expected over the student's own samples, is 0 whatever the teacher is."""
    logits, q, p = small()
    share = jax.lax.stop_gradient(jnp.exp(chosen(logits(q, ALL), ALL)))
    size = lambda loss: max(float(abs(g).max()) for g in jax.tree.leaves(jax.jit(jax.grad(loss))(q)))
    assert size(lambda q: -jnp.sum(share * chosen(logits(q, ALL), ALL))) < 1e-6
    for beta in BETAS:
        apart = lambda q, b=beta: jnp.sum(share * distill.divergence(logits(q, ALL), logits(p, ALL), beta=b).sum(1))
        assert size(apart) > 1e-2
