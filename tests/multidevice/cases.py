"""With 8 simulated devices (see test_multidevice.py): sharded results equal unsharded ones, and arrays really are sharded."""

import math
import sys
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.sharding import NamedSharding

sys.path.insert(0, str(Path(__file__).parent))

from fixtures import rows, run

from lm import config, optim, sharding
from lm.checkpoint import Checkpoints
from lm.data.examples import ExampleBuilder
from lm.data.rows import blank, pack, stack
from lm.errors import UserError
from lm.generation.engine import Engine, Request
from lm.generation.text_engine import engine_for
from lm.generation.tools import write
from lm.losses.cross_entropy import cross_entropy
from lm.losses.log_probs import log_probs
from lm.models import adapters, embedding
from lm.models.transformer import Transformer, boxed_params, head_params
from lm.objectives import Lengths
from lm.recipes import distill, policy, recipe, rollout, task
from lm.training.assembly import check, computation
from lm.training.step import make_step, plan_state
from lm.types import Compared, Judged
from tests import toy
from tests.fakes import WordTokenizer
from tpu.collectives import collectives

LENGTHS = {
    "decoder": (config.Causal(), dict(decoder_length=16)),
    "encoder": (config.Masked(), dict(encoder_length=16)),
    "encoder_decoder": (config.SpanCorruption(), dict(encoder_length=16, decoder_length=16)),
}
MESHES = {
    "data": config.Mesh(data=8),
    "fsdp": config.Mesh(data=1, fsdp=8),
    "tensor": config.Mesh(data=2, tensor=4),
    "fsdp and tensor": config.Mesh(data=1, fsdp=4, tensor=2),
    "fsdp and sequence": config.Mesh(data=1, fsdp=4, sequence=2),
    "hybrid": config.Mesh(slice=2, data=1, fsdp=4),
    "expert": config.Mesh(data=2, expert=4),
    "fsdp and expert": config.Mesh(data=1, fsdp=2, expert=4),
    "all": config.Mesh(data=2, fsdp=2, tensor=2),
    "all of a pod": config.Mesh(slice=2, data=1, fsdp=1, sequence=2, tensor=2),
}


def start(r, data, devices=None):
    mesh = sharding.make_mesh(r.mesh, devices)
    what = task(r)
    tx, _ = optim.make(r.optimizer, r.train.steps)
    example = jax.tree.map(jnp.asarray, stack([blank(data.objective.lengths)] * 8))
    with sharding.use(mesh):
        plan = plan_state(lambda key: what.init(key, example), tx, mesh, ema=False, offload=r.optimizer.offload)
        step = make_step(what.loss, tx, plan, optimizer=r.optimizer, train=r.train, asked=what.asked)
    return mesh, plan, step


def steps(r, data, count, devices=None):
    mesh, plan, step = start(r, data, devices)
    seen = []
    with sharding.use(mesh):
        state = plan.create(0)
        for s in range(count):
            state, metrics = step(state, None, sharding.global_batch(data.rows, np.arange(8 * s, 8 * s + 8), mesh))
            seen.append(float(metrics["loss"]))
    return state, seen


@cache
def unsharded(architecture):
    objective, lengths = LENGTHS[architecture]
    data = rows(architecture, objective, **lengths)
    return data, steps(run(architecture, objective, config.Mesh()), data, 4, jax.devices()[:1])


CASES = [("decoder", strategy) for strategy in MESHES if "expert" not in strategy]  # expert strategies are tested below
CASES += [(a, strategy) for a in ("encoder", "encoder_decoder") for strategy in ("all", "fsdp and sequence")]


@pytest.mark.parametrize(("architecture", "strategy"), CASES)
def test_sharded_is_unsharded(architecture, strategy):
    data, one = unsharded(architecture)
    many = steps(run(architecture, LENGTHS[architecture][0], MESHES[strategy]), data, 4)
    np.testing.assert_allclose(many[1], one[1], rtol=2e-5)
    assert many[1][-1] < many[1][0]
    for a, b in zip(jax.tree.leaves(many[0].params), jax.tree.leaves(one[0].params), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-4)


@pytest.mark.parametrize(("join", "strategy"), [("cross", "fsdp and sequence"), ("prefix", "all")])
def test_vectors_between_the_stacks_are_drawn_alike_on_any_mesh(join, strategy):
    """The bottleneck of a variational autoencoder, of several documents in a row: losses, drawn numbers and parameters."""
    objective = config.Variational(anneal=0.5, free=0.5)
    data = rows("encoder_decoder", objective, encoder_length=16, decoder_length=16)
    bottleneck = config.Bottleneck(vectors=2, pool="queries", num_heads=4, width=8, latent="gaussian", documents=4)

    def made(mesh):
        r = run("encoder_decoder", objective, mesh)
        changes = dict(decoder=r.model.encoder) if join == "prefix" else {}
        return replace(r, model=replace(r.model, bottleneck=bottleneck, join=join, **changes))

    one = steps(made(config.Mesh()), data, 4, jax.devices()[:1])
    many = steps(made(MESHES[strategy]), data, 4)
    np.testing.assert_allclose(many[1], one[1], rtol=2e-5)
    for a, b in zip(jax.tree.leaves(many[0].params), jax.tree.leaves(one[0].params), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-4)


@pytest.mark.parametrize("strategy", ["data", "fsdp and tensor", "fsdp and sequence", "fsdp and expert"])
def test_sharded_is_unsharded_in_bfloat16(strategy):
    """Up to the rounding of sums over devices; parameters are float32, and their gradients are sent in bfloat16."""
    data = rows("decoder", config.Causal(), decoder_length=16)
    one, many = (
        steps(run("decoder", config.Causal(), mesh, dtype="bfloat16"), data, 4, devices)[1]
        for mesh, devices in ((config.Mesh(), jax.devices()[:1]), (MESHES[strategy], None))
    )
    np.testing.assert_allclose(many, one, rtol=5e-3)


def test_queries_are_cut_though_their_only_key_is_not():
    """Multi-query attention: query heads are sharded, the single key-value head is replicated."""
    data = rows("decoder", config.Causal(), decoder_length=16)
    model = run("decoder", config.Causal(), config.Mesh()).model
    block = replace(model.decoder.blocks["L"], attention=config.Attention(4, num_kv_heads=1))
    model = replace(model, decoder=replace(model.decoder, blocks={"L": block}))
    one, many = (
        steps(replace(run("decoder", config.Causal(), mesh), model=model), data, 4, devices)
        for mesh, devices in ((config.Mesh(), jax.devices()[:1]), (MESHES["tensor"], None))
    )
    np.testing.assert_allclose(many[1], one[1], rtol=2e-5)
    attention = many[0].params["decoder"]["group_0"]["block_0"]["attention"]
    cut = {name: attention[name]["kernel"].size / shard(attention[name]["kernel"]) for name in attention}
    assert cut == {"query": 4, "key": 1, "value": 1, "out": 4}


@cache
def recurrent(strategy):
    """Three steps of a decoder of an LSTM, a gated linear recurrence, Mamba-2 and attention; None: on one device."""
    data = rows("decoder", config.Causal(), decoder_length=16)
    r, mlp = run("decoder", config.Causal(), MESHES[strategy] if strategy else config.Mesh()), config.Mlp(64)
    blocks = {
        "S": config.Block(None, mlp, mixer=config.Lstm()),
        "R": config.Block(None, mlp, mixer=config.GatedLinear(hidden=64, num_heads=4)),
        "M": config.Block(mixer=config.Mamba2(head_dim=8, state=8, groups=2, chunk=8)),
        "L": r.model.decoder.blocks["L"],
    }
    stack = replace(r.model.decoder, num_layers=4, blocks=blocks, pattern="SRML")
    return steps(replace(r, model=replace(r.model, decoder=stack)), data, 3, None if strategy else jax.devices()[:1])


@pytest.mark.parametrize("strategy", ["data", "fsdp and tensor", "fsdp and sequence", "all of a pod"])
def test_sharded_recurrent_layers_are_unsharded(strategy):
    """A row that is cut is whole for recurrent layers."""
    many, one = recurrent(strategy), recurrent(None)
    np.testing.assert_allclose(many[1], one[1], rtol=2e-5)
    for a, b in zip(jax.tree.leaves(many[0].params), jax.tree.leaves(one[0].params), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-4)
    cut = 8 * shard(many[0].params["decoder"]["group_0"]["block_2"]["mixer"]["forward"]["up"]["kernel"])
    assert cut == {"data": 8, "fsdp and tensor": 1, "fsdp and sequence": 1, "all of a pod": 2}[strategy] * 32 * 8 * 8


@pytest.mark.parametrize("scan", [False, True])
def test_parameters_moments_and_activations_are_really_sharded(scan):
    r = run("decoder", config.Causal(), MESHES["all"], scan=scan)
    data = rows("decoder", config.Causal(), decoder_length=16)
    mesh, plan, step = start(r, data)
    assert sharding.replicated_params(plan.abstract.params, plan.shardings.params, mesh, least=1024) == []
    with sharding.use(mesh):
        state = plan.create(0)
        batch = sharding.global_batch(data.rows, np.arange(8), mesh)
        text = step.lower(state, None, batch).compile().as_text()
    whole, share = (sum(f(x) for x in jax.tree.leaves((state.params, state.opt_state))) for f in (lambda x: x.size, shard))
    assert share < 0.3 * whole, "fsdp=2 x tensor=2 leaves about a quarter on a device"
    # 8 rows over data x fsdp = 4 shards: a hidden activation is [2 rows * 16, 64 hidden / 2 tensor] per device.
    assert "f32[32,32]" in text and "f32[128,64]" not in text
    assert "all-gather" in text and ("all-reduce" in text or "reduce-scatter" in text)


def test_a_frozen_tree_is_sharded_as_parameters_are_and_changes_nothing():
    """Nor does a batch of pairs, in microbatches: state and metrics are those of one device."""
    found = []
    for mesh in (
        sharding.make_mesh(config.Mesh(data=1, fsdp=4, tensor=2)),
        sharding.make_mesh(config.Mesh(), jax.devices()[:1]),
    ):
        r, toys = toy.run(train=config.Train(batch_size=8, microbatches=2)), toy.Toy()
        data = toys.rows(r, None)["train"]
        made = computation(r, toy.TASK, mesh, data.lengths, toys.row(data))
        with sharding.use(mesh):
            state, frozen = made.plan.create(0), toy.teacher(made.frozen)
            for s in range(3):
                state, metrics = made.step(state, frozen, sharding.global_batch(toy.pairs, np.arange(8 * s, 8 * s + 8), mesh))
        found.append((state, metrics))
        assert shard(frozen["kernel"]) == toy.D**2 // mesh.size
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *found)


JUDGED = {
    "reward": config.Reward(length=6, answer=5, prefix=False, centre=0.01),
    "dpo": config.Preference("dpo", length=6, answer=5, prefix=False),
    "kto": config.Preference("kto", length=6, answer=5, prefix=False),
}


@pytest.mark.parametrize("kind", JUDGED)
def test_preferences_on_a_mesh_are_those_of_one_device(kind):
    """The reference is sharded as the parameters are; KTO's divergence is a mean over the rows of all devices."""
    rewards, batch = kind == "reward", Judged if kind == "kto" else Compared
    builder = ExampleBuilder(WordTokenizer(), "decoder", length=6, answer=5, prefix=False)
    make = builder.reward_example if rewards else builder.last_turn_example
    lengths = builder.reward_lengths if rewards else builder.answer_lengths

    def pairs(index):
        def side(salt):
            rngs = [np.random.default_rng((int(i), salt)) for i in index]
            texts = [(rng.integers(3, 26, rng.integers(1, 7)), rng.integers(3, 26, rng.integers(1, 6))) for rng in rngs]
            return stack([pack([make(*text)], lengths) for text in texts])

        return batch(side(0), side(1), (np.asarray(index) % 2).astype(np.float32))

    found = []
    for c, devices in ((config.Mesh(data=1, fsdp=4, tensor=2), None), (config.Mesh(), jax.devices()[:1])):
        r, mesh = replace(run("decoder", config.Causal(), c), recipe=JUDGED[kind]), sharding.make_mesh(c, devices)
        model = replace(r.model, head=config.Head(tied=False, outputs=1)) if rewards else r.model
        r, recipe_of = replace(r, model=model), recipe(r)
        recipe_of.reference = SimpleNamespace(params=None)  # it has no file: its arrays are those of another seed
        row = jax.tree.map(lambda x: np.zeros_like(x[0]), pairs(np.arange(1)))
        made = computation(r, recipe_of.task(r), mesh, lengths, row)
        with sharding.use(mesh):
            state, frozen, losses = made.plan.create(0), None if rewards else made.plan.create(1).params, []
            for s in range(3):
                state, seen = made.step(state, frozen, sharding.global_batch(pairs, np.arange(8 * s, 8 * s + 8), mesh))
                losses.append(seen)
        found.append((state.params, losses))
    (many, metrics), (one, wanted) = found
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), metrics, wanted)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=3e-4), many, one)
    assert float(metrics[0]["loss"]) != float(metrics[2]["loss"])


EXPERTS = {
    "dropless": config.Moe(4, 2, config.Mlp(64, gated=True), balance=0.1, z=0.1),
    "limited": config.Moe(4, 2, config.Mlp(64), capacity=0.75, balance=0.1, z=0.1),
}


# Per strategy: the collectives (kind, axis) that it must have, and the axes over which it may gather parameters, keys, values.
SENT = {
    "data": ({("all-reduce", "data")}, set()),
    "fsdp": ({("all-gather", "fsdp")}, {"fsdp"}),
    "tensor": ({("all-reduce", "tensor"), ("all-reduce", "data")}, {"tensor"}),
    "fsdp and tensor": ({("all-gather", "fsdp"), ("all-reduce", "tensor")}, {"fsdp", "tensor"}),
    "fsdp and sequence": ({("all-gather", "fsdp"), ("all-gather", "sequence")}, {"fsdp", "sequence"}),
    "hybrid": ({("all-gather", "fsdp"), ("all-reduce", "slice")}, {"fsdp"}),
    "expert": ({("all-to-all", "expert"), ("all-reduce", "data")}, set()),
    "fsdp and expert": ({("all-gather", "fsdp"), ("all-to-all", "expert")}, {"fsdp"}),
}


@pytest.mark.parametrize("strategy", SENT)
def test_a_strategy_sends_what_it_should_and_gathers_nothing_whole(strategy):
    """Only a layer's parameters, tables, and the keys and values of the device's rows are gathered: no stack of layers, no
    batch.

    Over `expert`, tokens are sent to their experts and back, and gradients are summed; activations are not summed.
    """
    width, hidden, vocab, length = 32, 64, 512, 24
    ffn = EXPERTS["limited"] if "expert" in strategy else config.Mlp(hidden)
    r = run("decoder", config.Causal(), MESHES[strategy], scan=True, layers=3, ffn=ffn)
    data = rows("decoder", config.Causal(), decoder_length=length)
    mesh, plan, step = start(r, data)
    with sharding.use(mesh):
        batch = sharding.global_batch(data.rows, np.arange(8), mesh)
        text = step.lower(plan.targets(), None, batch).compile().as_text()
    found = collectives(text, dict(mesh.shape))
    wanted, gathering = SENT[strategy]
    assert wanted <= {(c.kind, axis) for c in found for axis in c.axes}
    gathered = [c for c in found if c.kind == "all-gather"]
    assert {axis for c in gathered for axis in c.axes} <= gathering
    parameters = {n // cut for n in (vocab * width, width * width, width * hidden, width, width * 4) for cut in (1, 2, 4)}
    rows_of_a_device = 8 // (mesh.shape["slice"] * mesh.shape["data"] * mesh.shape["fsdp"])
    allowed = parameters | {rows_of_a_device * length * width}
    assert not [c for c in gathered if math.prod(c.shape) not in allowed and c.dtype == "f32"]
    summed = [c for c in found if c.kind == "all-reduce" and "expert" in c.axes and math.prod(c.shape) > width]
    assert not [c for c in summed if math.prod(c.shape) not in parameters]


@pytest.mark.parametrize("strategy", ["fsdp", "all of a pod", "fsdp and expert", "data"])
@pytest.mark.parametrize("vocab", [64, 4])
def test_a_table_is_looked_up_and_its_gradient_added_up(strategy, vocab):
    """With a long table, tokens are sent to its shards; a short table is gathered."""
    width, mesh = 32, sharding.make_mesh(MESHES[strategy])
    rng = np.random.default_rng(0)
    ids, table, ways = rng.integers(0, vocab, (8, 8)), rng.normal(size=(vocab, width)), rng.normal(size=(8, 8, width))
    expected = np.zeros((vocab, width))
    np.add.at(expected, ids, ways)

    def embedding_lookup(table, ids):
        vectors = embedding.embedding_lookup(table, ids, "float32", ("vocab", "embed"))
        return jnp.sum(vectors * ways), vectors

    with sharding.use(mesh):
        place = lambda x, dtype, *names: jax.device_put(x.astype(dtype), NamedSharding(mesh, sharding.spec(*names)))
        given = place(table, "float32", "vocab", "embed"), place(ids, "int32", "batch", "length")
        step = jax.jit(jax.grad(embedding_lookup, has_aux=True)).lower(*given).compile()
        gradient, vectors = step(*given)
    np.testing.assert_array_equal(vectors, table.astype("float32")[ids])
    np.testing.assert_allclose(gradient, expected, atol=1e-5)
    sent = {c.kind for c in collectives(step.as_text(), dict(mesh.shape)) if c.shape}
    travel = vocab == 64 and mesh.shape["fsdp"] * mesh.shape["sequence"] > 1
    assert ("all-to-all" in sent) == travel and ("all-gather" in sent or strategy == "data")


@pytest.mark.parametrize("strategy", ["expert", "fsdp, expert and tensor"])
@pytest.mark.parametrize("kind", EXPERTS)
def test_sharded_experts_are_unsharded(kind, strategy):
    """Loss and gradients agree; each device has one or two of four experts and its own rows, with different amounts of
    padding."""
    c = MESHES["expert"] if strategy == "expert" else config.Mesh(data=1, fsdp=2, expert=2, tensor=2)
    many, state, text = loss_and_gradients(kind, c, jax.devices(), scan=strategy == "expert")
    one, _, _ = loss_and_gradients(kind, config.Mesh(), jax.devices()[:1], scan=strategy == "expert")
    np.testing.assert_allclose(many[0], one[0], rtol=2e-5)
    for a, b in zip(jax.tree.leaves(many[1]), jax.tree.leaves(one[1]), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5)
    ffn = state.params["decoder"]["groups" if strategy == "expert" else "group_1"]["block_0"]["ffn"]
    assert all(8 * shard(ffn[name]["kernel"]) == c.data * ffn[name]["kernel"].size for name in ("up", "down"))
    assert "all-to-all" in text or kind == "dropless", "tokens go to their experts and come back"


def loss_and_gradients(kind, c, devices, scan):
    data = rows("decoder", config.Causal(), decoder_length=16)
    r = run("decoder", config.Causal(), c, ffn=EXPERTS[kind], scan=scan)
    mesh, plan, _ = start(r, data, devices)
    loss = partial(cross_entropy, apply=Transformer(r.model).apply, head_params=head_params, vocab_size=512)
    with sharding.use(mesh):
        state, batch = plan.create(0), sharding.global_batch(lambda index: cut(data.rows(index), index), np.arange(8), mesh)
        step = jax.jit(jax.value_and_grad(lambda p, e: loss(p, example=e).mean)).lower(state.params, batch).compile()
        return step(state.params, batch), state, step.as_text()


@pytest.mark.parametrize("strategy", ["data", "all", "fsdp and sequence", "all of a pod"])
def test_sharded_log_probs_are_unsharded(strategy):
    """Per-token values and the gradient of a function of them agree; half of the vocabulary is forbidden."""
    data = rows("decoder", config.Causal(), decoder_length=16)

    def values_and_gradient(c, devices):
        r = run("decoder", config.Causal(), c)
        mesh, plan, _ = start(r, data, devices)
        ours = partial(log_probs, apply=Transformer(r.model).apply, head_params=head_params, vocab_size=512, chunks=2)

        def loss(params, example, forbidden):
            values = ours(params, example=example, forbidden=forbidden)
            return jnp.sum(example.weights * jnp.cos(values)), values

        with sharding.use(mesh):
            state, batch = plan.create(0), sharding.global_batch(lambda index: cut(data.rows(index), index), np.arange(8), mesh)
            forbidden = jnp.arange(512) % 2 == 1
            batch = batch.replace(targets=batch.targets // 2 * 2)
            (_, values), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(state.params, batch, forbidden)
            return values, gradient

    one, many = values_and_gradient(config.Mesh(), jax.devices()[:1]), values_and_gradient(MESHES[strategy], None)
    assert many[0].shape == (8, 16) and shard(many[0]) == 128 // (4 if strategy in ("all", "all of a pod") else 8)
    assert np.abs(jax.tree.leaves(one[1])[0]).max() > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), many, one)


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp and tensor", "all"])
def test_texts_are_the_same_on_any_mesh(strategy):
    """The engine with its parameters, slots and heads sharded: tokens equal, log-probabilities to 1e-5."""
    data = rows("decoder", config.Causal(), decoder_length=16)
    rng = np.random.default_rng(0)
    prompts = [rng.integers(110, 512, n).astype(np.int32) for n in (3, 17, 1, 9, 5, 12, 2, 20, 7)]

    def written(c, devices):
        r = run("decoder", config.Causal(), c)
        mesh, plan, _ = start(r, data, devices)
        with sharding.use(mesh):
            params = jax.tree.map(lambda x: 2 * x, plan.create(0).params)  # sharper than a model that knows nothing
        engine = Engine(Transformer(r.model), params, slots=8, length=48, steps=5, mesh=mesh)
        engine.warm()
        compiled = engine.compilations
        requests = [Request(p, 10, config.Sampling(temperature=0.8, top_k=50, seed=i)) for i, p in enumerate(prompts)]
        found = [[(w.token, w.log_prob) for w in sample] for (sample,) in engine.write(requests)]
        assert engine.compilations == compiled
        return np.array(found), engine

    (one, _), (many, engine) = written(config.Mesh(), jax.devices()[:1]), written(MESHES[strategy], None)
    np.testing.assert_array_equal(one[..., 0], many[..., 0])
    np.testing.assert_allclose(one[..., 1], many[..., 1], atol=1e-5)
    assert len(np.unique(one[..., 0])) > 20
    keys = [x for x in jax.tree.leaves(engine._slots.cache) if x.ndim == 4]
    assert keys and all(shard(x) < x.size for x in keys)
    if strategy == "all":
        with pytest.raises(UserError, match="6 slots do not divide over 4 data shards: take a multiple of these"):
            Engine(engine.model, engine.params, slots=6, mesh=sharding.make_mesh(MESHES[strategy]))


@pytest.mark.parametrize("strategy", ["fsdp and sequence", "all of a pod"])
def test_texts_in_the_middle_of_training_are_the_same_on_any_mesh(strategy):
    """On the mesh in use, whose data shards the slots are rounded up to."""
    data, tokenizer = rows("decoder", config.Causal(), decoder_length=16), WordTokenizer()
    requests = [Request(np.arange(3, 3 + n, dtype=np.int32), 9, config.Sampling(seed=n)) for n in (2, 7, 18)]

    def written(c, devices):
        r = run("decoder", config.Causal(), c)
        mesh, plan, _ = start(r, data, devices)
        with sharding.use(mesh):
            engine = engine_for(requests, Transformer(r.model), plan.create(0).params, tokenizer, slots=3, ends=[2])
            return [[w.token for w in sample] for (sample,) in engine.write(requests)], len(engine._texts)

    (one, few), (many, slots) = written(config.Mesh(), jax.devices()[:1]), written(MESHES[strategy], None)
    assert one == many and (few, slots) == (3, 4) and len({token for text in one for token in text}) > 5


def cut(example, index):
    """Replaces the last 2 i tokens of row i by padding."""
    kept = (np.arange(16) < 16 - 2 * index[:, None]).astype(np.int32)
    stream = example.decoder.replace(segments=example.decoder.segments * kept)
    return example.replace(decoder=stream, weights=example.weights * kept)


def shard(x):
    return int(np.prod(x.sharding.shard_shape(x.shape)))


@pytest.mark.parametrize("before", [(), ("moments",)])
def test_a_checkpoint_moves_to_another_topology(tmp_path, before):
    """And its moments from the devices to the hosts' memory and back."""
    data = rows("decoder", config.Causal(), decoder_length=16)
    optimizer = run("decoder", config.Causal(), config.Mesh()).optimizer
    placed = lambda mesh, parts: replace(run("decoder", config.Causal(), mesh), optimizer=replace(optimizer, offload=parts))
    r = placed(MESHES["all"], before)
    state, _ = steps(r, data, 3)
    saved = Checkpoints(tmp_path, config.Checkpoint(), r, b"tokenizer")
    saved.save(state)
    saved.wait()
    for devices, mesh, offload in (
        (8, config.Mesh(fsdp=4), ("moments",)),
        (2, config.Mesh(fsdp=2), ()),
        (1, config.Mesh(), before),
    ):
        new_mesh, plan, step = start(placed(mesh, offload), data, jax.devices()[:devices])
        with sharding.use(new_mesh):
            moved = saved.restore(3, plan.targets())
            for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(state), strict=True):
                np.testing.assert_array_equal(a, b)
            moved, metrics = step(moved, None, sharding.global_batch(data.rows, np.arange(24, 32), new_mesh))
            assert np.isfinite(metrics["loss"]) and int(moved.step) == 4
            kinds = {x.sharding.memory_kind for x in jax.tree.leaves(moved.opt_state) if x.shape}
            assert kinds == {"pinned_host" if offload else "device"}
    saved.close()


def test_what_does_not_divide_is_named():
    with pytest.raises(UserError, match=r"mesh data=3 does not divide 8 devices"):
        sharding.make_mesh(config.Mesh(data=3))
    mesh = sharding.make_mesh(config.Mesh())
    with pytest.raises(UserError, match=r"batch_size=12 does not divide over 8 data shards x 1 microbatches; take 16"):
        sharding.check_batch(12, 1, mesh)
    with pytest.raises(UserError, match=r"axis 'heads' of 4 does not divide over tensor=8"):
        start(
            run("decoder", config.Causal(), config.Mesh(data=1, tensor=8)),
            rows("decoder", config.Causal(), decoder_length=16),
        )


def test_an_axis_takes_what_the_others_leave():
    sizes = lambda c: {axis: n for axis, n in sharding.make_mesh(c).shape.items() if n > 1}
    assert sizes(config.Mesh(fsdp=-1, tensor=4)) == {"fsdp": 2, "tensor": 4}
    assert sizes(config.Mesh(tensor=4)) == {"data": 2, "tensor": 4}
    with pytest.raises(UserError, match="fsdp and tensor are both -1"):
        sharding.make_mesh(config.Mesh(fsdp=-1, tensor=-1))


def test_a_kernel_or_a_row_that_the_devices_cannot_take_is_named():
    r = run("decoder", config.Causal(), config.Mesh(sequence=8), kernel="splash")
    mesh = sharding.make_mesh(r.mesh)
    with pytest.raises(
        UserError, match="model.kernel='splash' runs on TPUs alone, and this is a cpu: set --config.model.kernel"
    ):
        check(replace(r, data=config.Data(decoder_length=16)), recipe(r), mesh)
    with pytest.raises(UserError, match="data.decoder_length=20 does not divide over mesh.sequence=8"):
        check(replace(r, data=config.Data(decoder_length=20)), recipe(r), mesh)


def test_unknown_axis_names_raise():
    import flax.linen as nn

    mesh = sharding.make_mesh(config.Mesh())
    boxed = {"kernel": nn.LogicallyPartitioned(jax.ShapeDtypeStruct((4, 4), jnp.float32), ("embed", "hiden"))}
    with pytest.raises(ValueError, match="unknown axis name 'hiden'; did you mean 'hidden'"):
        sharding.param_shardings(boxed, mesh)
    with pytest.raises(ValueError, match="kernel names no axes"):
        sharding.param_shardings({"kernel": jax.ShapeDtypeStruct((4,), jnp.float32)}, mesh)


@pytest.mark.parametrize("architecture", ["decoder", "encoder"])
def test_a_distillation_is_that_of_one_device_and_its_teacher_is_sharded(architecture):
    """Logits, hidden vectors and relations, of a scanned teacher of more layers."""
    objective, lengths = LENGTHS[architecture]
    data, found = rows(architecture, objective, **lengths), []
    for mesh, devices in ((MESHES["all"], None), (config.Mesh(), jax.devices()[:1])):
        r = run(architecture, objective, mesh)
        teacher = run(architecture, objective, mesh, scan=True, layers=3).model
        mesh = sharding.make_mesh(mesh, devices)
        # Adam's usual epsilon makes a whole step of a gradient's rounding.
        r = replace(r, optimizer=replace(r.optimizer, eps=1.0))
        r = replace(r, recipe=config.Distill("there", hidden=1.0, relations=1.0, beta=0.5, temperature=2.0))
        what = distill.task(r, SimpleNamespace(model=teacher, params=None))
        made = computation(r, what, mesh, data.objective.lengths, blank(data.objective.lengths))
        with sharding.use(mesh):
            state, start = made.plan.create(0), what.frozen.init
            placed = jax.tree.map(lambda x: x.sharding, made.frozen)
            example = jax.tree.map(jnp.asarray, stack([blank(made.lengths)] * 8))
            init = lambda key, start=start, example=example: nn.unbox(start(key, example))
            frozen = jax.jit(init, out_shardings=placed)(jax.random.key(7))
            before = jax.tree.map(np.array, frozen)
            for s in range(2):
                state, metrics = made.step(state, frozen, sharding.global_batch(data.rows, np.arange(8 * s, 8 * s + 8), mesh))
            jax.tree.map(np.testing.assert_array_equal, before, frozen)
        kernel = frozen[architecture]["groups"]["block_0"]["ffn"]["up"]["kernel"]
        assert shard(kernel) == kernel.size // (4 if mesh.size == 8 else 1)
        found.append((state.params, metrics))
    (many, metrics), (one, expected) = found
    for name in ("loss", "divergence", "cross_entropy", "hidden", "relations"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-4)
    for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-7)


@pytest.mark.parametrize(("method", "strategy"), [("grpo", "fsdp"), ("ppo", "all")])
def test_a_sharded_policy_is_the_unsharded_one(method, strategy):
    """Samples written on the mesh, and two steps over them, each of two epochs of two minibatches."""
    lengths = Lengths(None, 16, 6)
    recipe = config.Policy(method, group=4, answer=6, epochs=2, minibatches=2)
    prompts = np.random.default_rng(0).integers(110, 512, (4, 9)).astype(np.int32)

    def stepped(c, devices):
        r = run("decoder", config.Causal(), c)
        r = replace(r, recipe=recipe, train=replace(r.train, batch_size=16))
        mesh, what = sharding.make_mesh(c, devices), policy.task(r, SimpleNamespace(params=None))
        tx, _ = optim.make(r.optimizer, r.train.steps, updates=what.updates.count)
        example = jax.tree.map(lambda x: jnp.zeros((16, *x.shape), x.dtype), rollout.blank_row(lengths))
        settings = dict(optimizer=r.optimizer, train=r.train, updates=what.updates)
        with sharding.use(mesh):
            plan = plan_state(lambda key: what.init(key, example), tx, mesh, ema=False)
            step, state = make_step(what.loss, tx, plan, **settings), plan.create(0)
            model, own = what.writer(state.params, None)
            frozen = jax.tree.map(lambda x: 1.1 * x, {"model": own} if method == "ppo" else own)
        engine, found = Engine(model, own, slots=16, length=17, steps=6, eos=(2,), mesh=mesh), []
        for s in range(2):
            engine.params = what.writer(state.params, None)[1]
            asked = [Request(p, 6, config.Sampling(seed=10 * s + i), samples=4) for i, p in enumerate(prompts)]
            written = [answer for answers in write(engine, asked) for answer in answers]
            rewards = np.array([sum(answer.tokens) % 7 for answer in written], np.float32)
            batch = rollout.gathered([(None, p) for p in prompts for _ in range(4)], written, rewards, lengths, ends=(2,))
            with sharding.use(mesh):
                place = lambda rows, batch=batch: jax.tree.map(lambda x: x[rows], batch)
                state, metrics = step(state, frozen, sharding.global_batch(place, np.arange(16), mesh))
            found.append([float(metrics[name]) for name in ("loss", "grad_norm", "reward", "kl", "entropy", "clipped")])
            assert metrics["mismatch_max"] < 1e-5
        return np.array(found), state

    (one, _), (many, state) = stepped(config.Mesh(), jax.devices()[:1]), stepped(MESHES[strategy], None)
    np.testing.assert_allclose(many, one, rtol=2e-3, atol=2e-5)
    assert (one[:, 1] > 0.01).all() and one[0, 3] > 1e-3
    assert any(shard(x) < x.size for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize(("strategy", "base"), [("fsdp and tensor", "float"), ("all", "nf4")])
def test_adapters_are_sharded_as_their_matrices_are(strategy, base):
    data = rows("decoder", config.Causal(), decoder_length=16)
    row = blank(data.objective.lengths)

    def stepped(c, devices):
        r = run("decoder", config.Causal(), c, scan=True)
        r = replace(r, train=replace(r.train, init_from="base"), adapter=config.Lora(rank=4, dora=base == "float", base=base))
        mesh, boxed = sharding.make_mesh(c, devices), boxed_params(Transformer(r.model))
        made = computation(r, task(r), mesh, data.objective.lengths, row)
        params = nn.unbox(task(replace(r, adapter=None)).init(jax.random.key(0), stack([row] * 8)))
        held = adapters.as_held(params, boxed, base)
        frozen = {"base": jax.tree.map(lambda x, like: jax.device_put(x, like.sharding), held, made.frozen["base"])}
        found = []
        with sharding.use(mesh):
            state = made.plan.create(0)
            for s in range(3):
                batch = sharding.global_batch(data.rows, np.arange(8 * s, 8 * s + 8), mesh)
                state, metrics = made.step(state, frozen, batch)
                found.append(float(metrics["loss"]))
        return found, state, frozen

    (one, _, _), (many, state, frozen) = stepped(config.Mesh(), jax.devices()[:1]), stepped(MESHES[strategy], None)
    np.testing.assert_allclose(many, one, rtol=5e-5)
    assert len(set(many)) == 3
    query = state.params["adapters"]["decoder"]["groups"]["block_0"]["attention"]["query"]["kernel"]
    assert shard(query["a"]) < query["a"].size and shard(query["b"]) < query["b"].size
    kernel = frozen["base"]["decoder"]["groups"]["block_0"]["attention"]["query"]["kernel"]
    assert all(shard(x) < x.size for x in jax.tree.leaves(kernel))
