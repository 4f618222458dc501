"""Policy objectives against exact enumeration (5 tokens, 3 places), plain NumPy, and what others have got wrong."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.losses import policy
from lm.losses.policy import METHODS, Method, Rollouts, TokenScores
from lm.types import Example

V, P, END = 5, 3, 0
TEXTS = [t for n in (1, 2, 3) for t in itertools.product(range(V), repeat=n) if END not in t[:-1] and (t[-1] == END or n == P)]
TOKENS = np.array([t + (END,) * (P - len(t)) for t in TEXTS])  # [85, 3]
LENGTHS = np.array([len(t) for t in TEXTS])
MASK = np.arange(P) < LENGTHS[:, None]
RNG = np.random.default_rng(0)
REWARDS = jnp.asarray(RNG.normal(size=len(TEXTS)), jnp.float32)


def table(seed):
    """Logits of the next token after each beginning: parameters of a policy that is any distribution over the texts."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=(V,) * (n + 1)), jnp.float32) for n in range(P)]


PARAMS, REFERENCE = table(1), table(2)


def log_probs(params):
    """[85, 3]; at padding whatever the table says."""
    before = [tuple(TOKENS[:, :n].T) for n in range(P)]
    return jnp.stack(
        [jax.nn.log_softmax(w)[(*b, TOKENS[:, n])] for n, (w, b) in enumerate(zip(params, before, strict=True))], 1
    )


def of_texts(params):
    return jnp.exp(jnp.sum(jnp.where(MASK, log_probs(params), 0.0), axis=1))


def rollouts(rows, old, rewards=REWARDS, **fields):
    """Samples [.., B] of TEXTS by number."""
    weights = jnp.asarray(MASK, jnp.float32)[rows]
    example = Example(None, None, jnp.asarray(TOKENS)[rows], weights)
    given = old[rows], rewards[rows], jnp.asarray(LENGTHS)[rows], jnp.zeros(rows.shape)
    return Rollouts(example, *given, fresh=jnp.ones(rows.shape), **fields)


def expected_gradient(method, *, group=2, kl_weight=0.0):
    """The mean gradient of the loss over all groups of texts, each by its probability."""
    groups = jnp.asarray(list(itertools.product(range(len(TEXTS)), repeat=group)))
    chance = jnp.prod(of_texts(PARAMS)[groups], axis=1)
    old, reference = jax.lax.stop_gradient(log_probs(PARAMS)), log_probs(REFERENCE)

    def mean(params):
        found = log_probs(params)

        def one(rows):
            given = dict(group=group, reference=reference[rows], kl_weight=kl_weight)
            batch = policy.prepared(rollouts(rows, old), method, **given)
            return policy.loss(TokenScores(found[rows], found[rows]), batch, method, kl_weight=kl_weight)[0].mean

        return jnp.sum(chance * jax.vmap(one)(groups))

    return flat(jax.jit(jax.grad(mean))(PARAMS))


def flat(tree):
    return np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)])


def gradient(f):
    return flat(jax.jit(jax.grad(f))(PARAMS))


def same(a, b):
    np.testing.assert_allclose(a, b, atol=2e-6)
    assert np.abs(b).max() > 0.01


def expected_reward(params):
    return jnp.sum(of_texts(params) * REWARDS)


def next_token_kl(params, other, *, backward=False):
    """The sum over beginnings, by their probability under PARAMS, of the divergence of the next token's distributions."""
    total, reached = 0.0, jnp.ones(())
    for n in range(P):
        p, q = jax.nn.log_softmax(params[n]), jax.nn.log_softmax(other[n])
        p, q = (q, p) if backward else (p, q)
        total += jnp.sum(reached * jnp.sum(jnp.exp(p) * (p - q), axis=-1))
        reached = reached[..., None] * jax.nn.softmax(PARAMS[n])
        reached = reached.at[..., END].set(0.0)  # ended
    return total


def test_the_enumeration_is_one():
    assert len(TEXTS) == 85 and abs(float(of_texts(PARAMS).sum()) - 1) < 1e-5


# ------------------------------------------------------------------------------------------------ gradients of the reward


@pytest.mark.parametrize("name", ["reinforce", "rloo"])
@pytest.mark.parametrize("ratio", ["without", "token"])
def test_estimators_without_bias(name, ratio):
    """Also with a ratio, which is 1 in the first update and whose gradient is that of the log-probability."""
    method = replace(METHODS[name], kl="without", ratio=ratio)
    same(-P * expected_gradient(method), gradient(expected_reward))


def test_the_mean_of_a_group_that_holds_the_sample_shortens_the_gradient():
    """By 1 - 1 / group (Dr.GRPO, 2503.20783, appendix A): the direction is right."""
    same(-P * expected_gradient(METHODS["dr_grpo"]), (1 - 1 / 2) * gradient(expected_reward))


def test_a_division_by_the_deviation_changes_what_is_climbed():
    """Of two samples only the sign of their rewards' difference is left: the chance to beat another sample grows, not the
    reward (the difficulty bias of 2503.20783)."""
    method = replace(METHODS["grpo"], kl="without", aggregate="constant")
    others = of_texts(PARAMS)
    wins = jnp.sign(REWARDS[:, None] - REWARDS) @ others
    climbed = gradient(lambda params: jnp.sum(of_texts(params) * wins) / np.sqrt(2))
    found = -P * expected_gradient(method)
    np.testing.assert_allclose(found, climbed, atol=2e-3)  # EPSILON is beside the deviation
    assert cosine(found, gradient(expected_reward)) < 0.99


def test_a_mean_over_each_sample_weighs_short_ones_more():
    """GRPO's length bias (2503.20783): with equal rewards but for their length, the gradient has another direction."""
    found = expected_gradient(replace(METHODS["dr_grpo"], aggregate="sequence"))
    weighed = gradient(lambda params: jnp.sum(of_texts(params) / LENGTHS * (REWARDS - expected_reward(PARAMS)))) / 2
    same(-found, weighed)
    assert cosine(-found, gradient(expected_reward)) < 0.99


def cosine(a, b):
    return a @ b / np.linalg.norm(a) / np.linalg.norm(b)


# ------------------------------------------------------------------------------------------------------- divergence


def test_estimates_of_the_divergence():
    ours, theirs, chance = log_probs(PARAMS), log_probs(REFERENCE), of_texts(PARAMS)
    exact = float(jnp.sum(chance * jnp.sum(jnp.where(MASK, ours - theirs, 0.0), axis=1)))
    np.testing.assert_allclose(float(next_token_kl(PARAMS, REFERENCE)), exact, rtol=1e-5)
    means = {k: float(chance @ jnp.sum(jnp.where(MASK, policy.kl(ours, theirs, k), 0.0), axis=1)) for k in ("k1", "k2", "k3")}
    np.testing.assert_allclose([means["k1"], means["k3"]], exact, rtol=1e-4)
    assert abs(means["k2"] / exact - 1) > 0.05  # near for policies that are near
    close = jax.tree.map(lambda a, b: a + 0.05 * (b - a), PARAMS, REFERENCE)
    near = float(chance @ jnp.sum(jnp.where(MASK, policy.kl(ours, log_probs(close), "k2"), 0.0), axis=1))
    np.testing.assert_allclose(near, float(next_token_kl(PARAMS, close)), rtol=0.05)
    assert (np.asarray(policy.kl(ours, theirs, "k3")) >= -1e-6).all() and (np.asarray(policy.kl(ours, theirs, "k1")) < 0).any()


def of_loss(kind):
    """The mean gradient of an estimate that is a loss by itself."""
    chance, theirs = of_texts(PARAMS), log_probs(REFERENCE)
    return gradient(lambda params: chance @ jnp.sum(jnp.where(MASK, policy.kl(log_probs(params), theirs, kind), 0.0), axis=1))


def test_k1_in_the_loss_is_wrong():
    """Its gradient's mean is 0 whatever the reference: it penalises nothing."""
    assert np.abs(of_loss("k1")).max() < 1e-6 < 0.01 < np.abs(gradient(lambda p: next_token_kl(p, REFERENCE))).max()


def test_k2_in_the_loss_is_the_next_tokens_divergence():
    same(of_loss("k2"), gradient(lambda params: next_token_kl(params, REFERENCE)))


def test_k3_in_the_loss_is_biased():
    """Its gradient is that of the divergence the other way round (2512.21852)."""
    same(of_loss("k3"), gradient(lambda params: next_token_kl(params, REFERENCE, backward=True)))
    assert cosine(of_loss("k3"), of_loss("k2")) < 0.99


def test_k1_in_the_reward_is_the_divergence_of_whole_texts():
    """Unlike k2 in the loss it also counts where a token leads to."""
    ours, theirs = log_probs(PARAMS), log_probs(REFERENCE)
    each = jnp.sum(jnp.where(MASK, ours - theirs, 0.0), axis=1)

    def penalised(params):
        divergence = jnp.sum(jnp.where(MASK, log_probs(params) - theirs, 0.0), axis=1)
        return jnp.sum(of_texts(params) * (REWARDS - 0.3 * divergence))

    same(-P * expected_gradient(METHODS["rloo"], kl_weight=0.3), gradient(penalised))
    whole = gradient(lambda params: jnp.sum(of_texts(params) * each))
    assert np.abs(whole - of_loss("k2")).max() > 0.01


def test_what_k2_and_k3_add_to_a_loss():
    for kind in ("k2", "k3"):
        method = replace(METHODS["dr_grpo"], kl=kind)
        added = expected_gradient(method, kl_weight=0.3) - expected_gradient(method, kl_weight=0.0)
        same(P * added, 0.3 * of_loss(kind))


# ------------------------------------------------------------------------------------------------------- in plain NumPy

B, G, T = 12, 4, 6


def batch(seed=0, poison=0.0):
    """Random samples of different length; `poison` stands at all padding."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, T + 1, B)
    weights = (np.arange(T) < lengths[:, None]).astype(np.float32)
    dirty = lambda x: np.where(weights > 0, x, poison).astype(np.float32)
    old = dirty(rng.normal(-1.5, 0.5, (B, T)))
    new, reference, values = (dirty(rng.normal(m, 0.5, (B, T))) for m in (-1.4, -1.7, 0.2))
    rewards = rng.normal(size=B).astype(np.float32)
    truncated = (np.arange(B) % 5 == 0).astype(np.float32)
    example = Example(None, None, np.zeros((B, T), np.int32), weights)
    made = Rollouts(example, old, rewards, lengths, truncated, fresh=np.ones(B, np.float32))
    return jax.tree.map(jnp.asarray, made), new, reference, values


def plain(method, given, new, reference, values, *, kl_weight, discount=0.9, decay=0.8, critic=0.1):
    """The loss token by token, with loops."""
    old, rewards = np.asarray(given.log_probs, float), np.asarray(given.rewards, float).copy()
    lengths, cut = np.asarray(given.lengths), np.asarray(given.truncated)
    if method.truncated == "unrewarded":
        rewards[cut > 0] = 0
    counted = [0 if method.truncated == "masked" and cut[i] else int(lengths[i]) for i in range(B)]
    taxed = rewards.copy()
    for i in range(B):
        for t in range(lengths[i]):
            taxed[i] -= kl_weight * (old[i, t] - reference[i, t]) if method.kl == "reward" else 0
    advantages, returns = np.zeros((B, T)), np.zeros((B, T))
    for i in range(B):
        group = taxed[i // G * G : i // G * G + G]
        match method.advantage:
            case "reward":
                advantages[i] = taxed[i]
            case "mean":
                advantages[i] = taxed[i] - group.mean()
            case "deviation":
                advantages[i] = (taxed[i] - group.mean()) / (np.sqrt(((group - group.mean()) ** 2).sum() / (G - 1)) + 1e-4)
            case "leave_one_out":
                advantages[i] = taxed[i] - (group.sum() - taxed[i]) / (G - 1)
            case "critic":
                later = 0.0
                for t in reversed(range(lengths[i])):
                    reward = rewards[i] if t == lengths[i] - 1 else 0.0
                    reward -= kl_weight * (old[i, t] - reference[i, t])
                    after = values[i, t + 1] if t + 1 < lengths[i] else 0.0
                    later = reward + discount * after - values[i, t] + discount * decay * later
                    advantages[i, t], returns[i, t] = later, later + values[i, t]
    if method.advantage == "critic":
        every = np.array([advantages[i, t] for i in range(B) for t in range(lengths[i])])
        advantages = (advantages - every.mean()) / np.sqrt(every.var(ddof=1) + 1e-8)
    total, tokens, clipped = 0.0, 0, 0
    for i in range(B):
        of_row = 0.0
        for t in range(counted[i]):
            a, difference = advantages[i, t], new[i, t] - old[i, t]
            if method.ratio == "sequence":
                difference = np.mean([new[i, s] - old[i, s] for s in range(counted[i])])
            if method.ratio == "without":
                of_token = -a * new[i, t]
            else:
                r = np.exp(difference)
                bound = min(max(r, 1 - method.clip_low), 1 + method.clip_high)
                of_token = -min(r * a, bound * a)
                clipped += bound * a < r * a
            d = reference[i, t] - new[i, t]
            of_token += kl_weight * {"k2": d**2 / 2, "k3": np.exp(d) - 1 - d}.get(method.kl, 0.0)
            if method.advantage == "critic":
                of_token += critic * (values[i, t] - returns[i, t]) ** 2 / 2
            of_row, tokens = of_row + of_token, tokens + 1
        total += of_row / {"token": 1, "sequence": max(counted[i], 1), "constant": T}[method.aggregate]
    return total / (tokens if method.aggregate == "token" else B), clipped / tokens


VARIED = {
    f"{name}, {truncated}": replace(m, truncated=truncated) for name, m in METHODS.items() for truncated in ("scored", "masked")
}
VARIED["unrewarded"] = replace(METHODS["grpo"], truncated="unrewarded")
VARIED["k2 by token"] = replace(METHODS["grpo"], kl="k2", aggregate="token")
SETTINGS = dict(kl_weight=0.3)


def ours(method, given, new, reference, values):
    known = dict(reference=reference) if method.kl != "without" else {}
    critic = dict(values=values) if method.advantage == "critic" else {}
    ready = policy.prepared(given, method, group=G, discount=0.9, decay=0.8, **known, **critic, **SETTINGS)
    return policy.loss(TokenScores(new, new), ready, method, **critic, critic=0.1, **SETTINGS)


@pytest.mark.parametrize("name", VARIED)
def test_each_method_is_its_formula(name):
    method, arrays = VARIED[name], batch()
    expected, clipped = plain(method, *arrays, **SETTINGS)
    found, more = ours(method, *arrays)
    np.testing.assert_allclose(float(found.mean), expected, rtol=2e-5)
    np.testing.assert_allclose(float(more["clipped"].mean), clipped, rtol=1e-6)
    assert (clipped > 0) == (method.ratio != "without")


def test_a_group_teaches_by_what_has_loss():
    rewards, cut = np.array([1, 0, 1, 1, 1, 0], np.float32), np.array([1, 1, 1, 0, 0, 1], np.float32)
    for truncated, wanted in (("scored", [1, 0, 1]), ("unrewarded", [0, 1, 1]), ("masked", [0, 0, 1])):
        method = replace(METHODS["grpo"], truncated=truncated)
        for of in (np.asarray, jnp.asarray):
            np.testing.assert_array_equal(policy.varied(of(rewards), of(cut), method, 2), np.repeat(wanted, 2))


@pytest.mark.parametrize(("name", "poison"), [*zip(METHODS, itertools.cycle([np.nan, np.inf, -1e30]))])
def test_padding_makes_no_gradient(name, poison):
    """Whatever stands there: NaN times 0 is NaN, and exp(1e30) * 0 too."""
    method, (given, new, reference, values) = METHODS[name], batch()
    (dirty, new2, reference2, values2) = batch(poison=poison)
    f = lambda new, given, reference, values: ours(method, given, new, reference, values)[0].mean
    clean = jax.grad(f)(new, given, reference, values)
    found = jax.grad(f)(new2, dirty, reference2, values2)
    np.testing.assert_array_equal(found, clean)
    assert (np.asarray(found)[np.asarray(given.example.weights) == 0] == 0).all() and np.abs(found).max() > 1e-4


@pytest.mark.parametrize("name", METHODS)
def test_parts_of_a_batch_add_up_to_it(name):
    """Not to a mean of means: samples have different lengths."""
    method, (given, new, reference, values) = METHODS[name], batch()
    critic = dict(values=values) if method.advantage == "critic" else {}
    ready = policy.prepared(given, method, group=G, reference=reference, **critic, **SETTINGS)
    part = lambda i: policy.loss(
        TokenScores(new[i::2], new[i::2]), jax.tree.map(lambda x: x[i::2], ready), method,
        values=values[i::2] if critic else None, critic=0.1, **SETTINGS,
    )[0]  # fmt: skip
    whole = policy.loss(TokenScores(new, new), ready, method, **critic, critic=0.1, **SETTINGS)[0]
    np.testing.assert_allclose(float((part(0) + part(1)).mean), float(whole.mean), rtol=1e-5)


def test_the_reward_stands_at_the_last_token_not_at_padding():
    given, _, _, _ = batch()
    method = replace(METHODS["ppo"], kl="without")
    ready = policy.prepared(given, method, group=G, values=jnp.zeros((B, T)), discount=1.0, decay=0.0)
    lengths = np.asarray(given.lengths)
    for i in range(B):
        expected = np.zeros(T)
        expected[lengths[i] - 1] = given.rewards[i]
        np.testing.assert_allclose(ready.returns[i], expected)  # with decay 0 a return is the next reward alone


def test_advantages_pass_over_what_a_tool_wrote():
    """The estimates of answers with outputs in them are those of the same answers without, and the last token of the policy
    has the reward, whatever the critic says of the outputs."""
    given, _, reference, values = batch()
    mask, gaps = np.asarray(given.mask), np.array([[0, 1, 4, 5, 7, 8]] * B)  # where the tokens stand between outputs
    spread = lambda x, fill: np.full((B, T + 4), fill, np.float32) if x is None else _put(x, gaps, fill)
    example = Example(None, None, np.zeros((B, T + 4), np.int32), spread(given.example.weights, 0.0))
    wide = given.replace(example=example, log_probs=jnp.asarray(spread(given.log_probs, np.nan)))
    of = lambda made, *more: policy.prepared(
        made, METHODS["ppo"], group=G, reference=more[0], values=more[1], kl_weight=0.3, discount=0.9, decay=0.8
    )
    narrow, found = of(given, reference, values), of(wide, spread(reference, np.nan), spread(values, np.nan))
    for name in ("advantages", "returns"):
        there = np.take_along_axis(np.asarray(getattr(found, name)), gaps, axis=1)
        np.testing.assert_allclose(there[mask], np.asarray(getattr(narrow, name))[mask], rtol=1e-5, err_msg=name)
    assert (np.asarray(found.advantages)[~np.asarray(wide.mask)] == 0).all()


def _put(x, places, fill):
    wide = np.full((B, T + 4), fill, np.float32)
    np.put_along_axis(wide, places, np.asarray(x), axis=1)
    return wide


def test_a_policy_with_a_tool_climbs_its_own_reward():
    """Token 1 in the first place is a call, whose output is token 2 in the second place whatever the policy thinks of it. The
    expected gradient is that of the expected reward over the tokens that the policy chooses."""
    kept = np.array([t[0] != 1 or (len(t) == P and t[1] == 2) for t in TEXTS])
    own = MASK & ~((TOKENS[:, :1] == 1) & (np.arange(P) == 1))
    chance = lambda params: jnp.exp(jnp.sum(jnp.where(own, log_probs(params), 0.0), axis=1)) * kept
    assert abs(float(chance(PARAMS).sum()) - 1) < 1e-5 and kept.sum() == 69
    old = jnp.where(own, jax.lax.stop_gradient(log_probs(PARAMS)), 0.0)
    example = Example(None, None, jnp.asarray(TOKENS)[:, None], jnp.asarray(own, jnp.float32)[:, None])
    method = replace(METHODS["reinforce"], ratio="token")

    def mean(params):
        def one(tokens, weights, old, reward, found):
            given = Rollouts(Example(None, None, tokens, weights), old[None], reward[None], jnp.ones(1), jnp.zeros(1))
            ready = policy.prepared(given, method, group=1).replace(fresh=jnp.ones(1))
            return policy.loss(TokenScores(found[None], found[None]), ready, method)[0].mean

        each = jax.vmap(one)(example.targets, example.weights, old, REWARDS, log_probs(params))
        return jnp.sum(jax.lax.stop_gradient(chance(PARAMS)) * each)

    same(-P * gradient(mean), gradient(lambda params: jnp.sum(chance(params) * REWARDS)))
    everything = gradient(lambda params: jnp.sum(chance(PARAMS) * jnp.sum(jnp.where(MASK, log_probs(params), 0), 1) * REWARDS))
    assert cosine(everything, gradient(lambda params: jnp.sum(chance(params) * REWARDS))) < 0.99  # with the output it is not


def test_a_clip_that_is_higher_above_lets_rare_tokens_grow():
    """DAPO: between 1.2 and 1.28 a token with an advantage still has a gradient; below the clip is the same."""
    given, _, _, _ = batch()
    given = given.replace(log_probs=jnp.zeros((B, T)), advantages=jnp.ones((B, T)))
    slope = lambda name, ratio: jax.grad(lambda x: policy.surrogate(x, given, METHODS[name])[0][0, 0])(
        jnp.full((B, T), np.log(ratio), jnp.float32)
    )[0, 0]
    assert float(slope("dapo", 1.25)) < -1 and float(slope("dapo", 1.3)) == 0.0 == float(slope("grpo", 1.25))


def test_groups_of_equal_rewards_teach_nothing():
    for kind in ("mean", "deviation", "leave_one_out"):
        assert (np.asarray(policy.group_advantages(jnp.full(8, 0.1), kind, 4)) == 0).all(), kind
    rewards = jnp.array([1.0, 0.0, 0.0, 0.0])
    deviation = np.std([1, 0, 0, 0], ddof=1)
    np.testing.assert_allclose(
        policy.group_advantages(rewards, "deviation", 4), (np.array([1, 0, 0, 0]) - 0.25) / (deviation + 1e-4), rtol=1e-6
    )
    assert (policy.DDOF, policy.EPSILON) == (1, 1e-4)


def test_every_update_reads_every_row_once_in_an_epoch():
    given = policy.prepared(batch()[0], METHODS["dr_grpo"], group=G)
    parts = policy.updates(given, jax.random.key(0), epochs=2, minibatches=3)
    assert parts.rewards.shape == (6, 4) and parts.example.weights.shape == (6, 4, T)
    for epoch in (parts.rewards[:3], parts.rewards[3:]):
        np.testing.assert_array_equal(np.sort(epoch.ravel()), np.sort(given.rewards))
    assert (parts.rewards[:3] != parts.rewards[3:]).any()
    np.testing.assert_array_equal(parts.fresh.sum(axis=1), [4, 0, 0, 0, 0, 0])
    one = policy.updates(given, jax.random.key(0), epochs=2, minibatches=1)
    np.testing.assert_array_equal(one.rewards, np.stack([given.rewards] * 2))


def test_what_is_logged():
    given, new, reference, _ = batch()
    given = given.replace(rewards=given.rewards.at[:G].set(0.5))
    method = METHODS["grpo"]
    ready = policy.prepared(given, method, group=G, reference=reference)
    mask = np.asarray(given.example.weights) > 0
    more = policy.loss(TokenScores(new, jnp.full((B, T), 0.7)), ready, method)[1]
    apart = np.abs(new - np.asarray(given.log_probs))[mask]
    expected = {
        "reward": np.mean(given.rewards),
        "length": np.mean(given.lengths),
        "truncated": np.mean(given.truncated),
        "entropy": 0.7,
        "mismatch": apart.mean(),
        "mismatch_max": apart.max(),
        "varied": 2 / 3,
        "kl": (np.exp(reference - new) - 1 - (reference - new))[mask].mean(),
    }
    assert more.keys() == expected.keys() | {"clipped"}
    dapo = policy.prepared(given.replace(draws=jnp.arange(B) % 3 + 1.0), METHODS["dapo"], group=G)
    assert float(policy.loss(TokenScores(new, new), dapo, METHODS["dapo"])[1]["draws"].mean) == 2.0
    for name, value in expected.items():
        np.testing.assert_allclose(float(more[name].mean), value, rtol=1e-5, err_msg=name)
    later = ready.replace(fresh=jnp.zeros(B))  # of later updates nothing is counted: the policy has moved on purpose
    more = policy.loss(TokenScores(new, new), later, method)[1]
    assert float(more["mismatch"].weight) == float(more["mismatch_max"].weight) == 0.0


def test_methods_are_what_their_papers_say():
    assert isinstance(METHODS["grpo"], Method) and METHODS["grpo"].kl == "k3" and METHODS["grpo"].aggregate == "sequence"
    assert METHODS["dr_grpo"].advantage == "mean" and METHODS["dr_grpo"].aggregate == "constant"
    assert METHODS["dapo"].clip_low < METHODS["dapo"].clip_high and METHODS["dapo"].draws > 1
    assert METHODS["gspo"].ratio == "sequence"
