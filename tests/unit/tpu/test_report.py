"""The report: rooflines compared with sums by hand, sums of collectives, and the table."""

import dataclasses
import json

import pytest

from tpu.collectives import Collective
from tpu.report import Flops, Hbm, Report, Roofline, roofline, summed, table
from tpu.topologies import GIB, parse

DIMS = {"fsdp": frozenset({0, 1}), "tensor": frozenset({0}), "slice": frozenset(), "data": frozenset()}
V5E = parse("v5e:2x4")


def collective(kind="all-gather", axes=("fsdp",), size=0, name="g", times=1):
    return Collective(kind, axes, (8,), "bf16", size, times, name)


def best(*collectives, topology=V5E, slices=1, model=8 * 197e12, executed=8 * 197e12, hbm=0.0):
    figures = dict(model_flops=model, executed_flops=executed, hbm_bytes=hbm)
    return roofline(topology, slices, collectives=collectives, dims=DIMS, **figures)


def test_compute_bounds():
    r = best(model=4 * 197e12)  # half of what eight chips execute in a second
    assert (r.compute_s, r.step_s, r.bound) == (1.0, 1.0, "compute") and r.mfu_ceiling == 0.5


def test_hbm_bounds():
    r = best(hbm=2 * 819e9)
    assert r.hbm_s == 2.0 and r.bound == "hbm" and r.mfu_ceiling == pytest.approx(0.5)


def test_links_of_one_dimension_are_shared_and_those_of_two_are_added():
    """A v5e has 45 GB/s per direction along each of two dimensions."""
    both = collective(size=int(4 * 90e9))  # half of it along each dimension, in both directions
    one = collective(axes=("tensor",), size=int(90e9))
    assert best(both).ici_s == pytest.approx(2.0)
    assert best(one).ici_s == pytest.approx(1.0)
    assert best(both, one).ici_s == pytest.approx(3.0)  # along dimension 0
    assert best(both, one).bound == "ici"


def test_nothing_hides_what_an_update_moves():
    """16 GB/s: of three seconds on the link, two are hidden by four of computation, and one is not."""
    figures = dict(model_flops=4 * 8 * 197e12, executed_flops=4 * 8 * 197e12, hbm_bytes=0.0, collectives=[], dims=DIMS)
    r = roofline(V5E, 1, host_bytes=3 * 16e9, update_bytes=16e9, **figures)
    assert (r.host_s, r.update_s, r.step_s, r.bound, r.mfu_ceiling) == (3.0, 1.0, 5.0, "compute", 0.8)
    r = roofline(V5E, 1, host_bytes=8 * 16e9, update_bytes=16e9, **figures)
    assert (r.step_s, r.bound) == (8.0, "host")


def test_slices_are_joined_by_the_data_centre():
    r = best(collective(axes=("slice",), size=int(3.125e9)), slices=2, model=16 * 197e12, executed=16 * 197e12)
    assert (r.dcn_s, r.ici_s, r.compute_s) == (1.0, 0.0, 1.0)


def test_a_device_of_two_to_a_chip_has_half_of_it():
    v3 = parse("v3:2x2")
    r = best(collective(axes=("tensor",), size=int(82e9)), topology=v3, model=4 * 123e12, executed=4 * 123e12, hbm=450e9)
    assert (r.compute_s, r.hbm_s) == (1.0, 1.0) and r.ici_s == pytest.approx(1.0)


def test_collectives_are_summed_by_kind_and_axes():
    """A collective of two arrays counts once per iteration."""
    each = [collective(size=10, times=4), collective(size=5, times=4), collective(size=100, axes=("tensor",), name="h")]
    assert summed(each) == [
        {"kind": "all-gather", "axes": ["tensor"], "count": 1, "bytes": 100},
        {"kind": "all-gather", "axes": ["fsdp"], "count": 4, "bytes": 15},
    ]


def report(**other):
    sizes = Hbm(15.75 * GIB, 1.0 * GIB, 2.0 * GIB, 0.5 * GIB, 4.0 * GIB, 3.0 * GIB, 10.5 * GIB)
    fields = dict(
        config="configs/a.py",
        topology="v5e:2x4",
        slices=1,
        chips=8,
        mesh={"data": 1, "fsdp": 4, "tensor": 2},
        batch_size=16,
        microbatches=2,
        remat="full",
        tokens_per_step=4096,
        parameters=1000,
        fits=True,
        short_by=0,
        hbm=sizes,
        flops=Flops(1e12, 1.5e12),
        collectives=summed([collective(size=2**20)]),
        roofline=best(),
        compile_seconds=12.0,
        libtpu="0.0.42",
        jax="0.10.2",
        step="train",
    )
    return Report(**(fields | other))


def test_json_has_these_keys():
    """The keys are an interface: tpu.table reads these files."""
    made = json.loads(json.dumps(report().to_dict()))
    keys = "config topology slices chips mesh batch_size microbatches remat tokens_per_step parameters fits short_by"
    assert list(made) == f"{keys} hbm flops collectives roofline compile_seconds libtpu jax step frozen_parameters".split()
    assert list(made["hbm"]) == "capacity parameters optimizer batch activations temporaries peak frozen beside on_host".split()
    assert list(made["flops"]) == ["model", "executed"]
    assert list(made["roofline"]) == "compute_s hbm_s ici_s dcn_s step_s bound mfu_ceiling host_s update_s".split()


def test_the_table_says_what_the_figures_say():
    text = table(report())
    assert "fsdp=4 x tensor=2" in text and "data=" not in text and "10.500 GiB  peak of 15.75 GiB: fits" in text
    assert "1.0 MiB  all-gather along fsdp, 1 a step" in text and "bound by compute: MFU at most 100.0%" in text


def test_what_is_frozen_and_what_other_steps_leave_in_memory_are_said():
    hbm = dataclasses.replace(report().hbm, frozen=1.5 * GIB, beside=2 * GIB)
    assert "frozen" not in table(report())
    assert "1.500 GiB  frozen" in table(report(hbm=hbm))
    assert "10.500 GiB  peak of 15.75 GiB, 2.000 GiB beside it: fits" in table(report(hbm=hbm))


def test_what_waits_on_the_host_is_said():
    hbm = dataclasses.replace(report().hbm, on_host=1.25 * GIB)
    text = table(report(hbm=hbm, roofline=dataclasses.replace(best(), host_s=2.0, update_s=1.5)))
    assert "1.250 GiB  optimizer, in the host's memory" in text and "1500.000 ms   of it in the update" in text
    assert "host" not in table(report())


def test_xla_takes_what_adds_up_to_more_where_no_log_tells_what_is_counted_twice():
    hbm = dataclasses.replace(report().hbm, peak=20 * GIB)
    assert "20.000 GiB  peak of 15.75 GiB: XLA accepts it" in table(report(hbm=hbm))


def test_the_table_of_what_does_not_fit():
    text = table(report(fits=False, short_by=0.25 * GIB, flops=Flops(1e12, None), roofline=Roofline(), collectives=[]))
    assert "DOES NOT FIT: 0.250 GiB too much" in text and "at best" not in text and "executed" not in text
