"""FLOPs, traffic and activations of hand-written HLO, compared with sums by hand."""

import pytest

from tpu.hlo import parse
from tpu.program import activations, executed_flops, hbm_traffic, host_traffic, matmul_flops


def program(*lines, rest=""):
    body = "\n".join(f"  {line}" for line in lines)
    return parse(f"HloModule jit_step\n{rest}\nENTRY %main (p: f32[8]) -> f32[8] {{\n{body}\n}}\n")


# How libtpu compiles matmuls: types of the operands, the instruction, and its FLOPs as a matmul.
PRODUCTS = {
    "dot": (
        ("f32[4,8,16]", "f32[4,16,32]"),
        "f32[4,8,32] dot(%a, %b), lhs_batch_dims={0}, lhs_contracting_dims={2}, rhs_batch_dims={0}, rhs_contracting_dims={1}",
        2 * 4 * 8 * 16 * 32,
    ),
    "a plain one": (
        ("bf16[2,256,512]", "bf16[512,64,1]"),
        "bf16[2,256,64] convolution(%a, %b), window={size=1}, dim_labels=0bf_io0->0bf",
        2 * 2 * 256 * 512 * 64,
    ),
    "summed over rows as well": (
        ("bf16[2,256,1024]", "bf16[2,256,64]"),
        "bf16[1024,64,1] convolution(%a, %b), window={size=2}, dim_labels=0fb_0io->bf0",
        2 * (2 * 256) * 1024 * 64,
    ),
    "to heads": (  # [2, 256, 256] x [256, 2, 64]: a window of 2 heads slides over 1 position and padding
        ("bf16[2,256,256,1]", "bf16[2,64,256,1]"),
        "bf16[2,256,2,64] convolution(%a, %b), window={size=1x2 pad=0_0x1_1 rhs_reversal=0x1}, dim_labels=0bf1_1oi0->0b1f",
        2 * (2 * 256) * 256 * (2 * 64),
    ),
    "for each row and head, holes between them": (  # queries [2, 2, 256, 64] x keys [2, 2, 64, 256]
        ("bf16[2,2,256,64]", "bf16[2,2,64,128]"),
        "bf16[2,2,256,128] convolution(%a, %b), window={size=2x2 stride=1x1 pad=1_1x1_1 lhs_dilate=2x2 rhs_reversal=1x1}, "
        "dim_labels=01bf_01io->01bf",
        2 * 256 * 64 * 128 * 4,  # each of 2 x 2 positions reads one element, the others holes
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products(name):
    (a, b), line, flops = PRODUCTS[name]
    read = program(f"%a = {a} parameter(0)", f"%b = {b} parameter(1)", f"ROOT %c = {line}")
    assert sum(matmul_flops(read, i) for i in read.computations["main"]) == flops


def test_a_computation_that_runs_beside_the_main_one_ends_as_others_do():
    """The lines after a SparseCore computation are a new computation, not part of its last instruction."""
    beside = """
%offloaded (p: f32[8]) -> f32[8] {
  %p = f32[8] parameter(0)
  ROOT %sum = f32[8] add(%p, %p)
}, execution_thread="sparsecore"

%fused (p: f32[8]) -> f32[8] {
  ROOT %q = f32[8] parameter(0)
}
"""
    read = program("%a = f32[8] parameter(0)", "ROOT %b = f32[8] fusion(%a), kind=kLoop, calls=%fused", rest=beside)
    assert list(read.computations) == ["offloaded", "fused", "main"]
    assert [step.instruction.name for step in read.walk()] == ["a", "b", "q"]


LOOP = """
%cond (p: (s32[])) -> pred[] {
  %limit = s32[] constant(5)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}
%body (p: (s32[], f32[8,16])) -> (s32[], f32[8,16]) {
  %x = f32[8,16] parameter(0)
  %w = f32[16,16] parameter(1)
  ROOT %dot.2 = f32[8,16] dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}
"""
OUTSIDE = (
    "%x = f32[8,16] parameter(0)",
    "%w = f32[16,48] parameter(1)",
    "%dot.1 = f32[8,48] dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}",
    "%while.1 = (s32[], f32[8,16]) while(%x), condition=%cond, body=%body",
)


def test_a_loop_is_executed_in_all_its_turns():
    one = 2 * 8 * 16 * 16
    assert executed_flops(program(*OUTSIDE, rest=LOOP), xla=3 * one + one) == pytest.approx(3 * one + 5 * one)


def test_kernels_are_added_with_the_pairs_that_are_seen():
    shape, name = "bf16[4,2,256,64]", "splash_mha_{}_segmented"
    names = {kind: name.format(kind) for kind in ("fwd", "dq", "dkv")}
    kernels = [
        f'%{n}.{k} = {shape} custom-call(%mask, %q, %k, %k), custom_call_target="tpu_custom_call", '
        'frontend_attributes={kernel_metadata={\n"xprof_metadata":"{}"\n}}, metadata={op_name="jit(step)"}'
        for k, n in enumerate(names.values())
    ]
    inputs = ("%mask = s8[1,2,1] parameter(2)", f"%q = {shape} parameter(3)", "%k = bf16[4,1,512,64] parameter(4)")
    read = program(*inputs, *kernels)
    product = 2 * (4 * 2 * 256) * 512 * 64
    assert executed_flops(read, xla=0.0, pairs=0.5) == (2 + 3 + 4) * product * 0.5
    fused = kernels[2].replace(shape, f"({shape}, bf16[8,4,2,256,64])", 1)
    assert executed_flops(program(*inputs, kernels[0], fused), xla=0.0) == (2 + 5) * product
    assert all(i.op_name == "jit(step)" for i in read.computations["main"] if i.opcode == "custom-call")


FUSED = """
%slice_of_a_stack (p0: f32[24,64], p1: s32[]) -> f32[1,64] {
  %p0 = f32[24,64] parameter(0)
  %p1 = s32[] parameter(1)
  ROOT %s = f32[1,64] dynamic-slice(%p0, %p1), dynamic_slice_sizes={1,64}
}
%slice_into_a_stack (p0: f32[24,64], p1: f32[1,64]) -> f32[24,64] {
  %q0 = f32[24,64] parameter(0)
  %q1 = f32[1,64] parameter(1)
  ROOT %u = f32[24,64] dynamic-update-slice(%q0, %q1, %zero)
}
%two (p0: f32[64], p1: f32[64]) -> (f32[64], f32[64]) {
  %r0 = f32[64] parameter(0)
  %r1 = f32[64] parameter(1)
  %add = f32[64] add(%r0, %r1)
  ROOT %t = (f32[64], f32[64]) tuple(%add, %r0)
}
%nested (p0: f32[24,64], p1: s32[]) -> f32[64] {
  %n0 = f32[24,64] parameter(0)
  %n1 = s32[] parameter(1)
  %b = f32[24,64] bitcast(%n0)
  ROOT %f = f32[1,64] fusion(%b, %n1), kind=kLoop, calls=%slice_of_a_stack
}
%start (p0: f32[1,64]) -> (f32[1,64], f32[24,64], u32[]) {
  %s0 = f32[1,64] parameter(0)
  %g = f32[24,64] all-gather(%s0), replica_groups={}, dimensions={0}
  ROOT %cc = (f32[1,64], f32[24,64], u32[]) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}
%beside (p0: f32[1,64], p1: f32[24,64], p2: f32[64]) -> (f32[64], f32[1,64], f32[24,64], f32[24,64]) {
  %e0 = f32[1,64] parameter(0)
  %e1 = f32[24,64] parameter(1)
  %e2 = f32[64] parameter(2)
  %product = f32[64] negate(%e2)
  %g.2 = f32[24,64] all-gather(%e0), replica_groups={}, dimensions={0}, frontend_attributes={chain_id="0"}
  ROOT %t.2 = (f32[64], f32[1,64], f32[24,64], f32[24,64]) tuple(%product, %e0, %e1, %g.2)
}
"""
ROW, STACK = 64 * 4, 24 * 64 * 4
TRAFFIC = {
    "%y = f32[24,64] add(%stack, %stack)": 3 * STACK,
    "%y = f32[24,64]{1,0:S(1)} add(%stack, %stack)": 2 * STACK,  # its output is in on-chip memory
    "%y = f32[1,64] fusion(%stack, %i), kind=kLoop, calls=%slice_of_a_stack": ROW + 4 + ROW,
    "%y = f32[24,64] fusion(%stack, %row), kind=kLoop, calls=%slice_into_a_stack": ROW + ROW,
    "%y = (f32[64], f32[64]) fusion(%row, %row), kind=kLoop, calls=%two": 3 * ROW,
    "%y = f32[1,64] dynamic-slice(%stack, %i), dynamic_slice_sizes={1,64}": 2 * ROW,
    "%y = f32[24,64] dynamic-update-slice(%stack, %row, %i)": 2 * ROW,
    "%y = (f32[1,64]{1,0:S(1)}, f32[1,64], u32[]) copy-start(%row)": ROW,  # prefetched on chip: only read
    "%y = f32[24,64] bitcast(%stack)": 0,
    "%y = f32[1,64] fusion(%stack, %i), kind=kLoop, calls=%nested": ROW + 4 + ROW,
    "%y = (f32[1,64], f32[24,64], u32[]{:S(2)}) fusion(%row), kind=kCustom, calls=%start": ROW + STACK,
    "%y = (f32[64], f32[1,64], f32[24,64], f32[24,64]) fusion(%row, %stack, %row), kind=kOutput, calls=%beside": 2 * ROW,
}


@pytest.mark.parametrize("line", TRAFFIC)
def test_traffic_with_hbm(line):
    inputs = ("%stack = f32[24,64] parameter(0)", "%row = f32[1,64] parameter(1)", "%i = s32[] parameter(2)")
    assert hbm_traffic(program(*inputs, line, rest=FUSED)) == TRAFFIC[line]


FORWARD, BACKWARD = (
    'metadata={op_name="jit(step)/jvp(T)/dot"}',
    'metadata={op_name="jit(step)/while/body/transpose(jvp(T))/dot"}',
)
SCANNED = """
%cond (p: (s32[])) -> pred[] {
  %limit = s32[] constant(24)
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}
%body (p: (s32[], f32[24,64], f32[64,64])) -> (s32[], f32[24,64], f32[64,64]) {
  %p = (s32[], f32[24,64], f32[64,64]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %kept = f32[24,64] get-tuple-element(%p), index=1
  %weights = f32[64,64] get-tuple-element(%p), index=2
  %more = f32[24,64] fusion(%kept), kind=kLoop, calls=%none
  ROOT %t = (s32[], f32[24,64], f32[64,64]) tuple(%i, %more, %weights)
}
%none (p0: f32[24,64]) -> f32[24,64] {
  ROOT %p0 = f32[24,64] parameter(0)
}
"""


def test_what_one_pass_makes_and_the_other_reads():
    lines = (
        "%w = f32[64,64] parameter(0)",
        "%batch = s32[64] parameter(1)",
        f"%h = f32[8,64] fusion(%w), kind=kLoop, calls=%none, {FORWARD}",  # kept, read twice: once
        f"%near = f32[8,64]{{1,0:S(1)}} fusion(%h), kind=kLoop, calls=%none, {FORWARD}",  # on the chip
        f"%gone = f32[16,64] fusion(%h), kind=kLoop, calls=%none, {FORWARD}",  # read by the forward pass alone
        f"%logits = f32[4,64] fusion(%gone), kind=kLoop, calls=%none, {FORWARD}",
        "%same = f32[4,64] bitcast(%logits)",  # kept, by another name
        f"%d = f32[8,64] fusion(%same, %near, %h, %w), kind=kLoop, calls=%none, {BACKWARD}",
        f"%d2 = f32[8,64] fusion(%d, %h), kind=kLoop, calls=%none, {BACKWARD}",
    )
    assert activations(program(*lines, rest=SCANNED)) == (8 * 64 + 4 * 64) * 4


def test_scanned_layers_keep_their_stack_and_not_their_weights():
    lines = (
        "%w = f32[64,64] parameter(0)",
        "%zero = s32[] constant(0)",
        "%empty = f32[24,64] broadcast(%zero)",
        "%start = (s32[], f32[24,64], f32[64,64]) tuple(%zero, %empty, %w)",
        f"%forward = (s32[], f32[24,64], f32[64,64]) while(%start), condition=%cond, body=%body, {FORWARD}",
        "%stack = f32[24,64] get-tuple-element(%forward), index=1",
        "%weights.2 = f32[64,64] get-tuple-element(%forward), index=2",
        "%start.2 = (s32[], f32[24,64], f32[64,64]) tuple(%zero, %stack, %weights.2)",
        f"%backward = (s32[], f32[24,64], f32[64,64]) while(%start.2), condition=%cond, body=%body, {BACKWARD}",
    )
    assert activations(program(*lines, rest=SCANNED)) == 24 * 64 * 4


def test_a_piece_that_is_fetched_counts_as_a_piece():
    """A slice prefetched to on-chip memory is read once; the rest of the array in HBM does not count."""
    read = program(
        "%p = f32[4,128]{1,0} parameter(0)",
        "%s = ((f32[4,128]{1,0}), f32[1,128]{1,0:S(1)}, s32[]) slice-start(%p), slice={[0:1], [0:128]}",
        "ROOT %d = f32[1,128]{1,0:S(1)} slice-done(%s)",
    )
    assert hbm_traffic(read) == 128 * 4
    read = program(
        "%p = f32[2,128]{1,0} parameter(0)",
        "%s = (f32[2,128]{1,0}, f32[8,128]{1,0}) all-gather-start(%p), dimensions={0}",
        "ROOT %d = f32[8,128]{1,0} all-gather-done(%s)",
    )
    assert hbm_traffic(read) == (2 + 8) * 128 * 4


def test_what_an_update_moves_crosses_the_link_in_each_direction():
    """Whole arrays, in a loop whose turns only its data tells: it counts as one turn."""
    host, here = "f32[32,256]{1,0:T(8,128)S(5)}", "f32[32,256]{1,0:T(8,128)}"
    update = f"""
%cond (p: (s32[], s32[], {host})) -> pred[] {{
  %i = s32[] get-tuple-element(%p), index=0
  %turns = s32[] get-tuple-element(%p), index=1
  ROOT %lt = pred[] compare(%i, %turns), direction=LT
}}
%body (p: (s32[], s32[], {host})) -> (s32[], s32[], {host}) {{
  %moment = {host} get-tuple-element(%p), index=2
  %read = ({here}, {host}, u32[]{{:S(2)}}) copy-start(%moment)
  %old = {here} copy-done(%read)
  %new = {here} negate(%old)
  %write = ({host}, {here}, u32[]{{:S(2)}}) copy-start(%new)
  %moment.1 = {host} copy-done(%write)
  ROOT %t = (s32[], s32[], {host}) tuple(%i, %turns, %moment.1)
}}
"""
    loop = f"%while.1 = (s32[], s32[], {host}) while(%start), condition=%cond, body=%body"
    assert host_traffic(program(loop, rest=update)) == 2 * 4 * 32 * 256


def test_host_traffic_is_what_crosses_the_link():
    """A slice written to the host's memory and one read from it, as libtpu starts them, and copies; nothing within a memory."""
    host, here = "bf16[4,16,256]{2,1,0:T(8,128)(2,1)S(5)}", "bf16[1,16,256]{2,1,0:T(8,128)(2,1)}"
    found = program(
        f"%held = {host} parameter(0)",
        f"%new = {here} parameter(1)",
        "%i = s32[] parameter(2)",
        f"%put = (({host}, {here}, s32[], s32[], s32[]), {host}, u32[]{{:S(2)}}) "
        "dynamic-update-slice-start(%held, %new, %i, %i, %i)",
        f"%held.1 = {host} dynamic-update-slice-done(%put)",
        f"%get = (({host}, s32[], s32[], s32[]), {here}, u32[]{{:S(2)}}) dynamic-slice-start(%held.1, %i, %i, %i)",
        f"%old = {here} dynamic-slice-done(%get)",
        f"%all = {host.replace('S(5)', '')} copy(%held.1)",
        f"%again = {here} copy(%old)",
    )
    slice_bytes = 2 * 16 * 256
    assert host_traffic(found) == 2 * slice_bytes + 4 * slice_bytes
