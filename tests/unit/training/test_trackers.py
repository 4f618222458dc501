"""Trackers: what they are given is found by their own libraries, offline, and a resumed run goes on in the same one."""

import json
import os
import subprocess
import sys

import pytest

from lm import config
from lm.errors import UserError
from lm.training import trackers

MODEL = config.Model(8, 8)
SAMPLES = [{"prompt": "a", "text": "*b*"}]


def two_lives(folder, *names, tensorboard=False):
    """Steps 2 to 6, a kill, and steps 4 to 8 after a checkpoint at 4."""
    run = config.Run(MODEL, log=config.Log(tensorboard=tensorboard, trackers=names))
    ids = []
    for first, steps in ((0, (2, 4, 6)), (4, (6, 8))):
        kept = trackers.start(run, folder, first)
        for step in steps:
            kept.figures(step, {"step": step, "loss": 10.0 * (1 + bool(first)) + step})
        kept.samples(steps[-1], SAMPLES)
        kept.close(finished=bool(first))
        ids.append({name: tracker.id for name, tracker in kept.each.items()})
    return ids


def test_tensorboard_shows_the_steps_that_were_kept_with_samples_and_settings(tmp_path):
    pytest.importorskip("tensorboardX")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    two_lives(tmp_path, tensorboard=True)
    events = reader.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(2, 12), (4, 14), (6, 26), (8, 28)]
    assert "step" not in events.Tags()["scalars"]
    texts = [(event.step, event.tensor_proto.string_val[0]) for event in events.Tensors("samples/0/text_summary")]
    assert texts == [(6, b"    a -> *b*"), (8, b"    a -> *b*")], "this reader purges scalars alone"
    given = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"optimizer.learning_rate" in given and b"model.width" in given
    assert not (tmp_path / "trackers.json").exists(), "event files need no id"


def records(content, at=7, block=32768):
    """The records of a log in LevelDB's format whose first `at` bytes, a header of W&B's, are cut off."""
    record = b""
    while at < len(content) + 7:
        if (left := block - at % block) < 7:  # the end of a block is padded
            at += left
            continue
        length, kind = int.from_bytes(content[at - 3 : at - 1], "little"), content[at - 1]
        record, at = record + content[at : at + length], at + 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield record
            record = b""


def test_tensorboard_imports_no_torch(tmp_path):
    """Which takes two seconds where it is installed; afterwards it can be imported as before."""
    (tmp_path / "torch.py").write_text("print('imported')\n")
    code = (
        "import sys; from pathlib import Path; from lm.training.trackers import Start, TensorBoard\n"
        "TensorBoard(Start(Path(sys.argv[1]), {}, 0, None)).close(True); print('then'); import torch"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((str(tmp_path), os.environ.get("PYTHONPATH", "")))},
        capture_output=True,
        text=True,
        check=True,
    )
    assert ran.stdout.split() == ["then", "imported"]


def test_wandb_offline_keeps_one_run(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    from wandb.proto import wandb_internal_pb2 as protos

    monkeypatch.setenv("WANDB_MODE", "offline")
    ids = two_lives(tmp_path, "wandb")
    wandb.teardown()  # ends its service, so that all is written
    assert ids[0] == ids[1] == json.loads((tmp_path / "trackers.json").read_text(encoding="utf-8"))
    files = sorted((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    assert [f.name for f in files] == [f"run-{ids[0]['wandb']}.wandb"] * 2, "both are sent to the same run"
    read = []
    for data in (data for file in files for data in records(file.read_bytes()[7:])):
        record = protos.Record()
        record.ParseFromString(data)
        row = {item.key or item.nested_key[0]: item.value_json for item in record.history.item}
        if "loss" in row:
            read.append((int(row["_step"]), float(row["loss"])))
    assert read == [(2, 12), (4, 14), (6, 16), (6, 26), (8, 28)]


def test_mlflow_goes_on_in_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    ids = two_lives(tmp_path, "mlflow")
    assert ids[0] == ids[1]
    client, run = MlflowClient(), ids[0]["mlflow"]
    found = [(m.step, m.value) for m in client.get_metric_history(run, "loss")]
    assert sorted(found) == [(2, 12), (4, 14), (6, 16), (6, 26), (8, 28)]
    data, info = client.get_run(run).data, client.get_run(run).info
    assert data.params["model.width"] == "8" and info.status == "FINISHED" and info.run_name == tmp_path.name
    texts = sorted(file.path for file in client.list_artifacts(run, "samples"))
    assert texts == ["samples/step_00000006.txt", "samples/step_00000008.txt"]


def test_trackio_goes_on_in_the_same_run(tmp_path, monkeypatch):
    pytest.importorskip("trackio")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    from trackio.sqlite_storage import SQLiteStorage

    ids = two_lives(tmp_path, "trackio")
    assert ids[0] == ids[1]
    rows = [row for row in SQLiteStorage.get_logs("lm", ids[0]["trackio"]) if "loss" in row]
    assert [(row["step"], row["loss"]) for row in rows] == [(2, 12), (4, 14), (6, 16), (6, 26), (8, 28)]


class Recorder:
    """Keeps what it is told; fails at a step."""

    def __init__(self, start):
        self.id, self.start, self.told, self.fails = start.id or f"new {start.first}", start, [], 4

    def figures(self, step, values):
        if step == self.fails:
            raise ConnectionError("https://user:secret@host is away")
        self.told.append((step, dict(values)))

    def samples(self, step, samples):
        self.told.append((step, list(samples)))

    def close(self, finished):
        self.told.append(finished)


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "wandb", Recorder)
    return config.Run(MODEL, log=config.Log(tensorboard=False, trackers=("wandb",)))


def test_one_that_fails_is_left_out_and_training_goes_on(recorded, tmp_path):
    kept = trackers.start(recorded, tmp_path, 0)
    one = kept.each["wandb"]
    kept.figures(2, {"step": 2, "loss": 1.0})
    kept.samples(2, [])
    with pytest.warns(UserWarning, match=r"wandb gets no more of this run: https://\(redacted\)@host is away"):
        kept.figures(4, {"step": 4, "loss": 1.0})
    kept.figures(6, {"step": 6, "loss": 1.0})
    kept.close(finished=True)
    assert one.told == [(2, {"loss": 1.0})] and not kept.each


def test_ids_are_those_of_the_run_that_is_resumed(recorded, tmp_path):
    identity = lambda first: trackers.start(recorded, tmp_path, first).each["wandb"].id
    assert identity(0) == "new 0" and identity(6) == "new 0"
    (tmp_path / trackers.IDS).write_text("{damaged", encoding="utf-8")
    assert identity(6) == "new 6", "a new one, since the old one is not known"
    assert identity(0) == "new 0", "a run that starts over is another"


def test_settings_are_flat_and_without_secrets(recorded, tmp_path, monkeypatch):
    found = trackers.start(recorded, tmp_path, 0).each["wandb"].start.settings
    assert found["model.width"] == 8 and found["log.tensorboard"] is False and "wandb" in found["log.trackers"]
    assert all(isinstance(value, (bool, int, float, str)) for value in found.values())


def test_one_that_is_missing_or_cannot_begin_is_a_mistake_in_one_line(recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"log.trackers has 'wandb', which is not installed: pip install -e '.\[wandb\]'"):
        trackers.check(recorded.log)
    trackers.check(config.Log())
    assert trackers.start(config.Run(MODEL), tmp_path, 0).each == {}, "TensorBoard is left out where it is missing"

    def refuse(start):
        raise RuntimeError("no key\nsee https://x")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", refuse)
    with pytest.raises(UserError, match="wandb cannot begin: no key; set it up, or leave it out of log.trackers"):
        trackers.start(recorded, tmp_path, 0)
