"""Kill it anywhere: it goes on, to the bit. Runs are real processes; the figures are those of summary.json."""

import json
import signal
import warnings
from pathlib import Path

import pytest

from lm import process
from tests.processes import HANGS, wait_for


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, command):
    """The directory of a run that nothing happened to."""
    workdir = tmp_path_factory.mktemp("whole")
    finish(command, workdir)
    return workdir


def finish(command, workdir, *extra):
    process = command(workdir, "decoder.causal", *extra)
    err = process.communicate(timeout=HANGS)[1]
    assert process.returncode == 0, err
    return err


def test_sigkill_between_and_within_saves_goes_on_to_the_bit(command, uninterrupted, tmp_path):
    whole = summary(uninterrupted)
    assert whole["step"] == 12 and whole["tokens_seen"] > 0

    # Killed in the middle: after the first checkpoint is there and before the last step.
    first = command(tmp_path, "decoder.causal")
    wait_for((tmp_path / "checkpoints" / "4").exists, first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    assert not (tmp_path / "summary.json").exists()

    # Killed again, within a save: a temporary directory stands where a checkpoint will be.
    second = command(tmp_path, "decoder.causal")
    checkpoints = tmp_path / "checkpoints"
    wait_for(lambda: any(checkpoints.glob("*tmp*")) or (checkpoints / "12").exists(), second)
    second.send_signal(signal.SIGKILL)
    second.communicate()

    finish(command, tmp_path)
    resumed = summary(tmp_path)
    assert resumed["params_sha256"] == whole["params_sha256"]
    for key in ("heldout", "tokens_seen", "tokens_with_loss", "step"):
        assert resumed[key] == whole[key]
    steps = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert steps == sorted(steps), "steps that were done twice are logged once"


def test_moments_may_wait_elsewhere_after_each_kill(command, uninterrupted, tmp_path):
    """In the host's memory, on the device, and in the host's memory again: a restored state goes where the config says."""
    on_host = "--config.optimizer.offload=('moments',)"
    for step, extra in ((4, (on_host,)), (8, ())):
        process = command(tmp_path, "decoder.causal", *extra)
        wait_for((tmp_path / "checkpoints" / str(step)).exists, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    finish(command, tmp_path, on_host)
    assert summary(tmp_path)["params_sha256"] == summary(uninterrupted)["params_sha256"]


def test_two_models_and_what_is_drawn_between_them_go_on_to_the_bit(train, tmp_path):
    what, stop = "encoder.replaced_tokens", "--config.train.steps=8"
    schedule = "--config.optimizer.schedule.kind=constant"  # with 5 steps of warm-up: the first 8 are those of 12
    assert train(tmp_path / "whole", what, schedule)[0] == 0
    assert train(tmp_path / "parts", what, schedule, stop)[0] == 0
    code, err = train(tmp_path / "parts", what, schedule, "--allow_changes")
    assert code == 0 and "going on from step 8" in err, err
    whole, parts = summary(tmp_path / "whole"), summary(tmp_path / "parts")
    assert parts["step"] == whole["step"] == 12
    assert parts["params_sha256"] == whole["params_sha256"] and parts["heldout"] == whole["heldout"]


RECURRENT = """--config.model.decoder.blocks.R={'mixer': {'kind': 'gated_linear'}, 'ffn': {'hidden': 64}, 'dropout': 0.1}"""


@pytest.mark.parametrize(
    ("what", "extra", "figures"),
    [
        # The weight of the divergence is a function of the row, so that a killed run has the same after it.
        ("encoder_decoder.variational", (), {"divergence", "divergence_share", "posterior_collapse", "bits_per_byte_bound"}),
        ("decoder.causal", (RECURRENT, "--config.model.decoder.pattern=RL"), {"loss"}),
    ],
    ids=["drawn vectors", "recurrent layers"],
)
def test_killed_they_go_on_to_the_bit(what, extra, figures, train, command, tmp_path):
    assert train(tmp_path / "whole", what, *extra)[0] == 0
    first = command(tmp_path / "parts", what, *extra)
    wait_for((tmp_path / "parts" / "checkpoints" / "4").exists, first)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    code, err = train(tmp_path / "parts", what, *extra)
    assert code == 0, err
    whole, parts = summary(tmp_path / "whole"), summary(tmp_path / "parts")
    assert parts["params_sha256"] == whole["params_sha256"] and parts["heldout"] == whole["heldout"]
    assert figures <= whole["heldout"].keys()
    if "divergence" in figures:
        logged = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
        weights = [row["divergence_weight"] for row in logged if "divergence_weight" in row]
        assert weights[0] < weights[-1] == 1.0


def test_sigterm_saves_and_exits_with_75(command, uninterrupted, tmp_path):
    process = command(tmp_path, "decoder.causal", "--config.checkpoint.every=1000")
    wait_for((tmp_path / "metrics.jsonl").exists, process)
    wait_for(lambda: len((tmp_path / "metrics.jsonl").read_text()) > 0, process)
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=HANGS)[1]
    assert process.returncode == 75, err
    assert "saved" in err
    assert len(list((tmp_path / "checkpoints").iterdir())) >= 1
    finish(command, tmp_path, "--config.checkpoint.every=1000")
    assert summary(tmp_path)["params_sha256"] == summary(uninterrupted)["params_sha256"]


def copy(source: Path, target: Path) -> Path:
    import shutil

    shutil.copytree(source, target, dirs_exist_ok=True)
    return target


@pytest.mark.parametrize("harm", ["truncated", "flipped", "unfinished"])
def test_a_damaged_checkpoint_is_named_and_the_step_before_is_used(train, uninterrupted, tmp_path, harm):
    workdir = copy(uninterrupted, tmp_path)
    whole = summary(workdir)
    step = workdir / "checkpoints" / "12"
    files = [p for p in (step / "state").rglob("*") if p.is_file()]
    victim = max(files, key=lambda p: p.stat().st_size)
    data = victim.read_bytes()
    if harm == "truncated":
        victim.write_bytes(data[: len(data) // 2])
    elif harm == "flipped":
        victim.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    else:
        (step / "SHA256.json").unlink()
    with pytest.warns(UserWarning, match=r"checkpoints/12 is damaged: .*(cut short|not finished).*step before"):
        code, err = train(workdir)
    assert code == 0, err
    assert "going on from step 8" in err
    assert summary(workdir)["params_sha256"] == whole["params_sha256"]
    assert (workdir / "damaged" / "12").exists()


@pytest.mark.parametrize(
    ("change", "cause"),
    [
        ("--config.optimizer.learning_rate=0.02", "config differs.*learning_rate: 0.01 -> 0.02.*--allow_changes"),
        ("--config.model.width=64", "another model.*model.width: 32 -> 64.*another --workdir"),
        (
            "--config.model.width=64 --config.data.train_share=0.5",
            r"another model \(model.width: 32 -> 64; data.train_share: 1.0 -> 0.5\)",
        ),
        ("--config.data.tokenizer.vocab_size=410", "another tokenizer"),
    ],
)
def test_a_changed_run_is_refused_with_a_diff(train, uninterrupted, change, cause):
    import re

    before = sorted(p.name for p in (uninterrupted / "checkpoints").iterdir())
    code, err = train(uninterrupted, "decoder.causal", *change.split())
    assert code == 2 and err.count("error:") == 1
    assert re.search(cause, err), err
    assert sorted(p.name for p in (uninterrupted / "checkpoints").iterdir()) == before


def test_changed_contents_of_the_data_are_noticed(train, uninterrupted, tmp_path, corpus):
    """The same config and the same tokenizer, but a corpus with a document less."""
    lines = (corpus / "tiny.jsonl").read_text().splitlines()
    tokenizer = next((corpus / "cache").glob("*/tokenizer.model"))
    given = (f"--config.data.tokenizer.path={tokenizer}", "--config.train.steps=4")
    workdir = tmp_path / "run"
    assert train(workdir, "decoder.causal", *given)[0] == 0
    (tmp_path / "tiny.jsonl").write_text("\n".join(lines[:-1]))
    code, err = train(workdir, "decoder.causal", *given, f"--config.data.sources.tiny.path={tmp_path}/tiny.jsonl")
    assert code == 2 and "contents of the data" in err and "--allow_changes" in err, err


def test_what_may_change_does_so_by_flag(train, uninterrupted, tmp_path):
    workdir = copy(uninterrupted, tmp_path)
    recomputed = ("--config.model.decoder.remat=full", "--config.model.decoder.keep=('attention',)")
    code, err = train(workdir, "decoder.causal", "--config.train.steps=14", *recomputed, "--allow_changes")
    assert code == 0, err
    assert summary(workdir)["step"] == 14
    code, err = train(workdir, "decoder.causal", "--config.train.steps=9", *recomputed, "--allow_changes")
    assert code == 2 and "is at step 14, beyond train.steps=9: give more" in err and summary(workdir)["step"] == 14, err


def test_two_runs_in_one_directory(train, tmp_path):
    from lm.training.rundir import RunDir

    first = RunDir(tmp_path)
    code, err = train(tmp_path)
    assert code == 2 and "another run" in err and str(tmp_path) in err
    first.close()


def test_damaged_side_files_and_a_renamed_checkpoint_cost_no_step(train, uninterrupted, tmp_path):
    workdir = copy(uninterrupted, tmp_path / "run")
    harm = {
        "metrics.jsonl": b'{"step": 10, "loss": "\xe9"}\n',
        "samples.jsonl": b"7\n",
        "goodput.jsonl": b"\0" * 4096 + b"\n",
        "checkpoints/12/metrics/metrics": b"\xff",
        "checkpoints/8/.DS_Store": b"x",
    }
    for name, damage in harm.items():
        with open(workdir / name, "ab") as file:
            file.write(damage)
    (workdir / "summary.json").unlink()
    (workdir / "summary.json").mkdir()
    (workdir / "checkpoints" / "12").rename(workdir / "checkpoints" / "11")
    with pytest.warns(UserWarning, match="is damaged|dropped 1 invalid line|not a readable file") as said:
        code, err = train(workdir)
    assert code == 0 and "going on from step 8" in err, err
    named = "".join(str(warning.message) for warning in said)
    for name in (
        "metrics.jsonl",
        "samples.jsonl",
        "goodput.jsonl",
        "11.metrics",
        "summary.json",
        "it is step 12, and was renamed",
    ):
        assert name in named
    assert len(said) == 6 and len(list((workdir / "damaged").iterdir())) == 6
    assert summary(workdir)["params_sha256"] == summary(uninterrupted)["params_sha256"]


def test_without_its_checkpoints_a_run_begins_anew_and_keeps_its_logs(train, uninterrupted, tmp_path):
    import shutil

    workdir = copy(uninterrupted, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    before = (workdir / "metrics.jsonl").read_bytes()
    with pytest.warns(UserWarning, match="logs up to step 12 and no checkpoint: the run starts over; its old logs are"):
        code, err = train(workdir)
    assert code == 0 and (workdir / "earlier" / "metrics.jsonl").read_bytes() == before, err
    assert summary(workdir)["params_sha256"] == summary(uninterrupted)["params_sha256"]


def test_a_signal_in_preparation_and_one_where_nobody_reads_what_is_said(command, tmp_path):
    early, late = tmp_path / "early", tmp_path / "late"
    process = command(early)
    wait_for((early / "goodput.jsonl").exists, process)
    process.send_signal(signal.SIGTERM)
    err = process.communicate(timeout=HANGS)[1]
    assert process.returncode == 75 and "Traceback" not in err, err
    assert err.splitlines()[-1].endswith("the same command starts again") and not (early / "metrics.jsonl").exists()

    process = command(late, "decoder.causal", "--config.train.steps=100000", "--config.checkpoint.every=None")
    process.stderr.close()
    wait_for((late / "metrics.jsonl").exists, process)
    for _ in range(2):  # impatient
        process.send_signal(signal.SIGHUP)
    assert process.wait(timeout=HANGS) == 75
    assert [p.name.isdigit() for p in (late / "checkpoints").iterdir()] == [True]


def test_a_finished_run_started_again_says_the_same(train, uninterrupted, tmp_path, monkeypatch):
    """Also where a signal ended it while it wrote its report."""
    workdir = copy(uninterrupted, tmp_path)
    before = summary(workdir)
    (workdir / "report.html").unlink()
    restore = process.catch()
    try:
        with monkeypatch.context() as told:
            told.setattr(process._Asked, "code", None)
            told.setattr("lm.training.run.write_report", lambda *_: signal.raise_signal(signal.SIGTERM))
            code, err = train(workdir)
    finally:
        restore()
    assert code == 75 and err.splitlines()[-1] == "terminated; the same command starts again", err
    with warnings.catch_warnings():
        code, err = train(workdir)
    after = summary(workdir)
    assert code == 0, err
    assert after["params_sha256"] == before["params_sha256"]
    assert after["heldout"] == before["heldout"] and (workdir / "report.html").exists()
