"""Collectives parsed from HLO: all notations of groups, all forms of instructions, and a program compiled by XLA."""

import os
import subprocess
import sys

import numpy as np
import pytest

from tests.processes import HANGS
from tpu.collectives import axes_of, collectives, device_groups
from tpu.hlo import Array, arrays_of, parse

MESH = {"data": 1, "fsdp": 4, "tensor": 2}  # device 2 i + j is at fsdp i, tensor j
ALONG_FSDP, ALONG_TENSOR = [[0, 2, 4, 6], [1, 3, 5, 7]], [[0, 1], [2, 3], [4, 5], [6, 7]]


def program(*lines, rest=""):
    """A module whose entry computation has these instructions."""
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule jit_step, is_scheduled=true\n{rest}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n"


GROUPS = {
    "replica_groups={{0,2,4,6},{1,3,5,7}}, use_global_device_ids=true": ALONG_FSDP,
    "replica_groups={{0,1},{2,3},{4,5},{6,7}}": ALONG_TENSOR,
    "replica_groups={}, to_apply=%add": [[0, 1, 2, 3, 4, 5, 6, 7]],
    "replica_groups=[4,2]<=[8], dimensions={0}": ALONG_TENSOR,
    "replica_groups=[2,4]<=[4,2]T(1,0), dimensions={1}": ALONG_FSDP,
    "replica_groups=[4,2]<=[2,2,2]T(2,1,0)": [[0, 4], [2, 6], [1, 5], [3, 7]],
    "replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, to_apply=%add": ALONG_FSDP,
    "replica_groups=mesh[a=4,b=2] {b}": ALONG_TENSOR,
    "replica_groups=mesh['axis_0'=2,'axis_1'=2,'axis_2'=2] {'axis_0','axis_1'}": ALONG_FSDP,
    "replica_groups=mesh['axis_0'=8] {'axis_0':(4)2}": ALONG_TENSOR,
    "replica_groups=mesh['axis_0'=8] {'axis_0':(1)4}": ALONG_FSDP,
    "replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=([4,2]T(1,0)) {'axis_1'}": ALONG_FSDP,
    "replica_groups=mesh['axis_0'=2,'axis_1'=4], device_ids=(0,2,4,6,1,3,5,7) {'axis_0'}": ALONG_TENSOR,
    "source_target_pairs={{0,2},{2,0},{5,5}}": [[0, 2], [2, 0]],
}


@pytest.mark.parametrize("text", GROUPS)
def test_groups(text):
    assert device_groups(text, 8).tolist() == GROUPS[text]


def test_a_group_lies_along_the_axes_in_which_its_members_differ():
    assert axes_of(np.array(ALONG_FSDP), MESH) == ("fsdp",)
    assert axes_of(np.array(ALONG_TENSOR), MESH) == ("tensor",)
    assert axes_of(np.arange(8).reshape(1, 8), MESH) == ("fsdp", "tensor")
    assert axes_of(np.array([[0, 2], [4, 6]]), MESH) == ("fsdp",)  # half of it
    assert axes_of(np.arange(8).reshape(8, 1), MESH) == ()


# Each line with its kind, axes, full shape, and the bytes that a device sends, computed by hand.
FSDP, TENSOR = "replica_groups=[2,4]<=[4,2]T(1,0)", "replica_groups=[4,2]<=[8]"
LINES = {
    f"%g = bf16[128,256]{{0,1:T(8,128)(2,1)}} all-gather(%p), channel_id=8, {FSDP}, dimensions={{1}}": (
        ("all-gather", ("fsdp",), (128, 256), 128 * 256 * 2 * 3 // 4),
    ),
    f"%s = f32[4,128]{{1,0}} reduce-scatter(%p), channel_id=1, {FSDP}, dimensions={{0}}, to_apply=%add": (
        ("reduce-scatter", ("fsdp",), (16, 128), 16 * 128 * 4 * 3 // 4),
    ),
    f"%r = f32[256]{{0:T(256)}} all-reduce(%p), {TENSOR}, to_apply=%add": (("all-reduce", ("tensor",), (256,), 256 * 4),),
    f"%r = (f32[256]{{0:T(256)}}, /*index=1*/bf16[2,8]{{1,0}}) all-reduce(%p, %q), {TENSOR}, to_apply=%add": (
        ("all-reduce", ("tensor",), (256,), 256 * 4),
        ("all-reduce", ("tensor",), (2, 8), 2 * 8 * 2),
    ),
    f"%a = f32[4,2,64]{{2,1,0}} all-to-all(%p), {FSDP}, dimensions={{0}}": (
        ("all-to-all", ("fsdp",), (4, 2, 64), 4 * 2 * 64 * 4 * 3 // 4),
    ),
    f"%a = (f32[8,128]{{1,0}}, f32[8,128]{{1,0}}) all-to-all(%p, %q), {TENSOR}": (
        ("all-to-all", ("tensor",), (2, 8, 128), 8 * 128 * 4),
    ),
    "%c = s32[8]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0},{2,2}}": (
        ("collective-permute", ("tensor",), (8,), 32),
    ),
    f"%g = (bf16[32,8]{{1,0}}, bf16[128,8]{{1,0}}) all-gather-start(%p), {FSDP}, dimensions={{0}}": (
        ("all-gather", ("fsdp",), (128, 8), 128 * 8 * 2 * 3 // 4),
    ),
    f"%g = ((f32[2], f32[3]), (f32[8], f32[12])) all-gather-start(f32[2]{{0}} %p, f32[3]{{0}} %q), {FSDP}, dimensions={{0}}": (
        ("all-gather", ("fsdp",), (8,), 24),
        ("all-gather", ("fsdp",), (12,), 36),
    ),
    f"%r = f32[16]{{0}} all-reduce-start(%p), {TENSOR}, to_apply=%add": (("all-reduce", ("tensor",), (16,), 64),),
    "%c = (s32[8]{0}, s32[8]{0}, u32[]{:S(2)}, u32[]{:S(2)}) collective-permute-start(%p), source_target_pairs={{0,2}}": (
        ("collective-permute", ("fsdp",), (8,), 32),
    ),
    "%c = s32[8]{0} collective-permute-done(%c0)": (),
    "%c = s32[8]{0} collective-permute(%p), source_target_pairs={{0,0},{1,1}}": (),
    "%r = f32[16]{0} all-reduce(%p), replica_groups={{0},{1},{2},{3},{4},{5},{6},{7}}, to_apply=%add": (),
}


@pytest.mark.parametrize("line", LINES)
def test_instructions(line):
    found = collectives(program(f'{line}, metadata={{op_name="jit(step)/dot"}}'), MESH)
    assert tuple((c.kind, c.axes, c.shape, c.bytes) for c in found) == LINES[line]
    assert all(c.times == 1 and c.op_name == "jit(step)/dot" for c in found)


LOOPS = """
%fused (p: f32[8]) -> f32[8] {
  ROOT %c = s32[] constant(4)
}
%cond (p: (s32[])) -> pred[] {
  %limit = s32[]{:T(128)} constant(6)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}
%cond.2 (p: (s32[])) -> pred[] {
  %limit.2 = s32[] fusion(), kind=kLoop, calls=%fused
  ROOT %lt.2 = pred[] compare(%i, %limit.2), direction=LE
}
%cond.3 (p: (s32[])) -> pred[] {
  ROOT %lt.3 = pred[] compare(%i, %j), direction=LT
}
%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %r = f32[8]{0} all-reduce(%p), replica_groups=[4,2]<=[8], to_apply=%add
}
%cond.4 (p: (f32[8], s32[])) -> pred[] {
  %limit.4 = s32[] constant(7)
  %i.4 = s32[] get-tuple-element(%p), index=1
  ROOT %lt.4 = pred[] compare(%i.4, %limit.4), direction=LT
}
%by_two (p: (f32[8], s32[])) -> (f32[8], s32[]) {
  %p = (f32[8], s32[]) parameter(0)
  %n = s32[] get-tuple-element(%p), index=1
  %two = s32[] constant(2)
  %next = s32[] add(%n, %two)
  %r.4 = f32[8]{0} all-reduce(%p), replica_groups=[4,2]<=[8], to_apply=%add
  ROOT %t.4 = (f32[8], s32[]) tuple(%r.4, %next)
}
%outer (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %w = (s32[], f32[8]{0}) while(%t), condition=%cond, body=%body
}
"""
TIMES = {
    'condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"24"}}': 24,  # XLA's trip count takes precedence
    "condition=%cond, body=%body": 6,
    "condition=%cond.2, body=%body": 5,
    "condition=%cond.4, body=%by_two": 4,  # 0, 2, 4, 6
    "condition=%cond.3, body=%body": 1,  # its end depends on data
    'condition=%cond.2, body=%outer, backend_config={"known_trip_count":{"n":"3"}}': 18,
}


@pytest.mark.parametrize("loop", TIMES)
def test_loops_multiply(loop):
    (c,) = collectives(program(f"%while.1 = (s32[], f32[8]{{0}}) while(%tuple.1), {loop}", rest=LOOPS), MESH)
    assert c.times == TIMES[loop] and c.bytes == 32 * TIMES[loop]


FUSED = f"""
%start (p: f32[2]) -> (f32[2], f32[8]) {{
  %g.1 = f32[8]{{0}} all-gather(%p), channel_id=3, {FSDP}, dimensions={{0}}, frontend_attributes={{chain_id="0"}}
  ROOT %cc = (f32[2], f32[8]) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}}
%middle (p: f32[2]) -> f32[8] {{
  %g.2 = f32[8]{{0}} all-gather(%p), channel_id=3, {FSDP}, dimensions={{0}}, frontend_attributes={{chain_id="0"}}
}}
%turn (p: f32[8]) -> f32[8] {{
  %f.9 = f32[8]{{0}} fusion(%p), kind=kOutput, calls=%middle
}}
%end (p: f32[8]) -> pred[] {{
  %limit = s32[] constant(4)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}}
%all-reduce-scatter.1 (p: f32[16]) -> f32[4] {{
  %r = f32[16]{{0}} all-reduce(%p), channel_id=5, {FSDP}, to_apply=%add
  ROOT %slice = f32[4]{{0}} dynamic-slice(%r, %at), dynamic_slice_sizes={{4}}
}}
%async (p: f32[8]) -> f32[8] {{
  ROOT %a = f32[8]{{0}} all-to-all(%p), {FSDP}, dimensions={{0}}
}}
"""


def test_asynchronous_and_fused_ones_count_once():
    lines = (
        "%f.1 = (f32[2]{0}, f32[8]{0}) fusion(%p), kind=kCustom, calls=%start",
        "%f.2 = f32[8]{0} fusion(%f.1), kind=kOutput, calls=%middle",
        "%f.3 = f32[8]{0} fusion(%f.2), kind=kCustom, calls=%middle",
        "%w = f32[8]{0} while(%f.3), condition=%end, body=%turn",
        "%f.4 = f32[4]{0} fusion(%p), kind=kCustom, calls=%all-reduce-scatter.1",
        "%s = ((f32[8]{0}), f32[8]{0}, u32[]) async-start(%p), calls=%async",
        "%d = f32[8]{0} async-done(%s), calls=%async",
    )
    found = collectives(program(*lines, rest=FUSED), MESH)
    assert [(c.kind, c.shape, c.bytes) for c in found] == [
        ("all-gather", (8,), 24),
        ("reduce-scatter", (16,), 48),
        ("all-to-all", (8,), 24),
    ]


def test_a_chain_in_two_loops_is_two_collectives():
    """A loop that XLA cloned has the same chain ids as the original."""
    body = f"""
%b (p: f32[8]) -> f32[8] {{
  %g = f32[8]{{0}} all-gather(%p), channel_id=3, {FSDP}, dimensions={{0}}, frontend_attributes={{chain_id="0"}}
  ROOT %cc = (f32[2], f32[8]) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}}
%c (p: f32[8]) -> pred[] {{
  %limit = s32[] constant(2)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}}
"""
    loop = "%w{} = f32[8]{{0}} while(%p), condition=%c, body=%b"
    assert [c.times for c in collectives(program(loop.format(1), loop.format(2), rest=body), MESH)] == [2, 2]


def test_arrays():
    assert arrays_of("(f32[8,4]{1,0:T(8,128)}, s32[], token[])") == [
        Array("f32", (8, 4), "1,0:T(8,128)"),
        Array("s32", ()),
        Array("token", ()),
    ]
    assert Array("bf16", (8, 4)).bytes == 64 and Array("s4", (3,)).bytes == 2 and Array("pred", (5,)).bytes == 5
    assert Array("f8e4m3fn", (8,)).bytes == 8 and Array("token", ()).bytes == 0


def test_hbm_bytes_are_padded_to_tiles():
    """In [2, 3, 5] the fastest axes are the second and the third, which are padded to the tile: 3 -> 128, 5 -> 8."""
    assert Array("f32", (2, 3, 5), "1,2,0:T(8,128)").hbm_bytes == 2 * 8 * 128 * 4
    assert Array("bf16", (16, 128), "1,0:T(8,128)(2,1)").hbm_bytes == 16 * 128 * 2
    assert Array("f32", (100,), "0:T(256)").hbm_bytes == 1024
    assert Array("bf16", (16, 128), "1,0:T(8,128)(2,1)S(1)").hbm_bytes == 0  # not in HBM


def test_what_xla_made_of_a_program(tmp_path):
    """Scanned layers with weights sharded over fsdp and tensor: each iteration gathers one layer's weights, never the stack."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    env = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, str(script)], env=env, capture_output=True, text=True, timeout=HANGS, check=True)
    found = collectives(done.stdout, {"fsdp": 4, "tensor": 2})
    assert found and all(c.times == 3 for c in found), found
    gathered = {c.shape: c for c in found if c.kind == "all-gather" and c.axes == ("fsdp",)}
    assert set(gathered) == {(256, 128)}  # one layer's [256, 256], still sharded over tensor
    assert gathered[256, 128].bytes == 3 * 256 * 128 * 4 * 3 // 4
    assert {c.axes for c in found if c.kind in ("all-reduce", "reduce-scatter")} == {("fsdp",), ("tensor",)}
    assert parse(done.stdout).entry


SCRIPT = """
import jax, jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
mesh = jax.make_mesh((4, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
on = lambda *axes: NamedSharding(mesh, P(*axes))

def loss(x, w):
    layer = lambda x, w: (jax.lax.with_sharding_constraint(jnp.tanh(x @ w), on("fsdp", None)), None)
    return (jax.lax.scan(layer, x, w)[0] ** 2).sum()

x = jax.ShapeDtypeStruct((64, 256), jnp.float32, sharding=on("fsdp", None))
w = jax.ShapeDtypeStruct((3, 256, 256), jnp.float32, sharding=on(None, "fsdp", "tensor"))
print(jax.jit(jax.grad(loss, argnums=1), out_shardings=on(None, "fsdp", "tensor")).lower(x, w).compile().as_text())
"""
