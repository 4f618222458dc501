"""muP (arXiv 2203.03466): the multiplier of logits, each leaf's rate by the shapes of the base model, and what is refused."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lm import config, optim, sharding
from lm.config import Attention, Block, Embed, Head, Learned, Lora, Mlp, Model, Moe, Norm, Optimizer, Run, Schedule, Stack
from lm.data.rows import blank
from lm.errors import UserError
from lm.models.transformer import abstract_params
from lm.objectives import Lengths
from lm.recipes import task
from lm.training.assembly import computation

BASE, CONSTANT = 32, Schedule("constant", warmup=0)


def model(width: int, **changes) -> Model:
    """Every kind of leaf: heads of 8, biases, learned positions, a bias of the logits."""
    attention = Attention(width // 8, bias=True, out_bias=True, qk_norm=Norm("rms"))
    block = Block(attention, Mlp(2 * width, gated=True, bias=True), norm=Norm())
    stack = Stack(1, {"L": block}, position=Learned(16))
    return replace(Model(37, width, decoder=stack, embed=Embed(types=2), head=Head(bias=True)), **changes)


def run(made: Model, base: int | None = BASE, **changes) -> Run:
    return Run(made, optimizer=Optimizer(base_width=base), **changes)


def test_the_models_logits_have_the_multiplier():
    """Of a tied head 1 / m (table 8), of its own matrix 1 / sqrt(m) (table 9); a run that is built again is the same."""
    wide, own = run(model(128)), run(model(128, head=Head(tied=False)))
    assert (wide.model.head.scale, own.model.head.scale) == (0.25, 0.5)
    assert replace(wide, train=wide.train) == wide and wide.model == replace(model(128), head=Head(bias=True, scale=0.25))
    assert run(model(BASE)).model == model(BASE) and run(model(128), None).model == model(128)


@pytest.mark.parametrize("head", [Head(bias=True, transform="gelu"), Head(tied=False, bias=True)])
@pytest.mark.parametrize("scan", [False, True])
def test_rates_follow_from_the_shapes_of_the_base(head, scan):
    """A leaf that grew in two directions has 1 / m, one that grew in one has 1: but for the head, whose rates make up for its
    multiplier."""

    def shapes(width: int) -> dict[str, jax.ShapeDtypeStruct]:
        made = model(width, head=head)
        decoder = replace(made.decoder, scan=scan)
        encoder = replace(made.decoder, blocks={"L": replace(made.decoder.blocks["L"], cross=True)}) if not scan else decoder
        return abstract_params(replace(made, encoder=made.decoder if not scan else None, decoder=encoder))

    base, wide = shapes(BASE), shapes(128)
    grown = jax.tree.map(lambda a, b: round(np.log(b.size / a.size) / np.log(4)), base, wide)
    found = optim.width_factors(wide, 4.0)
    flat = lambda tree: {
        jax.tree_util.keystr(p, simple=True, separator="/"): x for p, x in jax.tree_util.tree_leaves_with_path(tree)
    }
    expected = {name: {2: 1 / 4, 1: 1.0, 0: 1.0}[directions] for name, directions in flat(grown).items()}
    if head.tied:
        expected["head/bias"] = 4.0
    else:
        expected |= {"head/out/kernel": 0.5, "head/out/bias": 2.0}
    assert flat(found) == expected
    assert {0.25, 1.0} <= set(expected.values()) and len(expected) > 20
    muon = flat(optim.width_factors(wide, 4.0, orthogonal=True))
    by_adam = {name for name in expected if name.startswith("head/")}  # a layer before the logits, which Muon leaves to Adam
    assert muon == {name: 1.0 if factor == 0.25 and name not in by_adam else factor for name, factor in expected.items()}


TREE = {"ffn": {"up": {"kernel": jnp.full((4, 4), 2.0)}}, "embed": {"embedding": jnp.full((3, 4), 2.0)}}


def update(optimizer: Optimizer, gradient: float, width: int = 128):
    tx, _ = optim.make(replace(optimizer, schedule=CONSTANT), 10, width=width)
    noise = jax.tree.map(lambda x: gradient * (1 + 0.1 * jnp.arange(x.size).reshape(x.shape)), TREE)
    change, _ = tx.update(noise, tx.init(TREE), TREE)
    return change["ffn"]["up"]["kernel"], change["embed"]["embedding"]


@pytest.mark.parametrize("name", ["adamw", "lion", "muon"])
def test_a_matrix_moves_by_less_and_decays_as_before(name):
    """Decay is the rate that is given times `weight_decay`, whatever the width."""
    given = Optimizer(name, 0.1, weight_decay=0.0)
    factor = 1.0 if name == "muon" else 0.25
    for gradient in (1.0, 1e-3):
        (kernel, table), (wide_kernel, wide_table) = update(given, gradient), update(replace(given, base_width=BASE), gradient)
        np.testing.assert_allclose(wide_kernel, factor * kernel, rtol=1e-6)
        np.testing.assert_array_equal(wide_table, table)
    decayed = (
        update(replace(given, weight_decay=0.5, base_width=BASE), 1.0)[0] - update(replace(given, base_width=BASE), 1.0)[0]
    )
    np.testing.assert_allclose(decayed, np.full((4, 4), -0.1 * 0.5 * 2.0), rtol=1e-5)


@pytest.mark.parametrize("name", ["adamw", "lion"])
def test_without_the_option_an_optimizer_is_optaxs_own(name):
    """To the bit, and with a state of the same structure, so that checkpoints go on."""
    rate, settings = lambda _: 0.1, dict(weight_decay=0.1, mask=optim.is_matrix)
    own = {"adamw": optax.adamw(rate, 0.9, 0.95, 1e-8, **settings), "lion": optax.lion(rate, 0.9, 0.95, **settings)}[name]
    tx, _ = optim.make(Optimizer(name, 0.1, CONSTANT), 10, width=128)
    state, expected = tx.init(TREE), own.init(TREE)
    for _ in range(3):
        assert jax.tree.structure(state) == jax.tree.structure(expected)
        (change, state), (other, expected) = tx.update(TREE, state, TREE), own.update(TREE, expected, TREE)
        jax.tree.map(np.testing.assert_array_equal, change, other)


def test_a_run_gives_its_width_to_the_optimizer(monkeypatch):
    given, make = {}, optim.make
    monkeypatch.setattr(optim, "make", lambda *values, **named: given.update(named) or make(*values, **named))
    made, lengths = run(model(128)), Lengths(None, 8)
    computation(made, task(made), sharding.make_mesh(made.mesh), lengths, blank(lengths))
    assert given["width"] == 128


def ffn(made: Model, **changes) -> Model:
    block = replace(made.decoder.blocks["L"], **changes)
    return replace(made, decoder=replace(made.decoder, blocks={"L": block}))


REFUSED = {
    "init_std": (lambda: run(model(128, init_std=0.02)), r"model.init_std=0.02 is the same at every width"),
    "table": (lambda: run(model(128, embed=Embed(width=8), head=Head(transform="gelu"))), r"embed.width=8 does not grow"),
    "router": (lambda: run(ffn(model(128), ffn=Moe(4, 2, Mlp(64)))), r"decoder.blocks.L.ffn of kind 'moe' has a router"),
    "hidden": (lambda: run(ffn(model(128), ffn=Mlp(90))), r"ffn.hidden=90 is no multiple of 4, the width divided by optim"),
    "heads": (lambda: run(ffn(model(128), attention=Attention(2))), r"num_heads=2 is no .*or, if heads grow, .*scale=0.0625"),
    "groups": (lambda: run(ffn(model(128), attention=Attention(8, 1))), r"num_kv_heads=1 is no multiple of 4"),
    "scale": (lambda: run(model(128, head=Head(scale=0.5))), r"head.scale=0.5 is not the 0.25 of optimizer.base_width=32"),
    "factored": (lambda: Optimizer("adafactor", base_width=32), "no rule for adafactor"),
    "recipe": (lambda: run(model(128), recipe=config.Finetune()), "for pretraining a single model"),
    "pair": (lambda: run(model(128), objective=config.ReplacedTokens(model(32))), "for pretraining a single model"),
    "adapter": (lambda: run(model(128), adapter=Lora(4), train=config.Train(init_from="x")), "for pretraining a single model"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_base_model_is_refused_in_a_line(case):
    make, said = REFUSED[case]
    with pytest.raises(UserError, match=said) as error:
        make()
    assert "\n" not in str(error.value)


def test_heads_that_grow_have_a_scale():
    """sqrt(base head dim) / head dim: at the base it is the usual 1 / sqrt(head dim), beyond it falls as 1 / head dim."""
    grown = Attention(2, scale=16**0.5 / 64)
    assert run(ffn(model(128), attention=grown)).model.decoder.blocks["L"].attention == grown
