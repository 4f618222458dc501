"""The comparison with MaxText: both sides compile the same step, and programs are analysed correctly."""

import importlib
import sys

import pytest

from experiments.maxtext import stubs
from experiments.maxtext.cases import CASES
from experiments.maxtext.run import figures, table
from lm import config
from lm.config import resolve
from tpu.hlo import parse as parse_program
from tpu.program import hbm_traffic
from tpu.topologies import parse

MODELS = {  # maxtext/configs/models: width, heads, hidden units, vocabulary
    "llama2-7b": (4096, 32, 11_008, 32_000),
    "mixtral-8x7b": (4096, 32, 14_336, 32_000),
}


@pytest.mark.parametrize("name", CASES)
def test_both_sides_are_asked_for_the_same(name):
    case = CASES[name]
    rest, overrides = resolve.split_flags(list(case.ours))
    run = resolve.load(rest[0].removeprefix("--config="), overrides)
    chips, parts, mesh = parse(case.topology).devices, run.train.microbatches, run.mesh
    assert run.pod.topology == case.topology and mesh.fsdp * mesh.expert == chips
    decoder, block = run.model.decoder, run.model.decoder.blocks["L"]
    ffn = block.ffn if isinstance(block.ffn, config.Mlp) else block.ffn.expert
    for words in case.theirs.values():
        theirs = dict(word.split("=") for word in words)
        assert int(theirs["per_device_batch_size"]) * parts * chips == run.train.batch_size
        assert int(theirs.get("gradient_accumulation_steps", 1)) == parts
        assert int(theirs.get("ici_expert_parallelism", 1)) == mesh.expert
        assert int(theirs["max_target_length"]) == run.data.decoder_length
        assert int(theirs.get("base_num_decoder_layers", 32)) == decoder.num_layers
        assert theirs["compile_topology"] == f"v5e-{chips}"
        assert (theirs["remat_policy"], theirs["scan_layers"], theirs["opt_type"]) == ("full", "true", "adamw")
        assert theirs["dtype"] == run.model.dtype and theirs["weight_dtype"] == run.model.param_dtype
        assert MODELS[theirs["model_name"]] == (run.model.width, block.attention.num_heads, ffn.hidden, run.model.vocab_size)
        if isinstance(block.ffn, config.Moe):
            assert float(theirs["capacity_factor"]) == block.ffn.capacity and theirs["sparse_matmul"] == "false"
    assert decoder.scan and decoder.remat == "full" and not decoder.keep
    assert run.optimizer.name == "adamw" and run.optimizer.clip == 1.0


PROGRAM = """HloModule jit_step

%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %p = (s32[], f32[8,16]{1,0}) parameter(0)
  %x = f32[8,16]{1,0} get-tuple-element(%p), index=1
  %w = f32[16,16]{1,0} all-gather(%x), replica_groups=[1,16]<=[16], dimensions={0}
  %d = f32[8,16]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %k = bf16[4,128]{1,0} custom-call(%d), custom_call_target="tpu_custom_call", metadata={op_name="jit(step)/kernel"}
  ROOT %t = (s32[], f32[8,16]{1,0}) tuple(%p, %d)
}
ENTRY %main (p: f32[8,16]) -> f32[8,16] {
  %p.1 = f32[8,16]{1,0} parameter(0)
  %t.1 = (s32[], f32[8,16]{1,0}) tuple(%p.1, %p.1)
  ROOT %loop = (s32[], f32[8,16]{1,0}) while(%t.1), body=%body, condition=%c, backend_config={"known_trip_count":{"n":"3"}}
}
%c (p: (s32[], f32[8,16])) -> pred[] {
  ROOT %lt = pred[] compare(%p, %p), direction=LT
}
"""
FACTS = dict(
    mesh=dict(data=1, fsdp=16),
    dims=dict(data=[], fsdp=[0, 1]),
    flops_of_xla=2.0 * 8 * 16 * 16,
    memory=dict(argument=100, output=90, alias=80, temp=7, generated_code=5),
    fragmentation=2.0,
    **dict(compile_seconds=1.0, compile_cpu_seconds=1.0, jax="0", libtpu="0"),
)


def test_figures_of_a_program():
    f = figures(PROGRAM, FACTS, "v5e:4x4", model_flops=1e6)
    assert f["peak"] == 100 + 90 - 80 + 5 + f["temporaries"] and f["temporaries"] == 7 - 2
    assert f["product_flops"] == f["executed_flops"] == 2 * 8 * 16 * 16 * 3 * 16  # three iterations, on 16 devices
    assert f["kernel_calls"] == {"kernel bf16[4, 128]": 3}
    assert f["sent"] == 3 * 16 * 16 * 4 * 15 // 16
    assert f["collectives"] == [{"kind": "all-gather", "axes": ["fsdp"], "count": 3, "bytes": f["sent"]}]
    assert "| attention kernels, calls a step | 3 | 3 |" in table({next(iter(CASES)): {"ours": f, "maxtext": f}})


def test_what_a_compilation_does_not_use_is_empty(monkeypatch):
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(sys, "modules", {k: v for k, v in sys.modules.items() if k.split(".")[0] != "librosa"})
    stubs.install()
    module = importlib.import_module("librosa.deep.inside")
    with pytest.raises(module.Anything.at_all):
        raise module.Anything.at_all(1, of=2)
    assert importlib.import_module("json").loads("1") == 1


SLICED = """HloModule jit_step

%inner (p: f32[64,8,128], at: s32[]) -> f32[8,128] {
  %stack = f32[64,8,128]{2,1,0} parameter(0)
  %at = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = f32[1,8,128]{2,1,0} dynamic-slice(%stack, %at, %zero, %zero)
  ROOT %row = f32[8,128]{1,0} bitcast(%slice)
}
%outer (p: f32[64,8,128], at: s32[]) -> f32[8,128] {
  %stack.1 = f32[64,8,128]{2,1,0} parameter(0)
  %at.1 = s32[] parameter(1)
  %row.1 = f32[8,128]{1,0} fusion(%stack.1, %at.1), kind=kLoop, calls=%inner
  ROOT %twice = f32[8,128]{1,0} add(%row.1, %row.1)
}
ENTRY %main (p: f32[64,8,128], at: s32[]) -> f32[8,128] {
  %p = f32[64,8,128]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %f = f32[8,128]{1,0} fusion(%p, %i), kind=kOutput, calls=%outer
}
"""


def test_a_fusion_in_a_fusion_reads_its_slice_alone():
    row = 8 * 128 * 4
    assert hbm_traffic(parse_program(SLICED)) == 2 * row + 4  # one row read, one written, and its index
