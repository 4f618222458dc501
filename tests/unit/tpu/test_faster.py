"""The search for a faster setting: what it reckons against what the compiler counted, and which settings it compiles."""

import dataclasses
import json
from pathlib import Path

import pytest

from lm.config import resolve
from tpu import faster, planned, table, topologies
from tpu.faster import Reckoned, Setting, search
from tpu.report import Flops, Hbm, Report, Roofline

ROOT = Path(__file__).parents[3]


def read(name):
    return json.loads((ROOT / table.RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def load(name):
    return resolve.load(f"{ROOT}/{table.FILE}:{name}")


NAMES = sorted(path.stem for path in (ROOT / table.RESULTS).glob("*.json"))
# Those that are reckoned: a model of attention and feed-forward, and no second model beside it.
RECKONED = [n for n in NAMES if not any(part in n for part in ("recurrent", "clip"))]
CURRENT = [name for name in RECKONED if read(name)["made_of"] == table.made_of(load(name))]


def stored(name):
    """An entry of configs/pod.py with the report of its compiled step."""
    run, found = load(name), read(name)
    parts = {"hbm": Hbm(**found["hbm"]), "flops": Flops(**found["flops"]), "roofline": Roofline(**found["roofline"])}
    return run, Report(**{f.name: (found | parts)[f.name] for f in dataclasses.fields(Report)})


def reckoned(name):
    run, report = stored(name)
    lengths, forward = planned.forward_flops(run)
    return run, report, Reckoned(run, report, topologies.parse(run.pod.topology), lengths, forward), forward, lengths


@pytest.mark.parametrize("name", CURRENT)
def test_what_is_reckoned_is_what_the_compiler_counted(name):
    """The activations that layers keep, within a seventh, and what of them crosses to the host and back, within a tenth; the
    FLOPs of dense models, within a tenth."""
    run, report, made, *_ = reckoned(name)
    kept = made.kept(run, report.mesh)
    assert kept == pytest.approx(report.hbm.activations, rel=0.15, abs=2**16)
    if report.roofline.host_s:
        crossed = 2 * report.microbatches * made.kept(run, report.mesh, on_host=True)
        assert crossed == pytest.approx(report.roofline.host_s * made.chip.host_bandwidth / made.chip.devices, rel=0.1)
    if "experts" not in report.remat:
        assert report.flops.executed == pytest.approx(report.flops.model + made.again(run), rel=0.1)


def test_what_keeps_less_promises_less():
    run, report, made, forward, lengths = reckoned("llama2_7b_v5e")
    slow = made.setting({"model.decoder.remat": "full", "model.decoder.keep": ()})
    less = made.setting({"model.decoder.remat": "full", "model.decoder.keep": ("qkv", "attention")})
    assert slow.seconds > less.seconds > report.roofline.step_s
    assert slow.peak < less.peak < report.hbm.peak + 2**30
    topology = topologies.parse(run.pod.topology)
    found = faster.settings(run, report, topology, lengths, forward)
    assert not found, "the entry has the fastest setting already"
    was = dataclasses.replace(report, roofline=dataclasses.replace(report.roofline, step_s=2 * slow.seconds))
    found = faster.settings(run, was, topology, lengths, forward)
    assert [s.seconds for s in found] == sorted(s.seconds for s in found)
    assert all(s.peak <= faster.ROOM * report.hbm.capacity for s in found)
    assert any("mesh.tensor" in s.changes for s in found) and any("train.microbatches" in s.changes for s in found)


def test_what_waits_on_the_host_takes_no_memory_but_the_link():
    """Twice the bytes that all microbatches keep, over the link's bandwidth: hidden in a long step, the bound of a slow one."""
    run, report, made, *_ = reckoned("llama3_70b_v5e_x2")
    there, here = made.setting({}), made.setting({"model.decoder.offload": ()})
    less = made.setting({"model.decoder.offload": (), "model.decoder.keep": ("qkv", "attention")})
    assert there.seconds == here.seconds < less.seconds
    assert there.peak < less.peak < here.peak
    tokens = report.tokens_per_step / (report.slices * 16 * 4)  # the axis "tensor" shares out a token's heads and hidden units
    elements = 8192 + (64 + 2 * 8) * 128 / 4 + 64 * 128 / 4 + 2 * 28672 / 4
    made.chip = dataclasses.replace(made.chip, host_bandwidth=1e9)
    assert made.setting({}).seconds == pytest.approx(2 * 2 * 80 * tokens * elements / 1e9)


def test_the_host_is_tried_where_a_device_has_no_room():
    run, report, made, forward, lengths = reckoned("llama3_70b_v5p")
    small = dataclasses.replace(report, hbm=dataclasses.replace(report.hbm, capacity=0.5 * report.hbm.peak))
    was = dataclasses.replace(small, roofline=dataclasses.replace(report.roofline, step_s=2 * report.roofline.step_s))
    found = faster.settings(run, was, topologies.parse(run.pod.topology), lengths, forward)
    away = [s for s in found if "model.decoder.offload" in s.changes]
    assert away and all({*s.changes["model.decoder.offload"]} >= {"input"} for s in away)


MOMENTS = {"optimizer.offload": ("moments",)}


def test_moments_on_the_host_make_room_for_the_time_of_their_way():
    """Two of each float32 parameter, there and back at 16 GB/s, beside nothing else. In the update they are on the device, with
    the parameters, their gradients and the new parameters."""
    _, report, made, *_ = reckoned("gpt3_175b_v5p")
    here, away, size = made.setting({}), made.setting(MOMENTS), report.hbm.parameters
    assert size == pytest.approx(4 * 174.6e9 / 512, rel=0.03)  # position embeddings are on every device
    assert here.peak - away.peak == pytest.approx(2 * size) == made.moments
    assert away.seconds - here.seconds == pytest.approx(2 * 2 * size / 16e9)
    moved = dataclasses.replace(made.run, optimizer=dataclasses.replace(made.run.optimizer, offload=("moments",)))
    hbm = dataclasses.replace(report.hbm, optimizer=report.hbm.optimizer - made.moments, peak=away.peak)
    roof = dataclasses.replace(report.roofline, update_s=made.moments * 2 / 16e9, step_s=away.seconds)
    again = Reckoned(moved, dataclasses.replace(report, hbm=hbm, roofline=roof), made_on(report), made.lengths, made.forward)
    back = again.setting({"optimizer.offload": ()})
    assert (back.peak, back.seconds) == (pytest.approx(here.peak), pytest.approx(here.seconds))
    made.rest = 0.0
    little = MOMENTS | {"train.microbatches": 3, "model.decoder.remat": "full", "model.decoder.keep": ()}
    assert 5 * size < made.setting(little).peak < 5.1 * size


def made_on(report):
    return topologies.parse(report.topology)


def test_moments_are_moved_where_nothing_else_fits_and_the_link_hides_it(monkeypatch):
    run, report, made, forward, lengths = reckoned("gpt3_175b_v5p")
    slow = dataclasses.replace(run.model, decoder=dataclasses.replace(run.model.decoder, remat="full", keep=()))
    run = dataclasses.replace(run, model=slow)
    fast = {"model.decoder.remat": "dots", "model.decoder.keep": ("attention",)}
    room = (made.setting({}).peak - made.moments / 2) / faster.ROOM
    executed = report.flops.model + made.again(run)
    less = report.hbm.peak - made.kept(made.run, report.mesh) + made.kept(run, report.mesh)
    was = dataclasses.replace(
        report,
        hbm=dataclasses.replace(report.hbm, capacity=room, peak=less),
        flops=Flops(report.flops.model, executed),
        roofline=dataclasses.replace(report.roofline, step_s=executed / made.devices / 459e12),
    )
    found = [s.changes for s in faster.settings(run, was, made_on(report), lengths, forward)]
    assert fast | MOMENTS in found and fast not in found
    chip = dataclasses.replace(made.chip, host_bandwidth=1e8)
    monkeypatch.setitem(topologies.CHIPS, "v5p", chip)
    found = faster.settings(run, was, made_on(report), lengths, forward)
    assert not any("optimizer.offload" in s.changes for s in found)


def test_the_fastest_that_fits_is_found_in_few_attempts():
    report = stored("llama2_7b_v5e")[1]
    settings = [Setting({"train.microbatches": n}, seconds, peak) for n, seconds, peak in FOUND]

    def run(times, fits, tries=faster.TRIES):
        tried = []

        def attempt(setting):
            n = setting.changes["train.microbatches"]
            tried.append(n)
            if n in refused:
                return None
            roofline = dataclasses.replace(report.roofline, step_s=times[n] if n in fits else None)
            return dataclasses.replace(report, fits=n in fits, roofline=roofline)

        slow = dataclasses.replace(report, roofline=dataclasses.replace(report.roofline, step_s=10.0))
        best = search(settings, slow, attempt, tries)
        return best and best.changes["train.microbatches"], tried

    refused = set()
    times = {1: 2.0, 2: 3.5, 3: 3.0, 4: 4.0}
    assert run(times, fits={1, 2, 3, 4}) == (1, [1])  # the next promises 3 seconds at best
    assert run(times | {1: 9.0}, fits={1, 2, 3, 4}) == (2, [1, 2])
    assert run(times, fits={3, 4}) == (3, [1, 3])  # 2 needs as much memory as 1, which did not fit
    assert run(times, fits=set()) == (None, [1, 3, 4])
    assert run(times, fits={4}, tries=1) == (None, [1])
    refused = {1}
    assert run(times, fits={2, 3, 4}, tries=1) == (2, [1, 2])


FOUND = ((1, 2.0, 50.0), (2, 3.0, 50.0), (3, 3.6, 40.0), (4, 4.0, 30.0))


def test_flags_can_be_pasted():
    setting = Setting({"model.decoder.keep": ("qkv", "attention"), "train.microbatches": 4}, 1.0, 1.0)
    assert setting.flags == "--config.model.decoder.keep=\"('qkv', 'attention')\" --config.train.microbatches=4"
