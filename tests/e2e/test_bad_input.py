"""Each mistake: one line that names cause and cure, exit code 2, nothing lost."""

import re
import subprocess

import pytest

from lm.errors import UserError
from tests.processes import HANGS

CASES = {
    "unknown key": (["--config.train.stpes=3"], "unknown key config.train.stpes; did you mean 'steps'"),
    "unknown section": (["--config.trian.steps=3"], "unknown key config.trian; did you mean 'train'"),
    "wrong type": (["--config.train.steps=many"], "config.train.steps is 'many'; it must be int"),
    "unknown kind": (["--config.objective.kind=casual"], "config.objective.kind is 'casual'; did you mean 'causal'"),
    "missing source": (["--config.data.sources.tiny.path=/nowhere/*.jsonl"], "/nowhere"),
    "no share, before anything is read": (
        ["--config.data.sources.tiny.weight=-1", "--config.data.sources.tiny.path=/nowhere/*.jsonl"],
        "config.data.sources.tiny.weight=-1 is too small: give 0 or more$",
    ),
    "vocabulary": (["--config.data.tokenizer.vocab_size=30000", "--config.model.vocab_size=30000"], "30000|vocab"),
    "tokenizer larger than model": (["--config.model.vocab_size=128"], "model.vocab_size=128 is smaller.*=400 or more"),
    "batch": (["--config.train.microbatches=3"], "train.batch_size=4 does not divide.*take 3"),
    "mesh": (
        ["--config.mesh.tensor=3", "--config.mesh.data=1"],
        "mesh tensor=3 does not divide 1 devices",
    ),
    "positions": (
        ["--config.data.decoder_length=65"],
        "takes 65 positions of the decoder, which has learned 64: shorten data.decoder_length",
    ),
    "samples": (
        ["--config.log.sample_tokens=64"],
        r"log.samples take \d+ positions of the decoder, which has learned 64: lower log.sample_tokens, shorten log.samples",
    ),
    "objective": (["--config.objective.kind=masked"], "'masked' does not suit the decoder.*span_corruption"),
    "baselines": (
        ["--config.evaluate.baselines=True", "--config.data.train_share=0.5"],
        "all training documents.*data.train_share=0.5.*evaluate.baselines=False",
    ),
    "never": (["--config.evaluate.every=0"], "evaluate.every=0 is too small: give 1 or more; None is never"),
    "no microbatch": (["--config.train.microbatches=0"], "train.microbatches=0 is too small: give 1 or more$"),
    "no length": (["--config.data.decoder_length=None"], "data.decoder_length is None"),
    "nothing held out": (
        ["--config.evaluate.baselines=True", "--config.data.holdout=0", "--config.data.sources.tiny.path=/nowhere/*.jsonl"],
        "evaluate.baselines are judged on held-out documents, and none is held out: raise data.holdout",
    ),
    "an objective's shares, before anything is read": (
        [
            "--config.objective={'kind': 'fill_in_middle', 'rate': 1.5}",
            "--config.data.sources.tiny.path=/nowhere/*.jsonl",
        ],
        "config.objective.rate=1.5 is too large: give 0 or more, at most 1",
    ),
    "a schedule that does not fit, before anything is read": (
        [
            "--config.optimizer.schedule={'kind': 'wsd', 'decay': 100}",
            "--config.data.sources.tiny.path=/nowhere/*.jsonl",
        ],
        "optimizer.schedule.decay=100 does not fit",
    ),
    "a state beyond the memory": (
        ["--config.model.width=1048576", "--config.model.decoder.blocks.L.attention.num_heads=1048576"],
        r"parameters, moments and averages take [\d,.]+ GiB of a device, which has [\d,.]+ GiB: take a smaller model",
    ),
    "a batch for evaluation": (["--config.evaluate.batch_size=0"], "config.evaluate.batch_size=0 is too small"),
    "heads": (
        ["--config.model.decoder.blocks.L.attention.num_heads=3"],
        "config.model: decoder.blocks.L.attention.num_heads=3 does not divide width=32",
    ),
    "momentum": (
        ["--config.optimizer.b2=1.0", "--dry_run"],
        "config.optimizer.b2=1.0 is too large: give 0 or more, less than 1",
    ),
    "text too short": (
        ["--config.data.decoder_length=40000", "--config.model.decoder.position.max_length=40000"],
        "tokens in this split",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_bad_input(train, tmp_path, case):
    extra, cause = CASES[case]
    code, err = train(tmp_path / "runs" / "new", "decoder.causal", *extra)
    assert code == 2, err
    lines = [line for line in err.strip().splitlines() if line.startswith("error:")]
    assert len(lines) == 1 and re.search(cause, lines[0]), err
    assert "Traceback" not in err
    assert not any(tmp_path.iterdir()), "a refused run leaves no folder that was made for it"


@pytest.mark.parametrize(
    ("workdir", "cause"),
    [("", "--workdir is empty; give the directory"), ("a\\b/r", r"a library that writes there changes .* without it")],
)
def test_a_workdir_that_is_none(train, tmp_path, monkeypatch, workdir, cause):
    monkeypatch.chdir(tmp_path)
    code, err = train(workdir)
    assert code == 2 and re.search(cause, err) and not any(tmp_path.iterdir()), err


def test_a_stretch_has_positions_of_its_text(train, tmp_path):
    """Eight places in the decoder, whose positions are those of the encoder's 32: looked up past the table they are NaN."""
    short = ["--config.data.decoder_length=8", "--config.model.decoder.position.max_length=8"]
    code, err = train(tmp_path, "encoder_decoder.mass", *short)
    assert code == 2 and "takes 17 positions of the decoder, which has learned 8: shorten data.encoder_length" in err, err


def write(tmp_path, name, data):
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("data", "cause"),
    [
        (b"", "empty|no documents"),
        (b'{"text": "caf\xe9"}\n', "invalid utf-8"),
        (b'{"text": "ok"}\n{"text": \n', "line 2|:2"),
        (b'{"body": "words"}\n', "body"),
    ],
    ids=["empty", "encoding", "json", "field"],
)
def test_bad_corpus(train, tmp_path, data, cause):
    path = write(tmp_path, "bad.jsonl", data)
    code, err = train(tmp_path / "run", "decoder.causal", f"--config.data.sources.tiny.path={path}")
    assert code == 2 and not (tmp_path / "run").exists(), err
    assert re.search(cause, err.strip().splitlines()[-1]) and "Traceback" not in err


def test_config_file_that_is_not_there(capsys):
    from lm.train import main

    assert main(["--config=configs/quickstrat.py", "--workdir=x"]) == 2
    assert "no config file configs/quickstrat.py; did you mean 'configs/quickstart.py'?" in capsys.readouterr().err


def test_no_disk_space_before_a_byte_is_written(train, tmp_path, monkeypatch):
    import shutil

    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("lm.checkpoint.shutil.disk_usage", lambda path: usage._replace(free=1000))
    code, err = train(tmp_path)
    assert code == 2 and re.search(r"no disk space in .*takes 0\.\d MB and 0\.0 MB are free.*intact", err), err
    monkeypatch.undo()
    with pytest.warns(UserWarning, match="logs up to step 4 and no checkpoint: the run starts over"):
        code, err = train(tmp_path)
    assert code == 0, err


def test_gradients_that_stay_infinite_stop_the_run_with_good_parameters(train, tmp_path, monkeypatch):
    """A save that fails meanwhile is told as well."""

    def fails(self):
        raise UserError("no disk space")

    monkeypatch.setattr("lm.checkpoint.Checkpoints.wait", fails)
    code, err = train(
        tmp_path,
        "decoder.causal",
        "--config.optimizer.learning_rate=1e30",
        "--config.optimizer.clip=None",
        "--config.train.steps=60",
        "--config.train.max_skipped=4",
        "--config.checkpoint.every=1000",
    )
    assert code == 2 and "not finite" in err, err
    assert err.splitlines()[-1].endswith("; also: the save under way failed: no disk space"), err


def test_a_disk_that_is_really_full_keeps_what_is_saved_and_goes_on(command, tmp_path):
    """On a file system of 1.5 MB: the third checkpoint of about half a megabyte does not fit."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1500k", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("mounting a file system takes root")
    try:
        code, err = finished(command(small / "run", "decoder.causal", "--config.checkpoint.keep=5"))
        assert code == 2, err
        assert re.search(r"error: no disk space in .*earlier checkpoints are intact", err.splitlines()[-1]), err
        saved = max(int(p.name) for p in (small / "run" / "checkpoints").iterdir() if p.name.isdigit())
        subprocess.run(["mount", "-o", "remount,size=20m", str(small)], check=True)
        code, err = finished(command(small / "run", "decoder.causal", "--config.checkpoint.keep=5"))
        assert code == 0 and f"going on from step {saved}" in err, err
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def finished(process):
    err = process.communicate(timeout=HANGS)[1]
    return process.returncode, err.strip()
