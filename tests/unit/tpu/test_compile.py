"""`tpu.compile` without libtpu: its requirements, its errors, and the parts that need no compiler."""

import dataclasses
import re
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lm import config, sharding
from lm.config import resolve
from lm.errors import UserError
from lm.objectives import build
from lm.objectives.dummy_vocabulary import DummyVocabulary
from lm.sharding import make_mesh
from lm.training.assembly import bytes_a_device
from tpu import aot, jobs, libtpu, planned
from tpu.compile import main
from tpu.topologies import CHIPS, GIB

BLOCK = config.Block(config.Attention(2), config.Mlp(64))
DECODER = config.Stack(2, {"L": BLOCK}, position=config.Rope())
RUN = config.Run(
    config.Model(256, 32, decoder=DECODER), config.Data(decoder_length=16), train=config.Train(batch_size=4, microbatches=2)
)


@pytest.fixture
def said(tmp_path, capsys, monkeypatch):
    """Runs the command on a small config with these flags; returns its exit code and stderr."""
    monkeypatch.delenv(libtpu.PATH, raising=False)
    monkeypatch.setattr(libtpu.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "config.json").write_text(resolve.to_json(RUN))

    def run(*flags):
        code = main([f"--config={tmp_path}/config.json", *flags])
        return code, capsys.readouterr().err

    return run


MISTAKES = {
    "no pod": ([], "the config names no pod; add --topology"),
    "no libtpu": (["--topology=v5e:2x4"], r"libtpu.* is not installed: pip install 'jax\[tpu\]'.*TPU_LIBRARY_PATH"),
    "generation": (["--topology=v5:2x4"], "no generation 'v5'; did you mean 'v5p'"),
    "dimensions": (["--topology=v5p:2x4"], "v5p has 3 dimensions, as in 'v5p:4x4x4'"),
    "slices": (["--topology=v5e:2x4", "--slices=0"], "--slices=0 is too small"),
    "nowhere to write": (["--topology=v5e:2x4", "--json=/nowhere/r.json"], "--json=/nowhere/r.json: there is no such folder"),
    "both": (["--topology=v5e:2x4", "--serve", "--advise"], "leave --serve out"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(said, name):
    flags, cause = MISTAKES[name]
    code, err = said(*flags)
    assert code == 2 and err.startswith("error: ") and err.count("\n") == 1
    assert re.search(cause, err), err


def test_a_library_that_is_not_there(said, monkeypatch):
    monkeypatch.setenv(libtpu.PATH, "/nowhere/libtpu.so")
    assert "TPU_LIBRARY_PATH=/nowhere/libtpu.so is not a file" in said("--topology=v5e:2x4")[1]


def test_the_pod_of_the_config_and_flags_before_it():
    from tpu.compile import parser, pod_of

    run = dataclasses.replace(RUN, pod=config.Pod("v5e:16x16", slices=2))
    flags = lambda *words: parser().parse_args(["--config=F", *words])
    shown = lambda pod: (str(pod[0]), pod[1])
    assert shown(pod_of(run, flags())) == ("v5e:16x16", 2)
    assert shown(pod_of(run, flags("--slices=1"))) == ("v5e:16x16", 1)
    assert shown(pod_of(run, flags("--topology=v6e:4x4"))) == (
        "v6e:4x4",
        1,
    )  # then the config's slices do not apply
    assert shown(pod_of(RUN, flags("--topology=v4:2x2x1", "--slices=3"))) == ("v4:2x2x1", 3)


def test_what_xla_says_when_memory_runs_out():
    """Messages of libtpu 0.0.42 and other versions."""
    first = (
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (60.84G) exceeds "
        "available HBM (15.75G)."
    )
    assert aot.out_of_memory(first) == (60.84 * GIB, 15.75 * GIB)
    assert aot.out_of_memory("(2.02T) exceeds available HBM (512.00M)") == (2.02 * 1024 * GIB, 512 * 2**20)
    other = (
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 18.10G of 15.75G hbm."
    )
    assert aot.out_of_memory(other) == (18.10 * GIB, 15.75 * GIB)
    assert aot.out_of_memory("RESOURCE_EXHAUSTED: Ran out of memory in memory space vmem.") is None


# A log of libtpu 0.0.42 for t5_11b_v4; its analysis gave 5.914 GiB of temporaries.
LOG = """I1122 18:57:51.950804   12319 deepsea_compiler_backend.cc:2171] Total hbm usage >= 5.91G:
    reserved          1.25G
    program           4.31G
    arguments       355.55M
I1122 18:57:51.950852   12319 deepsea_compiler_backend.cc:2175] Program sflag requirement 556B:
    HLO temp           228B (100.0% utilization: Unpadded (224B) Padded (224B), 1.8% fragmentation (4B))
Program hbm requirement 4.31G:
    global            2.63M
    scoped            4.75M
    HLO temp          4.18G (100.0% utilization: Unpadded (2.44G) Padded (2.44G), 41.5% fragmentation (1.74G))
    overlays        126.70M
Program cmem requirement 128.00M:
    HLO temp        128.00M (0.0% utilization: Unpadded (0B) Padded (0B), 100.0% fragmentation (128.00M))
"""


def test_fragmentation_is_that_of_the_last_program():
    assert libtpu.fragmentation(LOG) == 1.74 * GIB
    later = "Program hbm requirement 9.0M:\n    HLO temp  8.0M (50% utilization: Unpadded (4.0M), 25% fragmentation (2.00M))\n"
    assert libtpu.fragmentation(LOG + later) == 2 * 2**20
    assert libtpu.fragmentation(LOG + later.replace("hbm", "cmem")) == 1.74 * GIB and libtpu.fragmentation("") is None
    assert libtpu.fragmentation(LOG + "Program hbm requirement 1.5M:\n    overlays  1.5M\n") == 0  # no temporaries


def test_the_peak_is_what_xla_adds_up():
    mib = 2**20
    m = dict(argument=355.55 * mib, output=355.18 * mib, alias=355.17 * mib, temp=5.914 * GIB, generated_code=129.33 * mib)
    total = 1.25 * GIB + libtpu.peak(m, libtpu.fragmentation(LOG))
    assert total == pytest.approx(5.91 * GIB, abs=0.02 * GIB)  # the log has three digits
    assert libtpu.peak(m, None) == pytest.approx(libtpu.peak(m, 1.74 * GIB) + 1.74 * GIB)  # too large without a log


def test_changes_of_a_config():
    changed = resolve.replaced(RUN, {"mesh.fsdp": 4, "train.microbatches": 4, "model.decoder.remat": "full"})
    assert resolve.diff(RUN, changed) == {
        "mesh.fsdp": (1, 4),
        "train.microbatches": (2, 4),
        "model.decoder.remat": ("none", "full"),
    }


def test_pairs_that_a_mask_leaves():
    assert aot.unmasked_share(RUN) == 0.5
    encoder = dataclasses.replace(RUN.model, encoder=DECODER, decoder=None)
    both_ways = dataclasses.replace(RUN, model=encoder, data=config.Data(encoder_length=16), objective=config.Masked())
    assert aot.unmasked_share(both_ways) == 1.0


def test_the_dimensions_that_an_axis_lies_along():
    """Four chips in a square: each mesh axis along one dimension, or one axis along both."""
    chips = np.array([SimpleNamespace(coords=(x, y, 0)) for x in range(2) for y in range(2)], object)
    mesh = lambda **axes: SimpleNamespace(devices=chips.reshape(tuple(axes.values())), axis_names=tuple(axes))
    assert aot.torus_dims(mesh(a=2, b=2)) == {"a": {0}, "b": {1}}
    assert aot.torus_dims(mesh(a=1, b=4)) == {"a": set(), "b": {0, 1}}


def test_xla_plans_with_about_all_of_the_memory():
    for name, chip in CHIPS.items():
        assert 0.9 < chip.usable / chip.hbm < 1.02, name


def tokenizer_of(size):
    """Special ids at other positions than the dummy vocabulary's do not change the lengths of rows."""
    return SimpleNamespace(
        vocab_size=size,
        bos_id=7,
        eos_id=8,
        mask_id=9,
        sentinel_ids=tuple(range(100, 200)),
        special=np.isin(np.arange(size), [*range(10), *range(100, 200)]),
        boundaries=np.ones_like,
        sentence_ends=np.zeros_like,
    )


OBJECTIVES = {
    "decoder": [config.Causal(), config.Prefix(), config.SpanCorruption(), config.FillInMiddle()],
    "encoder": [config.Masked(), config.NextSentence()],
    "encoder_decoder": [config.SpanCorruption(), config.Denoise(), config.Mass(), config.Masked()],
}


@pytest.mark.parametrize("architecture", OBJECTIVES)
def test_a_stand_in_gives_the_shapes_of_a_tokenizer(architecture):
    data = config.Data(encoder_length=64, decoder_length=48)
    for objective in OBJECTIVES[architecture]:
        shapes = [build(objective, architecture, data, v).lengths for v in (DummyVocabulary(512), tokenizer_of(512))]
        assert shapes[0] == shapes[1]


def test_a_run_is_made_without_data_and_costs_what_it_costs():
    mesh = make_mesh(config.Mesh(), jax.devices()[:1])
    made = planned.computation_of(RUN, mesh)
    assert {x.shape for x in jax.tree.leaves(made.batch)} == {(4, 16)}
    assert made.flops_per_step > 0 and jax.tree.leaves(made.plan.targets())[0].sharding.mesh == mesh
    params = sum(x.size for x in jax.tree.leaves(made.plan.abstract.params))
    assert bytes_a_device(made.plan.targets().params) == 4 * params


def test_an_engine_is_compiled_as_it_runs():
    mesh = make_mesh(config.Mesh(), jax.devices()[:1])
    step, prefill = jobs.serve_jobs(RUN, mesh)
    keys = [x.shape for x in jax.tree.leaves(step.batch.cache) if len(x.shape) == 4]
    assert keys == [(4, 2, 16, 16)] * 4  # keys and values of two layers [S, K, L, H]
    params = jax.tree.map(lambda x: jax.numpy.ones(x.shape, x.dtype), step.parameters)
    slots = jax.tree.map(lambda x: jax.numpy.ones(x.shape, x.dtype), step.batch)
    slots, drawn = step.lower().compile()(params, None, slots, np.array([2], np.int32), np.int32(1))
    assert drawn.token.shape == (1, 4) and slots.position.tolist() == [2] * 4
    _, logits = prefill.lower().compile()(params, np.ones((1, 15), np.int32), np.int32(9), None)
    assert logits.shape == (256,) and prefill.tokens == 15
    width, hidden, head, vocab = 32, 64, 16, 256
    layer = 4 * width * 2 * head + 2 * width * hidden
    seen = 2 * 2 * 2 * head * (16 - 0.5)  # the last of 16 causal positions, counted as half of the pairs that it adds
    assert step.model_flops == pytest.approx(4 * (2 * (2 * layer + seen) + 2 * width * vocab))


def test_an_encoder_decodes_nothing():
    encoder = dataclasses.replace(RUN.model, encoder=DECODER, decoder=None)
    with pytest.raises(UserError, match="leave --serve out"):
        jobs.serve_jobs(dataclasses.replace(RUN, model=encoder), make_mesh(config.Mesh(), jax.devices()[:1]))


def tuned(recipe, records, **other):
    """A run that goes on from a model, on the mesh of one device."""
    sources = {"mine": config.Source("jsonl", "mine.jsonl", format=records)}
    train = config.Train(batch_size=4, init_from="gs://bucket/model")
    run = dataclasses.replace(RUN, recipe=recipe, data=config.Data(sources=sources, decoder_length=64), train=train)
    return dataclasses.replace(run, **other), make_mesh(config.Mesh(), jax.devices()[:1])


def test_rows_of_records_are_those_of_their_recipe():
    sft = config.Finetune(how="text", length=24, answer=8)
    shapes = lambda run, mesh: {x.shape for x in jax.tree.leaves(planned.computation_of(run, mesh).batch)}
    assert shapes(*tuned(sft, "pair")) == {(4, 31), (4, 8)}  # logits at the answer alone
    assert shapes(*tuned(sft, "messages")) == {(4, 31)}
    run, mesh = tuned(sft, "messages")
    assert shapes(dataclasses.replace(run, data=dataclasses.replace(run.data, packing=True)), mesh) == {(4, 64)}
    dpo = planned.computation_of(*tuned(config.Preference(length=24, answer=8), "preference"))
    assert jax.tree.structure(dpo.frozen) == jax.tree.structure(dpo.plan.targets().params)


def test_a_policy_is_its_update_and_its_engine():
    recipe = config.Policy(group=2, length=24, answer=8, prefix=False)
    update, decode, prefill = jobs.of(*tuned(recipe, "pair"))
    assert (update.name, decode.name, prefill.name) == ("train", "decode", "prefill")
    size = bytes_a_device(update.parameters)
    assert bytes_a_device(update.frozen) == size  # the reference
    keys = [x.shape for x in jax.tree.leaves(decode.batch.cache) if len(x.shape) == 4]
    assert keys == [(4, 2, 32, 16)] * 4  # a slot for each sample, with room for question and answer
    assert update.beside is decode.batch and bytes_a_device(decode.beside) - 3 * size < 100  # two moments, and counters
    without = jobs.of(*tuned(dataclasses.replace(recipe, kl="without"), "pair"))[0]
    assert without.frozen is None and update.model_flops == pytest.approx(without.model_flops * 4 / 3)


def test_adapters_are_trained_beside_a_base_that_is_frozen():
    recipe = config.Finetune(how="text", length=24, answer=8)
    (plain,) = jobs.of(*tuned(recipe, "messages"))
    (lora,) = jobs.of(*tuned(recipe, "messages", adapter=config.Lora(rank=4)))
    count = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    assert count(lora.frozen) == count(plain.parameters)
    layer = 4 * (2 * 32 + 2 * 32 + 2 * 32 + 2 * 32 + 2 * (32 + 64))  # of rank 4: inputs and outputs of each matrix
    assert count(lora.parameters) == 2 * layer


REFUSED = {
    "head": (config.Finetune(), "labelled", "recipe.how=text is compiled ahead of time"),
    "distill": (config.Distill(teacher="t"), "text", "recipe.kind=distill reads another model before its rows are known"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_before_its_data_is_refused(name):
    recipe, records, cause = REFUSED[name]
    with pytest.raises(UserError, match=cause):
        planned.computation_of(*tuned(recipe, records))


def test_the_pod_names_its_model():
    with pytest.raises(UserError, match="names its model"):
        planned.recipe_of(dataclasses.replace(RUN, model=None, recipe=config.Policy()))


def test_moments_wait_on_the_host_where_nothing_else_fits(monkeypatch):
    def compiled(job):
        if not job.moved:
            raise aot.OutOfMemory(2.0 * GIB, GIB)

    monkeypatch.setattr(sharding, "waits_on_host", lambda placed: placed.memory_kind == sharding.HOST)
    monkeypatch.setattr(aot, "pod_mesh", lambda run, *_: make_mesh(run.mesh, jax.devices()[:1]))
    monkeypatch.setattr(aot, "compiled", compiled)
    monkeypatch.setattr(aot, "peak_of", lambda _: 0.5 * GIB)
    mesh, said = aot.pod_mesh(RUN), []
    job = jobs.train_job(planned.computation_of(RUN, mesh))
    report = SimpleNamespace(mesh=dict(mesh.shape), hbm=SimpleNamespace(peak=2.0 * GIB, capacity=GIB))
    flags = "--config.optimizer.offload=\"('moments',)\""
    assert aot.advise(RUN, None, 1, report, job, said.append) == flags
    assert said[-1] == f"fits, 0.50 GiB: {flags}" and all(line.startswith("does not fit") for line in said[:-1])
    moved = jobs.train_job(planned.computation_of(resolve.replaced(RUN, {"optimizer.offload": ("moments",)}), mesh))
    assert moved.moved == 2 * 2 * bytes_a_device(moved.parameters) and job.state - moved.state == moved.moved / 2


def test_a_host_without_that_memory_is_named(monkeypatch):
    monkeypatch.setattr(sharding, "HOST", "no_such")
    away = resolve.replaced(RUN, {"optimizer.offload": ("moments",)})
    with pytest.raises(UserError, match=r"optimizer.offload needs no_such memory, which jax has not on a cpu: leave it out"):
        planned.computation_of(away, make_mesh(RUN.mesh, jax.devices()[:1]))
