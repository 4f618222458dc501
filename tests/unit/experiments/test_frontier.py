"""The studies of the frontier: errors in written sentences, puzzles with one solution, derived results."""

import itertools

import numpy as np
import pytest

from experiments.crossing import study as crossing
from experiments.diffusion import study as diffusion
from experiments.languages import grammar, paths, reversal, sudoku
from experiments.planning import study as planning
from experiments.sudoku import study as filling
from experiments.vectors import study as vectors


def test_a_sentence_is_right_up_to_its_first_error():
    sentence, end = grammar.heldout()[0], diffusion.END
    n = len(sentence)
    assert diffusion.unbroken([*sentence, end]) == 1.0
    assert diffusion.unbroken([*sentence, sentence[0]]) == n / (n + 1)  # a word where it should end
    assert diffusion.unbroken([*sentence[:5], end, *sentence[5:], end]) == 5 / (n + 2)  # an end where words should come
    assert diffusion.unbroken([*sentence, end, sentence[0]]) == (n + 1) / (n + 2)  # and words behind the end
    assert diffusion.unbroken([diffusion.UNKNOWN, *sentence[1:], end]) == 0.0
    assert diffusion.unbroken(sentence) == n / (n + 1)  # it does not end


def test_each_way_of_writing_has_its_own_metrics():
    metrics = {"heldout/loss": 2.0, "heldout/bits_per_byte_bound": 1.0} | {
        f"{way}/{m}": 0.5 for way in diffusion.WAYS for m in ("unbroken", "variety")
    }
    made = diffusion.ways({"masked": {0: {"metrics": metrics, "flags": {}}}, "causal": {0: {"metrics": {}, "flags": {}}}})
    assert set(made) == {"masked", "causal", *diffusion.WAYS}
    assert made["steps_1"][0]["metrics"] == {"unbroken": 0.5, "variety": 0.5}
    assert made["masked"][0]["flags"] == {"heldout/loss": "an upper bound"} and not made["causal"][0]["flags"]


def test_puzzles_are_of_held_out_grids_and_have_one_solution():
    train, held = sudoku.grids()
    assert not set(map(bytes, train)) & set(map(bytes, held))
    for grid in (*train[:20], *held[:20]):
        square = grid.reshape(6, 6)
        boxes = square.reshape(3, 2, 2, 3).swapaxes(1, 2).reshape(6, 6)
        assert all((np.sort(part, axis=1) == np.arange(1, 7)).all() for part in (square, square.T, boxes))
    puzzles = sudoku.puzzles()
    assert ((puzzles > 0).sum(axis=1) == sudoku.GIVEN).all()
    for puzzle, grid in zip(puzzles[:10], held[:10], strict=True):
        assert sudoku.solutions(puzzle.tolist(), 2) == [grid.tolist()]


def test_each_order_has_its_puzzles():
    of = lambda value: {f"{order}/{m}": value for order in filling.ORDERS for m in (filling.SOLVED, filling.RIGHT)}
    made = filling.orders({"model": {0: {"metrics": of(0.5), "items": of("01")}}})
    assert made["random"][0]["metrics"] == {filling.SOLVED: 0.5, filling.RIGHT: 0.5}
    assert made["random"][0]["items"] == {filling.SOLVED: "01", filling.RIGHT: "01"}


def test_the_crossing_takes_losses_on_the_way():
    curve = [{"step": step, "loss": loss} for step, loss in ((50, 3.0), (100, 2.5), (150, 2.0), (200, 2.2))]
    run = lambda: {0: {"metrics": {}, "flags": {}, "curve": list(curve)}}
    made = crossing.on_the_way({"causal": run(), "diffusion": run(), "lost": {0: {"metrics": {}, "flags": {}, "curve": []}}})
    assert made["causal"][0]["metrics"] == {crossing.BEST: 2.0, crossing.AFTER_FEW: 2.5}
    assert not made["causal"][0]["flags"] and len(made["diffusion"][0]["flags"]) == 3
    assert made["lost"][0]["metrics"] == {}  # a diverged run


def test_joined_names_are_the_same_people_in_single_words():
    apart, joined = reversal.people(20, 0), reversal.people(20, 0, joined=True)
    assert [(name.replace(" ", ""), text.replace(" ", "")) for name, text in apart] == joined


def test_a_path_leads_from_the_centre_to_the_goal_along_edges_that_were_told():
    firsts = []
    for question, path in paths.stars(50, 3, 3, seed=0):
        told, _, asked = question.partition(" / ")
        edges = [tuple(edge.split()) for edge in told.split(" | ")]
        centre, goal, end = asked.split()
        nodes = [centre, *path.split()]
        assert len(set(edges)) == 9 and len({node for edge in edges for node in edge}) == 10
        assert end == "=" and nodes[-1] == goal and all(edge in edges for edge in itertools.pairwise(nodes))
        firsts.append([edges.index(edge) for edge in edges if edge[0] == centre].index(edges.index((centre, nodes[1]))))
    assert set(firsts) == {0, 1, 2}  # nothing but the edges tells the arm
    with pytest.raises(ValueError, match="4 arms of 3 edges have more than 10 nodes"):
        paths.language(4, 3)


def test_paths_from_left_to_right_have_a_result_of_their_own():
    of = lambda surest, left: {planning.EXACT: surest, planning.LEFT: left}
    made = planning.by_order({"diffusion": {0: {"metrics": of(1.0, 0.5), "items": of("11", "10"), "flags": {}}}})
    assert made[planning.LEFT][0]["metrics"] == {planning.EXACT: 0.5} and made[planning.LEFT][0]["items"] == {
        planning.EXACT: "10"
    }


def test_halves_are_matched_by_direction_from_the_mean():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 8))
    assert vectors.matched(x + 5, 3 * x - 7).all()
    assert vectors.matched(x, np.roll(x, 1, axis=0)).sum() == 0


def test_ridge_regression_is_chosen_by_leaving_each_text_out():
    """Against fits that really leave one out."""
    rng = np.random.default_rng(0)
    labels = np.array(["a", "b", "c"])[rng.integers(3, size=30)]
    x = rng.normal(size=(30, 5)) + 0.8 * np.eye(5)[np.unique(labels, return_inverse=True)[1]]
    y = (labels[:, None] == np.array(["a", "b", "c"])).astype(float)

    def fitted(keep, asked, penalty):
        a, b = x[keep] - x[keep].mean(0), y[keep] - y[keep].mean(0)
        weights = np.linalg.solve(a.T @ a + penalty * np.eye(5), a.T @ b)
        return (asked - x[keep].mean(0)) @ weights + y[keep].mean(0)

    for penalty in (0.1, 10.0):
        each = [fitted(np.arange(30) != i, x[i], penalty) for i in range(30)]
        np.testing.assert_allclose(vectors.Ridge(x, y).left_out(penalty), each, rtol=1e-9)
