"""The recipes of preferred answers: the table's numbers and the config's, what a step costs, calibration."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import linen as nn

from lm import config, flops
from lm.config import resolve
from lm.errors import UserError
from lm.evaluation.judged import calibration_error
from lm.losses.cross_entropy import cross_entropy
from lm.losses.preference import METHODS
from lm.models.transformer import Transformer, head_params
from lm.objectives import Lengths
from lm.recipes.preference import Preferring, method_of
from lm.recipes.reward import RewardModel
from lm.training.adapted import View, adapted
from lm.training.ledger import of_a_row
from lm.types import Compared, Judged
from tests.fakes import small_model, small_params
from tests.unit.losses.test_preference import batch_of


def test_a_number_of_the_config_stands_before_that_of_the_table():
    assert method_of(config.Preference("simpo")) == METHODS["simpo"]
    given = method_of(config.Preference("simpo", beta=3.0, gamma=0.0, nll=0.5))
    assert (given.beta, given.gamma, given.nll, given.compare) == (3.0, 0.0, 0.5, "mean")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(method="ipo", smoothing=0.1), "recipe.smoothing=0.1 is of sigmoids, and ipo has none"),
        (dict(method="dpo", undesirable=2.0), "recipe.desirable and recipe.undesirable are of kto, and the method is dpo"),
        (dict(method="dop"), "did you mean 'dpo'"),
        (dict(beta=0.0), "beta"),
    ],
)
def test_settings_that_a_method_has_not_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        resolve.build(config.Preference, settings)


@pytest.mark.parametrize(("method", "passes"), [("dpo", 3 + 1), ("simpo", 3), ("kto", (3 + 1 + 2) / 2)])
def test_the_ledger_counts_both_answers_and_the_pass_of_the_reference(method, passes):
    """In forward passes over both answers; KTO has no backward pass over the mismatched ones."""
    model, batch = small_model("decoder"), batch_of("decoder", Judged if method == "kto" else Compared, blanks=0, rows=4)
    recipe = Preferring()
    recipe.reference = SimpleNamespace(params=None)
    task = recipe.task(config.Run(model, recipe=config.Preference(method)))
    rows = SimpleNamespace(rows=lambda index: batch, lengths=Lengths(None, 8, 4), bytes_a_row=9.0)
    found = of_a_row(task, rows, 4)
    both = sum(flops.of_rows(model, example).forward for example in batch.examples)
    assert found.flops == pytest.approx(passes * both / 4)
    assert (found.seen, found.loss_tokens) == (int(batch.tokens_read()) / 4, int(batch.tokens_asked()) / 4)


def mixture(outputs=None, **weights):
    """A decoder with two of four experts."""
    model = small_model("decoder", outputs=outputs)
    block = replace(model.decoder.blocks["L"], ffn=config.Moe(4, 2, config.Mlp(16), **weights))
    return replace(model, decoder=replace(model.decoder, blocks={"L": block}))


@pytest.mark.parametrize("name", ["dpo", "kto", "reward"])
def test_a_routers_loss_is_added_as_pretraining_adds_it(name):
    """What pretraining has on the same batch with the router, less what it has without; held-out figures have none."""
    outputs = 1 if name == "reward" else None
    recipe, c = (RewardModel(), config.Reward()) if outputs else (Preferring(), config.Preference(name))
    batch = batch_of("decoder", Judged if name == "kto" else Compared, rewards=bool(outputs))
    example = batch.answer if name == "kto" else batch.both
    params = small_params(mixture(outputs), 1)

    @partial(jax.jit, static_argnums=0)
    def found(model, params):
        task = recipe.task(config.Run(model, recipe=c))
        plain = cross_entropy(
            params,
            Transformer(model).apply,
            replace(example, targets=0 * example.targets),
            head_params=head_params,
            vocab_size=outputs or model.vocab_size,
        )
        return task.loss(params, params, batch, None)[0].mean, plain.mean, task.scores(params, params, batch)["loss"].mean

    with_router, without = found(mixture(outputs), params), found(mixture(outputs, balance=0.0, z=0.0), params)
    assert with_router[1] - without[1] > 1e-3
    np.testing.assert_allclose(with_router[0] - without[0], with_router[1] - without[1], rtol=1e-3)
    np.testing.assert_allclose(with_router[2], without[2], rtol=1e-6)
    np.testing.assert_allclose(with_router[2], without[0], rtol=1e-5)


def test_under_adapters_the_base_is_the_reference_and_the_only_copy():
    """Loss and gradient are those of a step that reads a copy of the base beside it, and so are held-out figures. What is
    trained in full needs a copy."""
    given = config.Run(small_model("decoder"), recipe=config.Preference("dpo"), train=config.Train(init_from="base"))
    given = replace(given, adapter=config.Lora(2))
    recipe, batch = Preferring(), batch_of("decoder")
    recipe.reference = SimpleNamespace(params=None)
    inner = recipe.task(given)
    outer, copied = (adapted(replace(inner, frozen=replace(inner.frozen, start=start)), given) for start in (True, False))
    of_steps = lambda task: jax.eval_shape(task.frozen.init, jax.random.key(0), batch)
    assert inner.frozen.start and set(of_steps(outer)) == {"base"} and set(of_steps(copied)) == {"base", "task"}
    whole = replace(given, adapter=config.Lora(2, whole=("embed",)))
    assert set(of_steps(adapted(recipe.task(whole), whole))) == {"base", "task"}

    base, params = small_params(given.model, 1), nn.unbox(outer.init(jax.random.key(1), batch))
    params["adapters"] = jax.tree.map(lambda x: x + 0.1, params["adapters"])  # B is not 0 any more
    of = lambda task: jax.jit(jax.value_and_grad(lambda p, frozen: task.loss(p, frozen, batch, None)[0].mean))
    found, expected = of(outer)(params, {"base": base}), of(copied)(params, {"base": base, "task": base})
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), found, expected)
    assert abs(found[0] - np.log(2)) > 0.01

    view = View(SimpleNamespace(task=outer), {"base": base})
    scores = jax.jit(inner.scores)(view.params(params), view.frozen, batch)
    np.testing.assert_allclose(scores["loss"].mean, found[0], rtol=1e-5)


def test_a_model_is_calibrated_that_gives_each_preference_the_share_that_holds():
    """A preference that is turned round has the opposite margin; of nine in ten that hold, sigmoid(ln 9) = 0.9 is right."""
    held = np.r_[np.ones(90), -np.ones(10)]
    assert calibration_error(np.log(9) * held) == pytest.approx(0.0, abs=1e-9)
    assert calibration_error(1000 * held) == pytest.approx(0.1)
