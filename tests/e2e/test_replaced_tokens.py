"""Two models in one run learn: replaced-token detection and its ablations (ELECTRA, arXiv 2003.10555, section 3.4)."""

from dataclasses import replace

import jax
import pytest

from lm import config, optim, sharding
from lm.config import Attention, Block, Mlp, Moe
from lm.recipes import task
from lm.training.step import make_step, plan_state
from tests.unit.losses.test_replaced import STACK, batch, run_of


@pytest.mark.parametrize(("predict", "microbatches"), [("replaced", 2), ("replaced_chosen", 1), ("masked", 1), ("all", 1)])
def test_it_learns(predict, microbatches):
    """Both models overfit one batch, with dropout; one case has experts, one the Muon optimizer."""
    ffn = Moe(2, 1, Mlp(16)) if predict == "masked" else Mlp(32)
    model = replace(run_of(predict).model, encoder=replace(STACK, blocks={"L": Block(Attention(2), ffn, dropout=0.05)}))
    run, mesh = run_of(predict, model), sharding.make_mesh(config.Mesh(), jax.devices()[:1])
    optimizer = config.Optimizer("muon" if predict == "all" else "adamw", 0.02, config.Schedule("constant", warmup=0))
    tx, _ = optim.make(optimizer, 40)
    t = task(run)
    scores = jax.jit(lambda p: {k: v.mean for k, v in t.scores(p, None, batch()).items()})
    with sharding.use(mesh):
        plan = plan_state(lambda key: t.init(key, batch()), tx, mesh, ema=False)
        step = make_step(t.loss, tx, plan, optimizer=optimizer, train=config.Train(microbatches=microbatches))
        state = plan.create(0)
        before = scores(state.params)
        for _ in range(40):
            state, metrics = step(state, None, batch())
        after = scores(state.params)
    assert int(metrics["skipped"]) == 0
    assert after["generator_loss"] < 0.5 * before["generator_loss"]
    if predict != "replaced_chosen":  # of the chosen alone, the better the generator the harder is the question
        assert after["model_loss"] < 0.8 * before["model_loss"]
