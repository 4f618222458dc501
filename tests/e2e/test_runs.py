"""Every architecture under every objective that suits it: trains, learns, evaluates, samples, reports."""

import json
from pathlib import Path

import pytest

import lm
from lm.config import kind_of
from lm.config.resolve import load
from lm.objectives import pairs

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("what", [f"{a}.{kind_of(o)}" for a, o in pairs()])
def test_trains(train, tmp_path, what):
    steps = "--config.train.steps=40"
    code, err = train(tmp_path, what, steps, "--config.evaluate.every=10", "--config.checkpoint.every=None")
    assert code == 0, err
    summary = json.loads((tmp_path / "summary.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    # A pair's loss is no measure: the better the generator, the harder what it asks of the model.
    name = "heldout/generator_loss" if what.endswith("replaced_tokens") else "heldout/loss"
    heldout = [row[name] for row in rows if name in row]
    # Texts of random letters are told apart from the start (chance: 2.8 nats or more); test_contrastive.py has some that must
    # be learned.
    assert heldout[-1] < heldout[0] - 0.05 or (what.endswith("contrastive") and heldout[-1] < 1.0), heldout
    assert summary["tokens_seen"] >= summary["tokens_with_loss"] > 0
    assert summary["seconds"]["train"] > 0 and summary["model_flops"] > 0
    assert ("bits_per_byte" in summary["heldout"]) == what.endswith(("causal", "multi_token"))
    assert ("bits_per_byte_bound" in summary["heldout"]) == what.endswith(("diffusion", "any_order", "variational"))
    left_out = summary["text_left_out"]
    assert set(left_out) == {"train", "holdout"} and max(left_out.values()) < 0.2
    assert max(left_out.values()) == 0 or what not in ("decoder.causal", "encoder.masked", "encoder.replaced_tokens")
    if not what.endswith("contrastive"):  # it writes nothing
        samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
        assert {s["step"] for s in samples} == {10, 20, 30, 40} and all(s["text"] for s in samples[-1:])
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert (
        manifest["versions"]["jax"] and manifest["versions"]["lm"] == lm.__version__ and len(manifest["data_fingerprint"]) == 64
    )
    page = (tmp_path / "report.html").read_text()
    assert "data:image/png;base64," in page and ("Samples at step 40" in page) != what.endswith("contrastive")


def test_no_steps_evaluate_the_first_parameters(train, tmp_path):
    code, err = train(tmp_path, "decoder.causal", "--config.train.steps=0", "--config.model.kernel=auto")
    assert code == 0, err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["step"] == summary["tokens_seen"] == summary["model_flops"] == 0
    assert 5 < summary["heldout"]["loss"] < 8  # log 512 is 6.2
    assert (tmp_path / "report.html").exists()
    chosen = (json.loads((tmp_path / name).read_text()) for name in ("config.json", "manifest.json"))
    assert next(chosen)["model"]["kernel"] == next(chosen)["kernel"] == "plain"  # on a CPU


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.py")), ids=lambda p: p.stem)
def test_every_config_resolves(path):
    run = load(str(path))
    assert load_again(run) == run
    assert "python -m lm.train" in path.read_text(), "a config's docstring gives its command"


def load_again(run):
    from lm.config.resolve import from_json, to_json

    return from_json(to_json(run))


def test_dry_run_writes_nothing(flags, tmp_path, capsys):
    from lm.train import main

    assert main([*flags(), "--dry_run", f"--workdir={tmp_path / 'run'}"]) == 0
    out = capsys.readouterr().out
    for words in ("parameters", "model FLOPs a step", "memory of a step, GiB on a device", "it fits", '"learning_rate": 0.01'):
        assert words in out
    assert not (tmp_path / "run").exists()
