"""The directory of a run in a bucket: here a folder that is taken for one."""

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
