"""Whatever has become of a side file, a run starts: damaged lines are left out, and nothing is lost without being said."""

import json
import os
import warnings

import pytest

from lm.errors import Busy
from lm.training import jsonl, rundir
from lm.training.rundir import RunDir

GOOD = {
    "metrics.jsonl": {"step": 2, "loss": 1.5, "grad_norm": "nan"},
    "samples.jsonl": {"step": 2, "prompt": "a", "text": "b é"},
    "goodput.jsonl": {"event": "step", "time": 1.0, "step": 2, "seconds": {"train": 0.5}},
}
BAD = {
    "a byte above 127": b"\xe9\n",
    "a byte in a row": b'{"step": 3, "text": "\xe9"}\n',
    "a number": b"7\n",
    "null": b"null\n",
    "a list": b"[1]\n",
    "zeros": b"\0" * 4096 + b"\n",
    "no step": b'{"loss": 1.0}\n',
    "a step that is text": b'{"step": "3", "prompt": 1, "event": 2}\n',
    "a step that is true": b'{"step": true, "prompt": "", "text": "", "event": "x", "time": 1}\n',
    "a step below 0": b'{"step": -1, "prompt": "", "text": "", "event": "x", "time": 1}\n',
    "a huge step": b'{"step": 1' + b"0" * 400 + b', "prompt": "", "text": "", "event": "x", "time": 1}\n',
    "a time that is none": b'{"event": "start", "time": NaN}\n',
    "deep": b"[" * 100_000 + b"\n",
    "a number that is no float": b'{"step": 3, "loss": 1e999, "event": "x", "time": 1e999}\n',
    "two rows on one line": b'{"step": 3}{"step": 4}\n',
}


def line(name):
    return json.dumps(GOOD[name]).encode() + b"\n"


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("name", GOOD)
def test_a_damaged_line_is_left_out_and_kept_elsewhere(tmp_path, name, bad):
    path, content = tmp_path / name, line(name) + BAD[bad] + line(name)
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=f"^dropped 1 invalid line from .*{name}; the original is in .*damaged") as said:
        rundir = RunDir(tmp_path)
    assert len(said) == 1
    rundir.append(name, GOOD[name])
    assert rundir.rows(name) == [GOOD[name]] * 3
    assert (tmp_path / "damaged" / name).read_bytes() == content
    rundir.close()
    with warnings.catch_warnings():  # it is said once
        warnings.simplefilter("error")
        RunDir(tmp_path).close()


def test_large_numbers_are_no_damage(tmp_path):
    """The norm of float32 gradients may be 3e38."""
    row = {"step": 2, "loss": -3.4e38, "grad_norm": 3.4e38, "tokens_seen": 2**62}
    first = RunDir(tmp_path)
    first.append("metrics.jsonl", row)
    first.close()
    again = RunDir(tmp_path)
    assert again.rows("metrics.jsonl") == [row]
    again.close()


def test_what_is_no_number_is_written_as_text(tmp_path):
    """Python would write NaN, which is not JSON; this holds for every log and every depth."""
    row = {"event": "step", "time": 1.0, "step": 2, "seconds": {"train": float("inf")}, "loss": [float("nan")]}
    jsonl.append(tmp_path / "x.jsonl", row)
    jsonl.rewrite(tmp_path / "y.jsonl", [row])
    for name in ("x.jsonl", "y.jsonl"):
        read = json.loads((tmp_path / name).read_text(), parse_constant=pytest.fail)
        assert read == row | {"seconds": {"train": "inf"}, "loss": ["nan"]}


@pytest.mark.parametrize("name", GOOD)
def test_a_row_after_one_that_was_cut_short_begins_on_a_line_of_its_own(tmp_path, name):
    for cut in (line(name) + line(name)[:9], line(name)[:-1]):
        (tmp_path / name).write_bytes(cut)
        rundir = RunDir(tmp_path)
        rundir.append(name, GOOD[name])
        assert rundir.rows(name) == [GOOD[name]] * 2 and (tmp_path / name).read_bytes() == line(name) * 2
        rundir.close()
    assert not (tmp_path / "damaged").exists(), "a kill does no damage"


IN_ITS_PLACE = {
    "a directory": lambda path: path.mkdir(),
    "a pipe": lambda path: os.mkfifo(path),
    "a link to nothing": lambda path: path.symlink_to("nothing"),
    "a link in a circle": lambda path: path.symlink_to(path.name),
    "a device": lambda path: path.symlink_to("/dev/full"),
}


@pytest.mark.parametrize("what", IN_ITS_PLACE)
def test_no_file_in_the_place_of_one(tmp_path, what):
    names = [*GOOD, "config.json", "manifest.json", "summary.json", "report.html"]
    for name in names:
        IN_ITS_PLACE[what](tmp_path / name)
    with pytest.warns(UserWarning, match="is not a readable file; moved to") as said:
        rundir = RunDir(tmp_path)
    assert len(said) == len(names)
    for name in GOOD:
        rundir.append(name, GOOD[name])
        assert rundir.rows(name) == [GOOD[name]]
    rundir.write_json("summary.json", {})
    rundir.close()
    assert sorted(os.listdir(tmp_path / "damaged")) == sorted(names)


def test_a_log_that_is_a_link_is_read_and_its_target_is_left_alone(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(line("metrics.jsonl"))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/metrics.jsonl").symlink_to(elsewhere)
    rundir = RunDir(tmp_path / "run")
    rundir.append("metrics.jsonl", GOOD["metrics.jsonl"])
    assert len(rundir.rows("metrics.jsonl")) == 2 and elsewhere.read_bytes() == line("metrics.jsonl")
    rundir.close()


def test_folders_in_whose_place_is_a_file(tmp_path):
    (tmp_path / "tensorboard").write_text("x")
    with pytest.warns(UserWarning, match="tensorboard is not a folder; moved to"):
        RunDir(tmp_path).close()
    assert (tmp_path / "damaged/tensorboard").read_text() == "x"


def test_logs_without_a_checkpoint_are_kept_and_said(tmp_path):
    rundir = RunDir(tmp_path)
    for name in GOOD:
        rundir.append(name, GOOD[name])
    with pytest.warns(UserWarning, match="logs up to step 2 and no checkpoint: the run starts over; its old logs are in"):
        rundir.forget_after(0)
    assert jsonl.read(tmp_path / "earlier/metrics.jsonl") == [GOOD["metrics.jsonl"]]
    assert jsonl.read(tmp_path / "earlier/samples.jsonl") == [GOOD["samples.jsonl"]]
    assert rundir.rows("metrics.jsonl") == [] and rundir.rows("goodput.jsonl") == [GOOD["goodput.jsonl"]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rundir.forget_after(0)
    rundir.close()


def test_rows_up_to_the_step_that_goes_on_are_kept(tmp_path):
    rundir = RunDir(tmp_path)
    for step in (1, 2, 3):
        rundir.append("metrics.jsonl", {"step": step})
    rundir.forget_after(2)
    assert [row["step"] for row in rundir.rows("metrics.jsonl")] == [1, 2]
    rundir.close()


# ------------------------------------------------------------------------------------------------------------ the lock


def linked(path, victim):
    path.symlink_to(victim)


def hard_linked(path, victim):
    path.hardlink_to(victim)


@pytest.mark.parametrize("make", [linked, hard_linked, lambda path, victim: path.mkdir(), lambda path, victim: os.mkfifo(path)])
def test_a_lock_that_leads_elsewhere_harms_nobody_and_still_locks(tmp_path, make):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    make(run / ".lock", victim)
    with pytest.warns(UserWarning, match=r"\.lock is a link or not a regular file; moved to .*damaged/\.lock"):
        rundir = RunDir(run)
    assert victim.read_text() == "precious" and (run / ".lock").read_text() == str(os.getpid())
    with pytest.raises(Busy):
        RunDir(run)
    rundir.close()
    RunDir(run).close()


def test_a_hard_link_to_the_lock_of_a_run_at_work_lets_no_second_run_in(tmp_path):
    first = RunDir(tmp_path / "run")
    (tmp_path / "snapshot").hardlink_to(tmp_path / "run/.lock")  # as `cp -al` does
    for _ in range(2):
        with pytest.raises(Busy, match=f"another run .process {os.getpid()}. is at work"):
            RunDir(tmp_path / "run")
    assert not (tmp_path / "run/damaged").exists()
    first.close()
    with pytest.warns(UserWarning, match="is a link or not a regular file"):
        RunDir(tmp_path / "run").close()
    assert (tmp_path / "snapshot").read_text() == str(os.getpid())


def test_a_lock_that_another_run_replaced_while_this_one_opened_it_is_not_taken(tmp_path, monkeypatch):
    """Otherwise this run would lock a file that no other run looks at, or move the other run's lock aside."""
    first, opened = [], rundir._open_regular

    def slowly(path):
        lock = opened(path)
        if not first:
            monkeypatch.setattr(rundir, "_open_regular", opened)
            path.unlink()
            first.append(RunDir(tmp_path))
        return lock

    monkeypatch.setattr(rundir, "_open_regular", slowly)
    with pytest.raises(Busy):
        RunDir(tmp_path)
    first[0].close()
    assert not (tmp_path / "damaged").exists()


def test_a_lock_with_bytes_of_another_program(tmp_path):
    rundir = RunDir(tmp_path)
    (tmp_path / ".lock").write_bytes(b"\xff\x1b[31m\n7")
    with pytest.raises(Busy, match="another run") as busy:
        RunDir(tmp_path)
    assert str(busy.value).isprintable()
    rundir.close()


def test_a_temporary_file_that_is_a_link_is_not_followed(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("precious")
    rundir = RunDir(tmp_path)
    (tmp_path / f"summary.json.{os.getpid()}.tmp").symlink_to(victim)
    rundir.write_json("summary.json", {"a": 1})
    assert victim.read_text() == "precious" and json.loads((tmp_path / "summary.json").read_text()) == {"a": 1}
    rundir.close()
