"""Runs side by side: which files are read, and where their points are on each axis."""

import json
import re

import numpy as np
import pytest

from lm import report as command
from lm.errors import UserError
from lm.training import report_runs
from lm.training.goodput import account, elapsed

HISTORY = [  # killed after step 60, of which steps 41 to 60 run again from the checkpoint at 40
    {"event": "start", "time": 0.0},
    {"event": "step", "time": 10.0, "step": 0, "seconds": {"prepare": 10.0}},
    {"event": "step", "time": 50.0, "step": 40, "seconds": {"prepare": 10.0, "train": 40.0}},
    {"event": "step", "time": 70.0, "step": 60, "seconds": {"prepare": 10.0, "train": 60.0}},
    {"event": "start", "time": 1000.0},
    {"event": "step", "time": 1005.0, "step": 40, "seconds": {"restore": 5.0}},
    {"event": "step", "time": 1035.0, "step": 60, "seconds": {"restore": 5.0, "train": 30.0}},
    {"event": "done", "time": 1050.0, "step": 60, "seconds": {"restore": 5.0, "train": 30.0, "baselines": 15.0}},
]


@pytest.fixture
def make(tmp_path):
    """Writes the files of a run of 60 steps, in a folder of this name."""

    def write(name, *, rate=0.01, data="d", tokenizer="t", finished=True, loss=2.0, flops=4e5):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        rows = [{"step": s, "loss": loss, "tokens_seen": 100 * s} for s in (20, 40, 60)] + [{"step": 60, "heldout/loss": loss}]
        config = {"train": {"steps": 60}, "optimizer": {"learning_rate": rate}}
        samples = [{"step": s, "prompt": "p", "text": f"<{s}>"} for s in (30, 60)]
        for log, lines in (("metrics", rows), ("goodput", HISTORY), ("samples", samples)):
            (folder / f"{log}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")
        facts = {"data_fingerprint": data, "tokenizer_fingerprint": tokenizer, "git": {"commit": "c0ffee" * 6}}
        facts |= {} if flops is None else {"model_flops_per_token": flops}
        summary = {"step": 60, "tokens_seen": 6000, "model_flops": 3e9, "heldout": {"loss": loss}, "baselines": None}
        files = {"config": config, "manifest": facts, "summary": summary | {"goodput": account(HISTORY)}}
        for file, tree in files.items():
            if finished or file != "summary":
                (folder / f"{file}.json").write_text(json.dumps(tree), encoding="utf-8")
        return folder

    return write


def compared(tmp_path, *folders):
    return report_runs.write_comparison(folders, tmp_path / "out.html").read_text(encoding="utf-8")


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(report_runs, "_curves", lambda runs: [])


def test_elapsed_time_counts_what_ran_again_and_not_the_time_between_processes():
    assert elapsed(HISTORY) == [(0, 10.0), (40, 50.0), (60, 105.0)]
    assert elapsed(HISTORY[:4]) == [(0, 10.0), (40, 50.0), (60, 70.0)] and elapsed([]) == []


def test_steps_are_placed_on_each_axis(make):
    run = report_runs.opened(make("a"))[1]
    at = {axis: run.along(axis, [10, 40, 60]) for axis in report_runs.AXES}
    np.testing.assert_allclose(at["step"], [10, 40, 60])
    np.testing.assert_allclose(at["tokens read"], [1000, 4000, 6000])
    np.testing.assert_allclose(at["model FLOPs"], [5e8, 2e9, 3e9])
    np.testing.assert_allclose(at["seconds of wall time"], [20, 50, 105])
    begun = report_runs.opened(make("b", finished=False))[1]  # the manifest has the FLOPs of a token
    np.testing.assert_allclose(begun.along("model FLOPs", [10, 40, 60]), [4e8, 1.6e9, 2.4e9])
    assert begun.summary["model_flops"] == 2.4e9
    assert report_runs.opened(make("c", finished=False, flops=None))[1].along("model FLOPs", [10]) is None


def test_results_and_differences_stand_side_by_side(make, tmp_path, undrawn):
    text = compared(tmp_path, make("a"), make("b", rate=0.5, loss=1.5))
    assert "<tr><th>held-out loss<td class=r>2.000<td class=r>1.500<td class=unit>nats" in text
    assert "<tr><th>model_flops<td class=r>3.000e+09<td class=r>3.000e+09<td class=unit>FLOPs" in text
    assert (
        "<th>wall time<td class=r>1,050<td class=r>1,050<td class=unit>s" in text and "<th>commit<td>c0ffeec0ffee<td>" in text
    )
    assert "<tr><th>optimizer.learning_rate<td>0.01<td>0.5<td class=unit>" in text and "train.steps" not in text
    assert text.count("&lt;60&gt;") == 2 and "&lt;30&gt;" not in text, "the latest samples"
    assert "different data" not in text and "Not finished" not in text
    assert "All configs are equal" in compared(tmp_path, make("c"), make("d"))


def test_what_cannot_be_compared_is_said(make, tmp_path, undrawn):
    unfinished = dict(tokenizer="u", finished=False)
    text = compared(tmp_path, make("a"), make("b", data="e"), make("<c>", **unfinished), make("d", flops=None, **unfinished))
    assert "different data" in text and "different tokenizers: compare bits per byte" in text
    assert "Not finished, so without baselines: &lt;c&gt;, d." in text and "at step 60 of 60" in text
    assert "Without FLOPs, which their files do not say yet: d." in text


def test_runs_are_named_by_what_differs(make, tmp_path):
    assert report_runs.named([tmp_path / "a", tmp_path / "b"]) == ["a", "b"]
    assert report_runs.named([tmp_path / "a/run", tmp_path / "b/run"]) == ["a/run", "b/run"]
    with pytest.raises(UserError, match="given twice"):
        report_runs.named([tmp_path / "a", tmp_path / "a"])


def test_each_measure_has_four_axes_with_a_curve_for_each_run(make, monkeypatch):
    pytest.importorskip("matplotlib")
    seen = {}
    monkeypatch.setattr(report_runs, "image", lambda figure, title: seen.setdefault(title, figure) and "")
    folders = [make("a"), make("_$b$"), make("c", finished=False, flops=None), make("d", finished=False)]
    report_runs._curves({f.name: report_runs.opened(f)[1] for f in folders})
    assert list(seen) == ["training loss", "held-out loss"]
    for figure in seen.values():
        assert [axis.get_xlabel() for axis in figure.axes] == list(report_runs.AXES)
        assert [len(axis.lines) for axis in figure.axes] == [4, 4, 3, 4], "FLOPs are known of all but one"
        labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        assert labels == [" a", r" _\$b\$", " c", " d"] and figure.axes[0].get_ylabel().endswith("loss (nats)")


def test_the_command_writes_one_file_that_needs_no_other(make, tmp_path, capsys):
    out = tmp_path / "all.html"
    assert command.main([str(make("a")), str(make("b")), f"--out={out}"]) == 0
    text = out.read_text(encoding="utf-8")
    assert capsys.readouterr().out == f"{out}\n"
    assert not [link for link in re.findall(r"(?:src|href)=\"?([^\"\s>]+)", text) if not link.startswith("data:")]


def test_a_run_in_a_bucket_is_read_there(make, tmp_path, capsys, monkeypatch):
    """In fsspec's memory; finished or not, beside a local one of the same name."""
    fsspec = pytest.importorskip("fsspec")
    memory = fsspec.filesystem("memory")
    for name in ("a", "b"):
        for file in make(name, finished=name == "a").iterdir():
            memory.pipe_file(f"/bucket/{name}/{file.name}", file.read_bytes())
    for name, local in (("a", tmp_path / "a"), ("b", tmp_path / "b")):
        there = report_runs.opened(f"memory://bucket/{name}/")[1]
        assert there == report_runs.opened(local)[1] and there.finished == (name == "a")
    out = tmp_path / "all.html"
    assert command.main(["memory://bucket/a", "memory://bucket/b", str(tmp_path / "b"), f"--out={out}"]) == 0
    text = out.read_text(encoding="utf-8")
    assert "<th>bucket/a<th>bucket/b<th>" in text and "at step 60 of 60" in text
    capsys.readouterr()
    assert command.main(["memory://bucket/none"]) == 2
    assert (
        capsys.readouterr().err
        == "error: memory://bucket/none has no config.json: give the --workdir of a run that has begun\n"
    )
    broken = lambda *_, **__: (_ for _ in ()).throw(RuntimeError("no route to host"))
    monkeypatch.setattr(type(memory), "cat_file", broken)
    assert command.main(["memory://bucket/a"]) == 2
    err = capsys.readouterr().err
    assert "no route to host" in err and "copy the run to a local folder" in err and err.count("\n") == 1
    memory.rm("/bucket", recursive=True)


def test_mistakes_are_one_line(make, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    run = make("a")
    for words, said in (
        ([tmp_path / "empty"], "has no config.json: give the --workdir of a run"),
        ([tmp_path / "nothing"], "has no config.json"),
        (["ftp://host/run"], "no ftp:// is read; give one of gs://"),
        ([run, run], "a run is given twice"),
        ([run, f"--out={tmp_path}"], "is no name for a file"),
        ([run, f"--out={tmp_path}/none/out.html"], "is no name for a file"),
    ):
        assert command.main([str(word) for word in words]) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and said in err and err.count("\n") == 1, err
