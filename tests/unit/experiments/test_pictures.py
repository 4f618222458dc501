"""experiments/pictures.py: what is written on the axes, by inspecting the figures instead of saving them."""

import dataclasses

import pytest

from experiments import pictures
from experiments.judge import judge
from experiments.study import Cell, Gate, Metric, Relation, Study
from lm import config

RUN = config.Run(config.Model(8, 8))
SHARE = Metric("accuracy", "accuracy", lines={"chance": 0.25})
LOSS = Metric("heldout/loss", "held-out loss", higher=False, unit="nats a token", lines={"entropy": 1.386})
EXPONENT = Metric("exponent", "exponent", higher=None)


def a_study(*metrics: Metric, relations: tuple[Relation, ...] = ()) -> Study:
    return Study("made", "Made", {name: Cell(f"cell {name}", RUN) for name in "ab"}, 2, metrics, relations)


def the_results(metric: str, **flags: str) -> dict:
    curve = [{"step": s, "flops": 2e11 * s, "loss": 3.0 - 0.1 * s} for s in (1, 2, 5, 9, 15)]
    run = lambda cell, v: {"metrics": {metric: v}, "flags": {metric: flags[cell]} if cell in flags else {}, "curve": curve}
    return {cell: {0: run(cell, at), 1: run(cell, at + 0.1)} for cell, at in (("a", 0.5), ("b", 0.8))}


@pytest.fixture
def figure(monkeypatch):
    """Calls a picture's function and returns its figure."""
    monkeypatch.setattr(pictures, "save", lambda figure, path: figure)
    drawn = []

    def draw(function, *args):
        drawn.append(function(*args, None))
        return drawn[-1]

    yield draw
    for each in drawn:
        pictures.pyplot().close(each)


def test_a_direction_is_only_named_where_one_is_better():
    assert pictures.measured(SHARE) == "accuracy (more is better)"
    assert pictures.measured(LOSS) == "held-out loss, nats a token (less is better)"
    assert pictures.measured(EXPONENT) == "exponent"
    assert pictures.measured(Metric("m", "loss, nats a token", unit="nats a token")) == "loss, nats a token (more is better)"


def test_chance_is_drawn_and_bounds_are_marked(figure):
    drawn = figure(pictures.dots, a_study(SHARE), the_results("accuracy", b="an upper bound"), SHARE)
    (axis,) = drawn.axes
    assert "chance 0.25" in [t.get_text() for t in axis.texts]
    assert [t.get_text() for t in axis.get_yticklabels()] == ["cell a", "cell b *"]
    assert "* an upper bound" in axis.get_xlabel()
    means = [line.get_markerfacecolor() for line in axis.lines if line.get_marker() == "D"]
    assert means == [pictures.COLOURS[0], "white"]


def test_what_is_had_for_nothing_is_a_line(figure):
    metric, results = Metric("accuracy", "accuracy", chance="majority"), the_results("accuracy")
    assert not figure(pictures.dots, a_study(metric), results, metric).axes[0].texts  # it was not measured
    for result in (r for seeds in results.values() for r in seeds.values()):
        result["metrics"]["majority"] = 0.231
    (axis,) = figure(pictures.dots, a_study(metric), results, metric).axes
    assert [t.get_text() for t in axis.texts] == ["commonest class 0.231"]


def test_the_log_axis_of_curves_labels_few_ticks_and_shows_the_entropy(figure):
    drawn = figure(pictures.curves, a_study(LOSS), the_results("heldout/loss"))
    (axis,) = drawn.axes
    drawn.canvas.draw()
    low, high = axis.get_xlim()
    shown = [t.get_text() for t in axis.get_xticklabels() if low <= t.get_position()[0] <= high]
    assert shown == ["2e11", "5e11", "1e12", "2e12"]
    assert not any(t.get_text() for t in axis.get_xticklabels(minor=True))
    assert "entropy 1.386" in [t.get_text() for t in axis.texts] and "nats a token" in axis.get_ylabel()


def test_published_figures_are_said_in_their_unit_beside_ours(figure):
    relation = Relation("b above a", "accuracy", "b", "a", published=(83.28, 79.56))
    study = a_study(SHARE, relations=(relation,))
    drawn = figure(pictures.forest, judge(study, the_results("accuracy")))
    texts = [t.get_text() for t in drawn.axes[0].texts]
    assert "published 83.28 against 79.56, in the paper's unit" in texts
    assert drawn.axes[0].get_xlabel().startswith("gain here: accuracy\n")


def test_a_relation_that_is_not_judged_says_why_beside_it(figure):
    relation = Relation("b within a", "accuracy", "b", "a", kind="equivalent", margin=0.02)
    gate = Gate("something was learned", "accuracy", at_least=0.7)
    study = dataclasses.replace(a_study(SHARE, relations=(relation,)), gates=(gate,))
    texts = [t.get_text() for t in figure(pictures.forest, judge(study, the_results("accuracy"))).axes[0].texts]
    assert texts[0] == "not judged"
    assert " ".join(texts[1].split()).startswith("cell a fails the check that something was learned: 0.5, 0.6 claimed within")


def test_names_of_lines_that_are_close_do_not_overprint(figure):
    near = dataclasses.replace(LOSS, lines={"entropy": 2.0, "entropy with noise": 2.001})
    axis = figure(pictures.curves, a_study(near), the_results("heldout/loss")).axes[0]
    low, high = (t.get_position()[1] for t in axis.texts)
    assert high - low > 0.03 * (axis.get_ylim()[1] - axis.get_ylim()[0])
