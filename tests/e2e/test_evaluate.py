"""`python -m lm.evaluate` on real runs: the same spans under another objective, a table and a file; mistakes in one line."""

import json

import pytest

from lm import checkpoint, saved
from lm.evaluate import main

SIZES = ["--spans=8", "--left=8", "--span=4", "--right=4", "--batch_size=8"]


def test_two_objectives_compare(train, tmp_path, capsys):
    results = []
    for what in ("decoder.causal", "encoder.masked"):
        run = tmp_path / what
        assert train(run, what, "--config.train.steps=2", "--config.checkpoint.every=None")[0] == 0
        assert main([f"--from={run}", *SIZES]) == 0
        out = capsys.readouterr().out
        assert "bits per byte" in out and "suffix" in out
        results.append(json.loads((run / "span_scores.json").read_text()))
    causal, masked = results
    asked = [{"left": "abc", "target": " de fa", "right": ""}, {"left": "", "target": "abc de", "right": " bd"}]
    path = tmp_path / "items.jsonl"
    path.write_text("\n".join(map(json.dumps, asked)))
    assert main([f"--from={run}", f"--items={path}"]) == 0
    assert "nats an item" in capsys.readouterr().out
    scores = json.loads((run / "item_scores.json").read_text())
    each = scores["per_item"]
    assert len(each["exact"]) == scores["count"] == 2 and sum(each["nats"]) == pytest.approx(
        2 * scores["metrics"]["nats"], abs=1e-3
    )
    assert main([f"--from={tmp_path}/decoder.causal", f"--items={path}"]) == 2
    assert "item 2 has a right side" in capsys.readouterr().err
    assert main([f"--from={run}", f"--items={path}", "--left=8"]) == 2
    assert "scores no spans, and --left asks for something else" in capsys.readouterr().err
    assert causal["digest"] == masked["digest"] and causal["data"] == masked["data"]
    flags = [{s["kind"]: s.get("normalised") for s in result["scores"]} for result in results]
    assert flags == [{"suffix": True, "infill": False, "pll": None}, {"suffix": True, "infill": True, "pll": False}]
    for result in results:
        first = result["scores"][0]
        assert len(first["per_span"]) == 8 and sum(first["per_span"]) == pytest.approx(first["nats"], abs=0.01)
    assert causal["scores"][0]["bytes"] == masked["scores"][0]["bytes"] > 0
    for flag, cause in (
        ("--kinds=sufix", "did you mean 'suffix'"),
        ("--left=80", "held-out|positions"),
        ("--span=0", "1 or more"),
    ):
        assert main([f"--from={run}", *SIZES, flag]) == 2
        lines = capsys.readouterr().err.splitlines()
        errors = [line for line in lines if line.startswith("error:")]
        assert len(errors) == 1 and any(c in errors[0] for c in cause.split("|")) and not any("Traceback" in x for x in lines)


def test_a_converted_model_is_scored_as_the_run_that_it_is_from(train, flags, tmp_path, capsys):
    """With --config for its data and objective; it is scored in its own tokens."""
    run, converted, out = tmp_path / "run", tmp_path / "converted", tmp_path / "scores.json"
    assert train(run, "decoder.causal", "--config.train.steps=2", "--config.checkpoint.every=None")[0] == 0
    source = saved.open(run)
    checkpoint.save_params(converted, source.model, source.params())
    (converted / "hf").mkdir()
    (converted / "hf" / "tokenizer.model").write_bytes(source.tokenizer_bytes())
    assert main([f"--from={run}", *SIZES]) == 0
    assert main([f"--from={converted}", f"--out={out}", *flags("decoder.causal"), *SIZES]) == 0
    ours, theirs = json.loads((run / "span_scores.json").read_text()), json.loads(out.read_text())
    assert theirs["digest"] == ours["digest"] and not (converted / "span_scores.json").exists()
    assert [s["nats"] for s in theirs["scores"][:2]] == pytest.approx([s["nats"] for s in ours["scores"][:2]], rel=1e-6)
    capsys.readouterr()
    for words, cause in (
        ([f"--from={converted}"], "is a converted model without data; add --config=FILE"),
        ([f"--from={run}", "--out=/nowhere/x.json"], "the folder /nowhere does not exist; create it first"),
    ):
        assert main([*words, *SIZES]) == 2
        assert cause in capsys.readouterr().err


@pytest.mark.parametrize("architecture", ["encoder", "decoder"])
def test_the_bound_of_masked_diffusion_is_the_same_in_two_ways(architecture, train, tmp_path, capsys):
    run, other = tmp_path / "run", tmp_path / "other"
    assert train(run, f"{architecture}.masked_diffusion", "--config.train.steps=2", "--config.checkpoint.every=None")[0] == 0
    assert main([f"--from={run}", "--bound=6", "--draws=2"]) == 0
    assert "bits per byte" in capsys.readouterr().out
    found = json.loads((run / "bound.json").read_text())
    a, b = found["bounds"]["sum"], found["bounds"]["sampled"]
    assert abs(a["bits_per_byte"] - b["bits_per_byte"]) < 5 * (a["error"] ** 2 + b["error"] ** 2) ** 0.5
    assert a["nats_per_token"] == pytest.approx(6.2, abs=1.0) and found["windows"] == 6  # log 512 is 6.2
    summary = json.loads((run / "summary.json").read_text())
    assert summary["heldout"]["bits_per_byte_bound"] == pytest.approx(a["bits_per_byte"], rel=0.2)
    assert train(other, "encoder.masked", "--config.train.steps=0")[0] == 0
    for words, cause in (
        ([f"--from={other}", "--bound=6"], "--bound is of models of 'masked_diffusion', and this one is of 'masked'"),
        ([f"--from={run}", "--draws=3"], "--draws=3 is of --bound, and that is not given"),
        ([f"--from={run}", "--bound=6", "--items=x"], "--items=x scores no spans, and --bound asks for something else"),
    ):
        assert main(words) == 2
        assert cause in capsys.readouterr().err


def test_no_run(tmp_path, capsys):
    assert main([f"--from={tmp_path}"]) == 2
    assert f"error: --from={tmp_path} is an empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["batch_size=0", "spans=0", "left=0", "span=0", "right=0", "seed=-1"])
def test_values_out_of_range_are_named_before_anything_is_read(flag, tmp_path, capsys):
    assert main([f"--from={tmp_path}", f"--{flag}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: --{flag} is too small: give ")


def test_home_and_interruption(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["--from=~/run"]) == 2
    assert "--from=~/run does not exist" in capsys.readouterr().err

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("lm.evaluation.span_scores.evaluate", interrupted)
    assert main(["--from=~/run"]) == 130
    assert "interrupted" in capsys.readouterr().err
