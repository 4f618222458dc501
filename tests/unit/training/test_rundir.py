"""The directory of a run: in a bucket, here a folder that is taken for one; and what a refused run leaves."""

import json

import pytest

from lm.errors import Busy, UserError
from lm.training import rundir
from lm.training.rundir import RunDir


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    monkeypatch.setattr(rundir, "BUCKETS", (str(tmp_path / "bucket"),))
    monkeypatch.setattr(rundir, "STAGING", str(tmp_path / "one machine"))
    return tmp_path / "bucket" / "run"


def test_what_a_run_writes_comes_to_the_bucket_and_to_the_next_machine(bucket, tmp_path, monkeypatch):
    run = RunDir(bucket)
    run.write_json("config.json", {"a": 1})
    for step in (10, 20):
        run.append("metrics.jsonl", {"step": step})
    (run.path / "tensorboard").mkdir()
    (run.path / "tensorboard" / "events").write_bytes(b"x")
    assert not bucket.exists(), "nothing goes there line by line"
    run.close()
    assert json.loads((bucket / "config.json").read_text()) == {"a": 1}
    assert (bucket / "tensorboard" / "events").read_bytes() == b"x" and not (bucket / ".lock").exists()

    monkeypatch.setattr(rundir, "STAGING", str(tmp_path / "another machine"))
    run = RunDir(bucket)
    assert [row["step"] for row in run.rows("metrics.jsonl")] == [10, 20]
    run.forget_after(10)
    run.append("metrics.jsonl", {"step": 30})
    run.close()
    assert [json.loads(line)["step"] for line in (bucket / "metrics.jsonl").read_text().splitlines()] == [10, 30]


def test_what_changed_is_copied_once_a_minute(bucket, monkeypatch):
    run = RunDir(bucket)
    run.append("metrics.jsonl", {"step": 1})
    run.publish()
    assert not bucket.exists()
    monkeypatch.setattr(rundir, "PUBLISH", 0)
    run.publish()
    before = (bucket / "metrics.jsonl").stat().st_mtime_ns
    run.publish()
    assert (bucket / "metrics.jsonl").stat().st_mtime_ns == before, "what did not change stays"
    run.append("metrics.jsonl", {"step": 2})
    run.publish()
    assert len((bucket / "metrics.jsonl").read_text().splitlines()) == 2
    with pytest.raises(Busy):
        RunDir(bucket)
    run.close()


def test_rows_of_the_last_minute_before_a_kill_are_kept_where_they_are(bucket):
    run = RunDir(bucket)
    run.append("metrics.jsonl", {"step": 1})
    run.publish(now=True)
    run.append("metrics.jsonl", {"step": 2})
    run._lock.close()  # killed: nothing more is copied
    run = RunDir(bucket)
    assert [row["step"] for row in run.rows("metrics.jsonl")] == [1, 2]
    run.close()


def test_another_kind_of_bucket_is_refused():
    with pytest.raises(UserError, match="--workdir=s3://b/run: only gs:// buckets and folders are known; mount another"):
        RunDir("s3://b/run")


def refused(workdir):
    """What `lm.training.run.train` does with a run that is refused before its first step."""
    run = RunDir(workdir)
    run.append("goodput.jsonl", {"event": "start", "time": 1.0})
    (run.path / "checkpoints").mkdir(exist_ok=True)
    run.refused()
    run.close()


def test_a_refused_run_leaves_no_folder_that_was_made_for_it(tmp_path):
    (tmp_path / "runs").mkdir()
    refused(tmp_path / "runs" / "a" / "b")
    assert not any((tmp_path / "runs").iterdir()), "the folder above them was there before"


def test_a_refused_run_removes_nothing_that_was_there_before(tmp_path):
    empty, begun = tmp_path / "empty", RunDir(tmp_path / "begun")
    empty.mkdir()
    refused(empty)
    assert empty.is_dir() and not any(empty.iterdir())
    begun.append("goodput.jsonl", {"event": "start", "time": 0.0})
    begun.write_json("config.json", {"a": 1})
    begun.refused()
    begun.close()
    refused(begun.path)
    again = RunDir(begun.path)
    assert [row["time"] for row in again.rows("goodput.jsonl")] == [0.0, 1.0] and (again.path / "config.json").exists()
    again.close()


def test_a_refused_run_leaves_what_another_program_put_there(tmp_path):
    run = RunDir(tmp_path / "a" / "run")
    (run.path / "notes.txt").write_text("mine")
    run.refused()
    run.close()
    assert [path.name for path in run.path.iterdir()] == ["notes.txt"]


def test_a_refused_run_leaves_a_bucket_as_it_was(bucket, tmp_path, monkeypatch):
    refused(bucket)
    assert not bucket.exists() and not (tmp_path / "one machine").exists()
    run = RunDir(bucket)
    run.append("goodput.jsonl", {"event": "start", "time": 0.0})
    run.write_json("config.json", {"a": 1})
    run.close()
    monkeypatch.setattr(rundir, "STAGING", str(tmp_path / "another machine"))
    refused(bucket)
    assert len((bucket / "goodput.jsonl").read_text().splitlines()) == 2, "the second start counts in the run's goodput"


def test_a_folder_that_cannot_be_made_leaves_none_above_it(tmp_path):
    with pytest.raises(UserError, match="cannot write in --workdir=.*: File name too long"):
        RunDir(tmp_path / "a" / ("b" * 300))
    assert not any(tmp_path.iterdir())
