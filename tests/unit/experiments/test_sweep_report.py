"""The report of a sweep, its table while it runs, and what a range test suggests. No model is trained."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.sweep import figures, range_test, report, trials
from experiments.sweep.__main__ import listed
from experiments.sweep.board import TrialBoard
from experiments.sweep.trials import Setting, Trial
from lm.config import resolve
from tests.swept import FILE, RATE, done, result, sweep


def test_the_report_of_a_grid(tmp_path):
    of = sweep((0.1, 0.2, 0.3, 0.4), overrides={"data.cache": "a b"})
    done(of, tmp_path, 0, {0: 3.0, 1: 1.25, 2: "held-out bits_per_byte is nan"})
    said = report.write(of, tmp_path).splitlines()
    assert said[0] == "best: trial 1, learning_rate=0.2: held-out bits per byte 1.2500"
    assert said[1] == (
        f"python -m lm.train --config={FILE} '--config.data.cache=a b' --config.optimizer.learning_rate=0.2 --workdir=runs/best"
    )
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ")][1:]
    assert rows == [
        "| **1** | **0.2** | **1.2500** | **8** | **1.5** | **3e+09** | **2.0** | **done** |",
        "| 0 | 0.1 | 3.0000 | 8 | 1.5 | 3e+09 | 2.0 | done |",
        "| 2 | 0.3 |  | 8 | 1.5 | 3e+09 | 2.0 | diverged |",
        "| 3 | 0.4 |  | 0 |  |  | 0.0 | to do |",
    ]
    assert "2 done, 1 diverged, 1 to do" in text and "Trial 2: held-out bits\\_per\\_byte is nan" in text and said[1] in text
    assert (tmp_path / "over_optimizer_learning_rate.png").stat().st_size > 5000
    assert "data:image/png" in (tmp_path / "report.html").read_text(encoding="utf-8") and "was tried" not in text
    done(of, tmp_path, 0, {3: 1.0})
    report.write(of, tmp_path)
    assert "0.4 is the largest that was tried; a larger one may be better" in (tmp_path / "report.md").read_text(
        encoding="utf-8"
    )


def test_the_report_of_a_halving_ranks_by_the_rung_first(tmp_path):
    of = sweep((0.1, 0.2, 0.3, 0.4), rungs=(2, 4))
    done(of, tmp_path, 0, {0: 5.0, 1: 2.0, 2: 2.5, 3: 4.0})
    done(of, tmp_path, 1, {1: 1.9, 2: 1.5})
    done(of, tmp_path, 2, {2: 1.7})
    rows = [(row.number, row.value, row.step, row.state) for row in report.table_of(of, tmp_path)]
    assert rows == [(2, 1.7, 8, "done"), (1, 1.9, 4, "left"), (3, 4.0, 2, "left"), (0, 5.0, 2, "left")]
    report.write(of, tmp_path)
    assert (tmp_path / "rungs.png").exists() and "after 2 and 4 steps the best of every 2" in (
        tmp_path / "report.md"
    ).read_text(encoding="utf-8")


def test_a_report_of_nothing_and_values_that_are_no_numbers(tmp_path):
    of = sweep()
    assert report.write(of, tmp_path) == str(tmp_path / "report.md")
    runs = [resolve.load(FILE, {"optimizer.name": name}) for name in ("adamw", "lion", "muon")]
    keys = {"optimizer.name": False, "train.seed": False}
    settings = [Setting({"optimizer.name": r.optimizer.name, "train.seed": str(k)}, r) for r in runs for k in range(2)]
    named = replace(of, keys=keys, trials=tuple(settings))
    done(named, tmp_path / "named", 0, {k: 1.0 + k for k in range(6)})
    assert "best: trial 0, name=adamw  seed=0" in report.write(named, tmp_path / "named")
    assert (tmp_path / "named/over_optimizer_name.png").exists()


def test_the_board_has_a_row_for_each_trial(tmp_path):
    of = sweep((0.1, 0.2), rungs=(2,))
    board = TrialBoard(trials.jobs_of(of, tmp_path))
    first, second = (Trial(of, tmp_path, k, 0) for k in range(2))
    of_first, of_second = (figures.judged(r, of.metric) for r in (result(1.5), result(None, diverged="nan")))
    board.outcomes |= {str(first): of_first, str(second): of_second}
    table = board.table()
    assert [column.header for column in table.columns] == ["trial", "step 2", "end"]
    assert [list(column.cells) for column in table.columns] == [
        ["learning_rate=0.1", "learning_rate=0.2"],
        ["1.5000", "diverged"],
        ["", ""],
    ]
    assert board.line(first, of_first) == "learning_rate=0.1  bits_per_byte 1.5"
    assert "left at step 2" in board.line(second, figures.left("left at step 2"))
    both = replace(of, keys={"model.encoder.num_layers": False, "model.decoder.num_layers": False})
    assert both.short("model.encoder.num_layers") == "model.encoder.num_layers" and of.short(RATE) == "learning_rate"
    assert listed(of).splitlines()[-2] == "rungs: 2 to step 2, 1 to step 8"


# ------------------------------------------------------------------------------------------------------- range test


def curve(rates, noise=0.0):
    """A loss that falls fastest at 1e-3, is least near 0.1 and then rises."""
    x = np.log10(rates)
    rng = np.random.default_rng(0)
    return 7 - 2 / (1 + np.exp(-4 * (x + 3))) + 5 / (1 + np.exp(-6 * (x - 0.5))) + noise * rng.standard_normal(len(x))


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_a_range_test_finds_the_turns_of_a_curve(noise):
    rates = np.geomspace(1e-5, 10, 200)
    found = range_test.Found(rates, curve(rates, noise))
    fine = np.geomspace(1e-5, 10, 20_001)
    exact = curve(fine)
    least, steepest = fine[np.argmin(exact)], fine[np.argmin(np.gradient(exact, np.log(fine)))]
    assert abs(np.log10(found.rates[found.steepest] / steepest)) < (0.05 if not noise else 0.3)
    assert abs(np.log10(found.rates[found.least] / least)) < (0.1 if not noise else 1.0)
    assert found.tenth == pytest.approx(found.rates[found.least] / 10) and found.note == ""
    assert found.suggested == found.rates[found.steepest]


def test_a_range_test_that_shows_nothing_says_so():
    rates = np.geomspace(1e-5, 10, 100)
    assert "begin at a lower rate" in range_test.Found(rates, np.linspace(1, 2, 100)).note
    assert "end at a higher rate" in range_test.Found(rates, np.linspace(2, 1, 100)).note


def test_the_rates_of_a_range_test_keep_their_ratio():
    run = resolve.load(FILE, {"optimizer.name": "muon", RATE: "0.02", "optimizer.adam_learning_rate": "0.005"})
    made = range_test.tested(run, 1e-4, 20)
    assert made.optimizer.learning_rate == 1e-4 and made.optimizer.adam_learning_rate == pytest.approx(2.5e-5)
    assert made.optimizer.schedule.phases(made.train.steps) == (0, 4) and made.train.steps == 21
    assert range_test.ends("1e-6, 1") == (1e-6, 1.0)
