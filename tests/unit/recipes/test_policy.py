"""A policy's task and its sampler: what is beside the policy itself."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm import config, saved, sharding
from lm.data.loader import Position
from lm.data.records import Pair
from lm.errors import UserError
from lm.generation.tools import Answer
from lm.losses import policy as losses
from lm.models.transformer import Transformer, head_params
from lm.objectives import Lengths
from lm.recipes import on_policy, policy, rollout
from lm.training.adapted import adapted

LENGTHS, GROUP = Lengths(None, 8, 4), 2


def run(recipe, ffn=None, **more):
    block = config.Block(config.Attention(2), ffn or config.Mlp(16))
    model = config.Model(32, 16, decoder=config.Stack(1, {"L": block}, position=config.Rope()))
    return config.Run(model, recipe=recipe, **more)


def batch():
    """Four samples of random ids."""
    rng, rows = np.random.default_rng(0), []
    for _ in range(4):
        answer = Answer(None, 0)
        for token in rng.integers(3, 32, 4).tolist():
            answer.add(token, True, -3.0)
        rows.append(answer)
    prompts = [(None, rng.integers(3, 32, 4).astype(np.int32)) for _ in rows]
    made = rollout.gathered(prompts, rows, rng.normal(size=4), LENGTHS, ends=(2,))
    return jax.tree.map(jnp.asarray, made)


def test_a_routers_loss_is_added_as_in_pretraining():
    given = run(config.Policy("dr_grpo", group=GROUP), config.Moe(4, 2, config.Mlp(16)))
    task, made = policy.task(given), batch()
    params = nn.unbox(task.init(jax.random.key(0), made))
    model, settings = Transformer(given.model), dict(vocab_size=32, temperature=1.0)

    @jax.jit
    def both(params):
        ready = jax.tree.map(lambda x: x[0], task.updates.batches(params, None, made, jax.random.key(0)))
        hidden, sown = model.apply({"params": params}, made.example, method="hidden", mutable=["losses"])
        found = losses.judged(head_params(params), model.apply, hidden, made.example.targets, **settings)
        return task.loss(params, None, ready, {})[0], losses.loss(found, ready, losses.METHODS["dr_grpo"])[0], sown

    mean, alone, sown = both(params)
    (extra,) = jax.tree.leaves(sown)
    assert float(jnp.sum(extra)) > 1e-3
    np.testing.assert_allclose(float(mean.mean), float(alone.mean) + float(jnp.sum(extra)), rtol=1e-5)


def test_a_students_router_has_its_loss_and_its_teachers_has_none():
    """A student that is its own teacher has no divergence: what is left is what the router has in pretraining."""
    given = run(config.OnPolicy(teacher="itself"), config.Moe(4, 2, config.Mlp(16)))
    task, made = on_policy.task(given, SimpleNamespace(model=given.model, params=None)), batch()
    params = nn.unbox(task.init(jax.random.key(0), made))
    _, sown = Transformer(given.model).apply({"params": params}, made.example, method="hidden", mutable=["losses"])
    mean = jax.jit(task.loss)(params, params, made, {})[0].mean
    (extra,) = jax.tree.leaves(sown)
    assert float(jnp.sum(extra)) > 1e-3
    np.testing.assert_allclose(float(mean), float(jnp.sum(extra)), rtol=1e-4)


@pytest.mark.parametrize("name", ["grpo", "ppo"])
def test_under_adapters_the_base_is_the_reference_and_the_only_copy(name):
    """The parts of a step with adapters are those of one whose reference is a copy of the base."""
    lora = config.Lora(2, whole=("critic",) if name == "ppo" else ())
    given = run(config.Policy(name, group=GROUP, kl_weight=0.5), train=config.Train(init_from="base"), adapter=lora)
    inner, made = policy.task(given, SimpleNamespace(params=None)), batch()
    outer = adapted(inner, given)
    assert set(jax.eval_shape(outer.frozen.init, jax.random.key(0), made)) == {"base"}
    whole = nn.unbox(inner.init(jax.random.key(0), made))
    base = {"model": whole["model"]} if name == "ppo" else whole
    params = nn.unbox(outer.init(jax.random.key(1), made))
    params["adapters"] = jax.tree.map(lambda x: x + 0.1, params["adapters"])  # B is not 0 any more
    key = jax.random.key(2)
    found = outer.updates.batches(params, {"base": base}, made, key)
    plain = outer.adapter.plain(params, {"base": base})
    expected = inner.updates.batches(plain, base, made, key)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)
    assert np.abs(np.asarray(found.reference) - found.log_probs).max() > 0.01
    same = inner.updates.batches({**plain, **base}, base, made, key)
    np.testing.assert_allclose(found.reference, same.reference, atol=1e-6)  # whatever the adapters are


def test_an_averaged_reference_is_the_average():
    given = run(config.Policy("grpo", group=GROUP, reference="average"), optimizer=config.Optimizer(ema=0.9))
    task, made, key = policy.task(given), batch(), jax.random.key(2)
    assert task.updates.average and task.frozen is None and len(task.reads(LENGTHS)) == 2
    a, b = (nn.unbox(task.init(jax.random.key(i), made)) for i in range(2))
    fixed = policy.task(replace(given, recipe=config.Policy("grpo", group=GROUP)), SimpleNamespace(params=None))
    found, expected = task.updates.batches(a, None, made, key, average=b), fixed.updates.batches(a, b, made, key)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert np.abs(np.asarray(found.reference) - task.updates.batches(a, None, made, key, average=a).reference).max() > 0.01


def test_a_changed_reward_model_is_refused(monkeypatch):
    digest = ["1" * 64]
    monkeypatch.setattr(saved, "open", lambda folder, name: SimpleNamespace(folder=folder, digest=lambda: digest[0]))
    recipe = config.Policy(graders={"good": config.Grader("model", path="runs/reward"), "right": config.Grader()})
    pinned, opened = policy.with_graders(recipe)
    assert pinned.graders["good"].sha256 == "1" * 64 and pinned.graders["right"].sha256 is None
    assert opened["good"].folder == "runs/reward" and policy.with_graders(pinned)[0] == pinned
    digest[0] = "2" * 64  # it was trained further
    with pytest.raises(UserError, match="recipe.graders.good.path=runs/reward has the digest 22222222, and recipe.graders"):
        policy.with_graders(pinned)


class Drawing(rollout.Sampler):
    """Whose question n has samples of equal reward unless n is in `varied`."""

    def __init__(self, given, varied, draws):
        mesh = sharding.make_mesh(config.Mesh(), jax.devices()[:1])
        rows = SimpleNamespace(lengths=LENGTHS)
        self.asked, self.varied = [], varied
        self.recipe, self.rows, self.mesh = given.recipe, rows, mesh
        self.method = replace(losses.METHODS["dapo"], draws=draws)
        self.position, self.asking, self.latest = Position(0, 0, 6), SimpleNamespace(ends=(2,)), []

    def _asked(self, numbers, params, *, draws):
        self.asked.append(numbers.tolist())
        out = []
        for number in numbers.tolist():
            answer = Answer(None, 0)
            answer.add(3 + number % 20, True, -1.0)
            rewards = np.array([number, number + (number in self.varied)], np.float32)
            prompt = None, np.array([1], np.int32)
            out.append(
                rollout.Question(
                    prompt, Pair(str(number), "a"), [answer] * 2, ["a", "b"], rewards, draws, number in self.varied
                )
            )
        return out


@pytest.mark.parametrize("draws", [1, 3])
def test_questions_that_teach_nothing_give_their_place_away(draws):
    """Three places a step: the first varies at once, the second at its second question, the third never does."""
    given = run(config.Policy("dapo", group=GROUP))
    sampler = Drawing(given, {9, 13}, draws)
    made = sampler(1, None)  # of the places 3, 4 and 5 of the run
    if draws == 1:
        assert sampler.asked == [[3, 4, 5]] and made.rewards.tolist() == [3, 3, 4, 4, 5, 5]
        return
    assert sampler.asked == [[9, 12, 15], [13, 16], [17]]  # no question twice, whatever the steps before have drawn
    assert made.rewards.tolist() == [9, 10, 13, 14, 17, 17] and made.draws.tolist() == [1, 1, 2, 2, 3, 3]
    assert [sample["prompt"] for sample in sampler.latest] == ["9", "9", "13", "13", "17", "17"]
    again = Drawing(given, {9, 13}, draws)(1, None)
    jax.tree.map(np.testing.assert_array_equal, made, again)
    varied = losses.varied(jnp.asarray(made.rewards), jnp.zeros(6), losses.METHODS["dapo"], GROUP)
    assert varied.tolist() == [1, 1, 1, 1, 0, 0]
