"""Learning-rate schedules by their formulas; which parameters weight decay and Muon apply to."""

from functools import partial

import jax
import numpy as np
import optax
import pytest
from flax import linen as nn

from lm import config, optim
from lm.config import Attention, Block, Head, Mlp, Model, Norm, Schedule, Stack
from lm.errors import UserError
from lm.models.transformer import Transformer
from lm.types import Example, TokenStream

V, D = 37, 16
EXAMPLE = Example(None, TokenStream(*[np.ones((2, 8), np.int32)] * 3), None, None)
FULL = Block(Attention(2, bias=True, out_bias=True, qk_norm=Norm("rms")), Mlp(32, gated=True, bias=True))


@pytest.mark.parametrize("scan", [False, True])
def test_weight_decay_and_muon_apply_to_kernels(scan):
    """No norm, bias or embedding has weight decay; Muon leaves these and the head to Adam."""
    stack = Stack(2, {"L": FULL}, position=config.Learned(32), scan=scan)
    model = Model(V, D, decoder=stack, head=Head(tied=False, bias=True))
    params = nn.unbox(jax.eval_shape(Transformer(model).init, jax.random.key(0), EXAMPLE))["params"]
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    flat = {name(p): x for p, x in jax.tree_util.tree_flatten_with_path(params)[0]}
    decays = {name(p): x for p, x in jax.tree_util.tree_flatten_with_path(optim.is_matrix(params))[0]}
    assert {n for n, yes in decays.items() if yes} == {n for n in flat if n.endswith("/kernel")}
    assert not any(decays[n] for n in flat if "norm" in n or "embed" in n)

    dimensions = optim.muon_dimensions(params)
    is_leaf = lambda x: x is None or isinstance(x, optax.contrib.MuonDimensionNumbers)
    updated = {name(p): x for p, x in jax.tree_util.tree_flatten_with_path(dimensions, is_leaf=is_leaf)[0]}
    assert updated["head/out/kernel"] is None
    assert {n for n, x in updated.items() if x} == {n for n in flat if n.endswith("/kernel")} - {"head/out/kernel"}
    shift = 1 if scan else 0
    block = "decoder/groups/block_0" if scan else "decoder/group_1/block_0"
    sizes = lambda n, axes: int(np.prod([flat[n].shape[a] for a in axes]))
    for n, inputs, outputs in (("attention/query", D, D), ("attention/out", D, D), ("ffn/up", D, 32), ("ffn/down", 32, D)):
        x, n = updated[f"{block}/{n}/kernel"], f"{block}/{n}/kernel"
        assert (sizes(n, x.reduction_axis), sizes(n, x.output_axis)) == (inputs, outputs)
        assert sorted((*x.reduction_axis, *x.output_axis)) == list(range(shift, flat[n].ndim))
    assert updated[f"{block}/attention/out/kernel"].reduction_axis == (shift, shift + 1)


AFTER = {  # each schedule after the warm-up, with peak 1, by x (the share of it that has passed) and n (its updates so far)
    "constant": lambda x, n, final: 1.0,
    "linear": lambda x, n, final: 1 - (1 - final) * x,
    "cosine": lambda x, n, final: final + (1 - final) * (1 + np.cos(np.pi * x)) / 2,
    "rsqrt": lambda x, n, final: (11 / (11 + n)) ** 0.5,
    "wsd": lambda x, n, final: 1.0 if n <= 77 else 1 - (1 - final) * (n - 77) / 22,  # of 110 steps, a fifth decays
}


@pytest.mark.parametrize("kind", AFTER)
@pytest.mark.parametrize("warmup", [11, 0.1])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_every_schedule_by_its_formula(kind, warmup, final):
    """All rates of a run of 110 steps, with peak 2 and a warm-up of 11 steps or a tenth of the run."""
    rate = optim.schedule(Schedule(kind, warmup=warmup, final=final), 2.0, 110)
    expected = [2 * (s + 1) / 11 if s < 11 else 2 * AFTER[kind]((s - 11) / 99, s - 11, final) for s in range(110)]
    assert [float(rate(s)) for s in range(110)] == pytest.approx(expected, rel=1e-5, abs=1e-7)
    assert min(expected) > 0, "no step is wasted on a rate of 0"


def test_schedules():
    """Values computed by hand: peak 2, 110 steps."""
    at = lambda c, *steps: [float(optim.schedule(c, 2.0, 110)(s)) for s in steps]
    approx = partial(pytest.approx, rel=1e-5, abs=1e-7)
    assert at(Schedule("wsd", warmup=10, final=0.1, decay=50), 60, 85, 110) == approx([2, 1.1, 0.2])
    assert at(Schedule("linear", warmup=0, final=0.0), 0, 55, 110) == approx([2, 1, 0])
    assert at(Schedule("rsqrt", warmup=0), 0, 3, 8) == approx([2, 1, 2 / 3])


@pytest.mark.parametrize("kind", AFTER)
def test_short_schedules(kind):
    """A run of one step trains at the peak; a warm-up as long as the run ends at the peak, and a longer one is cut to it."""
    at = lambda warmup, steps: [
        float(optim.schedule(Schedule(kind, warmup=warmup, final=0.0), 2.0, steps)(s)) for s in range(steps)
    ]
    assert at(1, 1) == at(0, 1) == at(100, 1) == [2]
    assert at(4, 4) == at(100, 4) == pytest.approx([0.5, 1, 1.5, 2])
    assert at(0.01, 4)[0] == 2, "a hundredth of four steps rounds to none"


def test_a_decay_that_does_not_fit():
    with pytest.raises(UserError, match="decay=60 does not fit the 50 steps"):
        optim.schedule(Schedule("wsd", warmup=50, decay=60), 1.0, 100)
