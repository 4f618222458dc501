"""What a run prints."""

import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
from rich.console import Console

from lm.recipes.finetune import FineTuning
from lm.recipes.pretrain import Pretraining
from lm.training import display
from lm.training.display import Display


def test_it_says_what_text_is_in_no_row_and_why(capsys):
    plan = SimpleNamespace(abstract=SimpleNamespace(params={"head": np.zeros(3)}))
    made = SimpleNamespace(plan=plan, frozen=None, flops_per_step=2.0)
    for recipe, why in ((FineTuning, "a text keeps both its ends"), (Pretraining, "documents too short for the objective")):
        Display(10, 0).introduce(made, {"train": 0.25, "holdout": 0.0}, recipe.why_left_out)
        said = capsys.readouterr().err
        assert "25.0% of the train text is in no row: " in said and why in said and "holdout" not in said


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_the_bar_keeps_the_step_and_the_time_that_is_left(width, monkeypatch):
    """In one line of a terminal of any width; the latest figures give way first."""
    made = lambda **settings: Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    monkeypatch.setattr(display, "Console", made)
    now = [0.0]
    shown = Display(100000, 0)
    shown.bar.get_time = lambda: now[0]
    shown.bar.start_task(shown.task)
    for step in (12000, 12345):
        now[0] += 10
        shown.show(step, "loss 3.211  12,345 tokens/s")
    with shown.console.capture() as captured:
        shown.console.print(shown.bar.get_renderable())
    line = captured.get().rstrip()
    assert "\n" not in line and len(line) <= width
    assert "step  12345/100000 " in line and re.search(r"left \d:\d\d:\d\d", line), line
    assert ("loss 3.211  12,345 tokens/s" in line) == (width >= 60) and "loss 3" in line


def test_the_samples_of_the_last_step_are_said_with_their_step(tmp_path, capsys):
    """Not those of an earlier one, which may be fewer or more."""
    rows = [{"step": s, "prompt": f"p{i}", "text": f"t{s}"} for s, count in ((5, 3), (10, 1)) for i in range(count)]
    summary = {"heldout": {}, "baselines": None}
    Display(10, 0).results(summary, SimpleNamespace(rows=lambda name: rows), tmp_path)
    said = capsys.readouterr().err
    assert "samples at step 10:\n\n> p0 -> t10\n" in said and "t5" not in said
    Display(10, 0).results(summary, SimpleNamespace(rows=lambda name: []), "report.html")
    assert "sample" not in capsys.readouterr().err


def test_a_count_is_said_without_decimals(tmp_path, capsys):
    summary = {"heldout": {"accuracy": 0.5, "loss": 2.0, "tokens": 196304, "items": 400}, "baselines": {"xz": 2.0}}
    Display(10, 0).results(summary, SimpleNamespace(rows=lambda name: []), tmp_path)
    said = capsys.readouterr().err
    assert "held-out tokens         196,304\n" in said and "held-out items          400\n" in said
    assert (
        "held-out accuracy       0.5000\n" in said
        and "held-out loss           2.0000\n" in said
        and "2.0000 bits per byte" in said
    )
