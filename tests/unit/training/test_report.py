"""The page of a run: while it is trained, after a stop, at its end."""

import base64
import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from lm import config
from lm.errors import Diverged, Stopped
from lm.training import hooks, report, report_curves
from lm.training.loop import Clock
from lm.training.report_curves import number

HASH = "f3a1" * 16


@pytest.fixture
def folder(tmp_path):
    """The files of a run that is at step 30 of 40."""
    rows = [
        {"step": s, "loss": 9 - s / 10, "learning_rate": 0.01, "grad_norm": 1.0, "tokens_seen": 1000 * s} for s in (10, 20, 30)
    ]
    rows[1:1] = [{"step": 10, "heldout/loss": 8.5, "heldout/bits_per_byte": 3.0}]
    rows.append({"step": 30, "heldout/loss": 6.25, "heldout/bits_per_byte": 2.0})
    samples = [{"step": s, "prompt": p, "text": f"<{s}>"} for s in (10, 30) for p in "ab"]
    ran = [{"event": "start", "time": 1.0}, {"event": "step", "time": 9.0, "step": 30, "seconds": {"train": 8.0}}]
    for name, lines in (("metrics", rows), ("samples", samples), ("goodput", ran)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (tmp_path / "config.json").write_text(json.dumps({"train": {"steps": 40}}), encoding="utf-8")
    (tmp_path / "manifest.json").write_text(json.dumps({"data_fingerprint": HASH}), encoding="utf-8")
    return tmp_path


def page(folder, *arguments, **settings):
    return report.write_report(folder, *arguments, **settings).read_text(encoding="utf-8")


@pytest.fixture
def undrawn(monkeypatch):
    monkeypatch.setattr(report, "curves", lambda rows, summary: f"<p>{len(rows)} rows")


def test_a_run_in_progress_says_where_it_is_and_loads_again(folder, undrawn):
    text = page(folder)
    assert "training: step 30 of 40; as of 20" in text and "http-equiv=refresh" in text
    assert "<th>loss<td class=r>6.000<td class=unit>nats" in text, "of the latest row"
    assert "<th>held-out bits_per_byte<td class=r>2.000<td class=unit>bits per byte" in text and "5 rows" in text
    assert "8 s over 1 start" in text


def test_samples_are_under_their_step_and_the_newest_first(folder, undrawn):
    text = page(folder)
    at = [text.index(words) for words in ("Samples at step 30", "&lt;30&gt;", "Samples at step 10", "&lt;10&gt;", "<h2>Config")]
    assert at == sorted(at) and text.count("&lt;30&gt;") == 2
    many = [{"step": s, "prompt": "", "text": f"<{s}>"} for s in range(report.SHOWN + 3)]
    text = report._samples(many)
    assert text.count("<h2>") == report.SHOWN and "&lt;2&gt;" not in text and "of 3 earlier evaluations" in text


def test_a_sample_is_shown_with_its_pictures(folder, undrawn):
    pictures = [base64.b64encode(b).decode() for b in (b"one", b"two")]
    rows = [{"step": 30, "prompt": "a cat", "text": "", "pictures": pictures}]
    text = report._samples(rows)
    assert [text.index(one) for one in pictures] == sorted(text.index(one) for one in pictures)
    assert text.count('<img class=p src="data:image/png;base64,') == 2 and text.index(pictures[1]) < text.index("a cat")
    hostile = report.written({"prompt": "", "text": "", "pictures": ['"><script>']})
    assert "<script>" not in hostile


def test_a_stopped_run_says_so_and_is_not_loaded_again(folder, undrawn):
    hook = hooks.Report(None, SimpleNamespace(path=folder), Clock(), None, quiet=False)
    hook.ended(Stopped(75, 30))
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "stopped at step 30, saved; the same command goes on from there; as of" in text and "refresh" not in text
    hook.ended(Diverged("9 steps in a row were skipped"))
    assert "9 steps in a row were skipped" in (folder / "report.html").read_text(encoding="utf-8")


def test_a_report_that_fails_does_not_hide_why_a_run_ended(folder):
    (folder / "config.json").unlink()
    error = Stopped(75, 30)
    hooks.Report(None, SimpleNamespace(path=folder), Clock(), None, quiet=False).ended(error)
    assert "report.html was not written" in error.__notes__[0] and not (folder / "report.html").exists()


def test_it_is_written_at_the_first_evaluation_then_now_and_then(folder, monkeypatch):
    written, now = [], [100.0]
    monkeypatch.setattr(hooks, "write_report", lambda path: written.append(evaluate.at))
    monkeypatch.setattr(hooks.time, "monotonic", lambda: now[0])
    evaluate = SimpleNamespace(at=-1)
    run = config.Run(config.Model(8, 8), train=config.Train(steps=9))
    hook = hooks.Report(run, SimpleNamespace(path=folder), Clock(), evaluate, quiet=False)
    for step in range(1, 10):
        evaluate.at = step if step % 2 or step == 8 else evaluate.at
        hook(step, None, {})
        now[0] += 25
    assert written == [1, 5, 8], "not without an evaluation, not within a minute, not at the end"
    written.clear()
    hook.quiet = True
    evaluate.at = 3
    hook(3, None, {})
    assert not written


def test_a_finished_run_ranks_its_bits_among_the_baselines(folder, undrawn):
    summary = {"step": 40, "params_sha256": HASH, "skipped_steps": 0, "heldout": {"bits_per_byte": 1.5}}
    summary |= {"goodput": {"starts": 2, "wall_seconds": 9.0, "share": 0.5, "seconds": {"productive": 9.0}}}
    text = page(folder, summary | {"baselines": {"xz": 2.25, "trigram": 1.25}})
    assert "finished: 40 steps; as of" in text and "refresh" not in text
    ranked = re.findall(r"<th>([\w ]+)<td class=r>([\d.]+)<td class=unit>bits per byte", text.partition("Baselines on")[2])
    assert ranked == [("trigram", "1.250"), ("this model", "1.500"), ("xz", "2.250")]
    assert "Baselines" not in page(folder, summary | {"baselines": None})


def test_long_hashes_break_and_pages_are_whole(folder, undrawn):
    text = page(folder)
    assert HASH in text and "td,pre{overflow-wrap:anywhere}" in text and "td.t{max-width" in text
    assert f"<td class=t>{HASH}<td class=unit>" in report.table({"params_sha256": (HASH, "")})
    opened, closed = [], []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: opened.append(tag)
    parser.handle_endtag = lambda tag: closed.append(tag)
    parser.feed(text)
    for tag in ("table", "pre", "h1", "h2", "div", "title", "style"):
        assert opened.count(tag) == closed.count(tag), tag


@pytest.mark.parametrize(
    "value,shown",
    [
        (1269698, "1,269,698"),
        (5868442557839.7, "5.868e+12"),
        (11726.8, "11,727"),
        (3.0067862, "3.007"),
        (0.35, "0.3500"),
        (999.99, "1,000"),
    ]
    + [(0.0002, "2.000e-04"), (0.0, "0"), (-0.5, "-0.5000"), (1000.0, "1,000")],
)
def test_numbers_have_one_format(value, shown):
    assert number(value) == shown


# ---------------------------------------------------------------------------------------------------------------- curves


@pytest.fixture
def drawn(monkeypatch):
    """Draws curves; returns {label of the vertical axis: labels of what is on it}."""
    pytest.importorskip("matplotlib")

    def draw(rows, summary):
        found = {}

        def look(figure, text):
            for axis in figure.axes:
                if axis.axison:
                    assert axis.get_xlabel() == "step" and axis.get_ylabel()
                    found[axis.get_ylabel()] = {line.get_label() for line in axis.lines}
            return ""

        monkeypatch.setattr(report_curves, "image", look)
        report_curves.curves(rows, summary)
        return found

    return draw


@pytest.mark.parametrize(
    "heldout,label,expected",
    [
        ({"accuracy": 0.8, "majority": 0.3}, "held-out share right", {"heldout/accuracy", "majority 0.300"}),
        ({"exact": 0.8, "f1": 0.9, "majority": 0.3}, "held-out share right", {"heldout/exact", "heldout/f1", "majority 0.300"}),
        ({"accuracy": 0.1, "bits_per_byte": 2.0}, "held-out bits per byte", {"heldout/bits_per_byte", "bigram 1.900"}),
    ],
)
def test_accuracies_are_drawn_beside_the_majority_and_bits_beside_baselines(drawn, heldout, label, expected):
    rows = [{"step": step, **{f"heldout/{name}": value for name, value in heldout.items()}} for step in (1, 2)]
    assert drawn(rows, {"heldout": heldout, "baselines": {"bigram": 1.9}}) == {label: expected}


def test_each_axis_has_a_name_and_the_learning_rate_one_of_its_own(drawn):
    row = {"loss": 3.0, "learning_rate": 0.01, "grad_norm": 0.5, "tokens_per_second": 99.0, "mfu": 0.4}
    found = drawn([{"step": step, **row} for step in (1, 2)] + [{"step": 2, "heldout/nll": 2.0}], {})
    assert found == {
        "loss (nats)": {"loss", "heldout/nll"},
        "learning rate": {"learning_rate"},
        "gradient norm before clipping": {"grad_norm"},
        "tokens per second": {"tokens_per_second"},
        "model FLOPs utilisation (share)": {"mfu"},
    }


def test_a_policys_figures_and_the_rewards_of_its_samples_are_shown(drawn):
    names = {"reward", "kl", "entropy", "clipped", "truncated", "length", "mismatch", "mismatch_max", "heldout/reward"}
    found = drawn([{"step": step, **dict.fromkeys(names, 0.5)} for step in (1, 2)], {})
    assert set().union(*found.values()) == names and len(found) == 4
    assert "loss" in drawn([{"step": 1, "loss": 0.5, "mismatch": 0.1}], {}), "a policy's loss is not in nats"
    assert "reward 0.5000<" in report._reward({"reward": 0.5}) and report._reward({"text": "a"}) == ""


def test_the_picture_is_in_the_page(folder):
    pytest.importorskip("matplotlib")
    picture = re.search(r'src="data:image/png;base64,([^"]+)"', page(folder))
    assert base64.b64decode(picture[1]).startswith(b"\x89PNG")


def test_without_figures_or_matplotlib_there_is_a_sentence(monkeypatch):
    assert "nothing is logged" in report_curves.curves([], {})
    monkeypatch.setitem(__import__("sys").modules, "matplotlib.figure", None)
    assert "pip install -e '.[report]'" in report_curves.curves([{"step": 1, "loss": 2.0}], {})
