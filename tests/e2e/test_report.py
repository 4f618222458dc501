"""The page of a run while it is trained and after a stop, and runs side by side."""

import json
import signal
import sys
import time

import pytest

from lm import report
from lm.training import report_runs

HANGS = 120  # seconds


def read(path):
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("number,code", [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_it_is_there_from_the_first_evaluation_on_and_after_a_stop(command, tmp_path, number, code):
    process = command(tmp_path, "decoder.causal", "--config.train.steps=100000", "--config.checkpoint.every=None")
    end = time.monotonic() + HANGS
    while not (tmp_path / "report.html").exists():
        assert process.poll() is None and time.monotonic() < end, process.stderr.read()
        time.sleep(0.05)
    page = read(tmp_path / "report.html")
    assert "training: step 6 of 100,000" in page and "Samples at step 6" in page and "http-equiv=refresh" in page
    process.send_signal(number)
    err = process.communicate(timeout=HANGS)[1]
    assert process.returncode == code and "Traceback" not in err, err
    page = read(tmp_path / "report.html")
    assert "stopped at step" in page and "http-equiv=refresh" not in page and "data:image/png;base64," in page


def test_runs_side_by_side(runs, tmp_path, capsys):
    out = tmp_path / "out.html"
    assert report.main([str(runs / "decoder.causal"), str(runs / "encoder.masked"), f"--out={out}"]) == 0
    assert capsys.readouterr().out == f"{out}\n"
    page = read(out)
    assert "<th>decoder.causal<th>encoder.masked" in page and "objective.kind" in page and "data:image/png;base64," in page


def test_flops_before_the_end_are_those_of_the_summary(runs):
    """By the rows of the first step and by all rows."""
    for name in ("decoder.causal", "encoder.masked"):
        summary, manifest = (json.loads(read(runs / name / f"{what}.json")) for what in ("summary", "manifest"))
        found = report_runs.opened(runs / name)[1]
        assert found.summary == summary and found.finished
        assert manifest["model_flops_per_token"] * summary["tokens_seen"] == pytest.approx(summary["model_flops"], rel=0.02)


def test_at_a_terminal_a_line_comes_before_jax_is_imported(flags, tmp_path, monkeypatch, capsys):
    from lm import cli, train

    said = []
    monkeypatch.setattr(cli, "start_jax", lambda hosts: said.append(capsys.readouterr().err) or sys.exit(0))
    for terminal in (True, False):
        monkeypatch.setattr(sys.stderr, "isatty", lambda terminal=terminal: terminal)
        with pytest.raises(SystemExit):
            train.main([f"--workdir={tmp_path}", *flags()])
    assert said[0].endswith(f"tiny.py:decoder.causal: 12 steps, in {tmp_path}; starting\n") and said[1] == ""
