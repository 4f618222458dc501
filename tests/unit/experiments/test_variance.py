"""experiments/variance.py on simulated studies: false positives, coverage, and the cases without variance."""

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from experiments import stats, variance

TRIALS = 400


def table(y: np.ndarray) -> dict[str, dict[int, float]]:
    """[cells, seeds] -> "a", "b", ..."""
    return {chr(97 + i): {s: float(v) for s, v in enumerate(row)} for i, row in enumerate(y)}


def simulated(draw, trials: int = TRIALS) -> tuple[float, float]:
    """(false positives, coverage) between the cells a and b, which are equal. `draw(rng)` -> y [C, S] or items [C, S, N]."""
    rng, ps, covered = np.random.default_rng(0), [], []
    for _ in range(trials):
        y = draw(rng)
        items = None
        if y.ndim == 3:
            items = {c: dict(enumerate(x)) for c, x in zip("abcdef", y, strict=False)}
            y = y.mean(2)
        test = variance.contrast(table(y), "a", "b", items=items)
        ps.append(stats.different(test))
        covered.append(test.interval.low <= 0 <= test.interval.high)
    return float(np.mean(np.array(ps) < 0.05)), float(np.mean(covered))


def seeds(rng, cells: int, n: int, shared: float = 0.0, sds=1.0) -> np.ndarray:
    return shared * rng.normal(size=n) + np.reshape(sds, (-1, 1)) * rng.normal(size=(cells, n))


def with_items(rng, *, shared: float = 0.0, own: float = 4.0) -> np.ndarray:
    """[4, 3, 40]: seeds, items that are hard for all cells, and items that are hard for one."""
    y = seeds(rng, 4, 3, shared, 0.5)[:, :, None]
    return y + 3 * rng.normal(size=40) + own * rng.normal(size=(4, 1, 40)) + rng.normal(size=(4, 3, 40))


@pytest.mark.parametrize(
    "draw",
    [
        lambda rng: seeds(rng, 2, 5),
        lambda rng: seeds(rng, 6, 3),
        lambda rng: seeds(rng, 6, 3, shared=3.0),
        lambda rng: seeds(rng, 6, 3, sds=[3, 3, 1, 1, 1, 1]),
        lambda rng: seeds(rng, 4, 5, shared=2.0, sds=[1, 1, 1e-4, 1e-4]),
        lambda rng: seeds(rng, 4, 5, sds=[1, 1e-9, 1e-9, 1e-9]),
        with_items,
        lambda rng: with_items(rng, shared=3.0),
    ],
    ids=[
        "two_cells",
        "no_seed_effect",
        "seed_effect",
        "noisy_pair",
        "saturated_others",
        "saturated_pair",
        "items",
        "items_seeds",
    ],
)
def test_false_positives_are_5_percent_and_intervals_cover_95(draw):
    """0.9999 of binomial draws of a rate of 5 % are below 9.75 % with 400 trials; too many rejections or far too few fail."""
    wrong, covered = simulated(draw)
    low, high = scipy_stats.binom.interval(0.9999, TRIALS, 0.05) / np.asarray(TRIALS)
    assert low / 2 <= wrong <= high and covered >= 1 - high


def test_ignoring_the_items_finds_what_is_not_there():
    """The same studies, judged by their means alone: the reason that the items' part is in the error."""
    wrong, _ = simulated(lambda rng: with_items(rng).mean(2), 100)
    assert wrong > 0.25


def test_a_seed_effect_is_paired_and_its_absence_is_not():
    rng = np.random.default_rng(0)
    paired = [variance.contrast(table(seeds(rng, 4, 5, shared=4.0)), "a", "b") for _ in range(40)]
    assert sum(t.how.startswith("paired") for t in paired) >= 38 and np.mean([t.error for t in paired]) < 0.8
    unpaired = [variance.contrast(table(seeds(rng, 4, 5)), "a", "b") for _ in range(40)]
    assert sum(t.how.startswith("unpaired") for t in unpaired) >= 33


def test_pairs_by_design_are_students_paired_test_whatever_other_cells_do():
    """a goes on from b of the same seed; c and d do not, so no seed effect over all cells is there to be found."""
    rng = np.random.default_rng(0)
    start = 4 * rng.normal(size=5)
    y = np.stack([start + 1 + 0.1 * rng.normal(size=5), start, *(4 * rng.normal(size=(2, 5)))])
    theirs = scipy_stats.ttest_rel(y[0], y[1])
    ours = variance.contrast(table(y), "a", "b", paired=True)
    assert ours.how == "paired by design" and stats.different(ours) == pytest.approx(theirs.pvalue, rel=1e-9) and ours.df == 4
    assert ours.exact == pytest.approx(2 / 2**5)  # all five differences have one sign
    assert stats.different(ours) < 0.001 < 0.3 < stats.different(variance.contrast(table(y), "a", "b"))
    lost = table(y)
    del lost["a"][0]  # a seed that only one cell has makes no pair
    assert variance.contrast(lost, "a", "b", paired=True).df == 3


def test_the_variance_of_cells_that_vary_alike_is_pooled():
    y = np.array([[0.0, 1, 2], [5, 6, 7], [0, 2, 1], [3, 1, 2]])
    test = variance.contrast(table(y), "a", "b")
    assert test.how == "unpaired, variance of 4 cells" and test.df == 8
    assert test.error == pytest.approx(math.sqrt(2 / 3)) and test.mean == -5
    noisy = np.concatenate([y[:2], 50 * y[2:]])
    alone = variance.contrast(table(noisy), "a", "b")
    assert alone.how == "unpaired" and alone.df == pytest.approx(4)


def test_two_cells_alone_are_welchs_test():
    y = np.array([[1.0, 3, 2, 9, 4], [2, 2.1, 2.2, 2.0, 1.9]])
    theirs = scipy_stats.ttest_ind(*y, equal_var=False)
    ours = variance.contrast(table(y), "a", "b")
    assert stats.different(ours) == pytest.approx(theirs.pvalue) and ours.df == pytest.approx(theirs.df)
    assert ours.exact == pytest.approx(scipy_stats.permutation_test(y, lambda a, b: a.mean() - b.mean()).pvalue, rel=1e-6)


def test_fewer_is_better_turns_the_gain():
    y = table(np.array([[1.0, 1.1, 0.9], [2, 2.2, 1.9]]))
    up, down = (variance.contrast(y, "a", "b", higher=higher) for higher in (True, False))
    assert down.mean == -up.mean > 0 and down.error == up.error


def test_perfect_against_nothing_in_five_seeds_is_a_result():
    """Exact test over seeds: 2 of the 252 divisions of ten runs."""
    test = variance.contrast(table(np.array([[1.0] * 5, [0.0] * 5])), "a", "b")
    assert stats.different(test) == pytest.approx(2 / 252) and test.error == 0


def hits(*shares: float, count: int = 200, seeds: int = 3) -> tuple[dict, dict]:
    """Cells whose first items are hit, and whose others are not: (table, items)."""
    x = {chr(97 + i): (np.arange(count) < share * count).astype(float) for i, share in enumerate(shares)}
    return {c: dict.fromkeys(range(seeds), v.mean()) for c, v in x.items()}, {
        c: dict.fromkeys(range(seeds), v) for c, v in x.items()
    }


def test_hits_bound_the_error_of_a_saturated_share_from_below():
    """Two items are added, each hit by one of the cells, so that 200 of 200 is not a share of 1 for certain."""
    y, items = hits(1.0, 0.0)
    test = variance.contrast(y, "a", "b", items=items)
    assert test.error == pytest.approx(np.std([1.0] * 201 + [-1.0], ddof=1) / math.sqrt(202))
    assert stats.different(test) < 1e-6 and test.df == 4
    y, items = hits(1.0, 1.0)
    same = variance.contrast(y, "a", "b", items=items)
    assert same.error == pytest.approx(math.sqrt(2) / 201.5, rel=1e-3)
    assert stats.tost(same, 0.02) < 0.05 < stats.tost(same, 0.01)
    assert stats.tost(variance.contrast(y, "a", "b"), 0.01) == 0.0


def test_one_miss_in_one_seed_does_not_narrow_an_interval():
    y, items = hits(1.0, 1.0)
    perfect = variance.contrast(y, "a", "b", items=items)
    items["b"] = {s: x.copy() for s, x in items["b"].items()}
    items["b"][1][0] = 0.0
    y["b"] = {s: float(x.mean()) for s, x in items["b"].items()}
    assert variance.contrast(y, "a", "b", items=items).error > perfect.error


def test_a_saturated_cell_lends_no_calm_to_a_noisy_one():
    y = np.array([[1.0, 1, 1], [0.2, 0.5, 0.9], [1, 1, 1], [1, 1, 1]])
    test = variance.contrast(table(y), "a", "b")
    assert test.error == pytest.approx(y[1].std(ddof=1) / math.sqrt(3)) and test.df == pytest.approx(2)


@pytest.mark.parametrize(
    ("values", "n", "df"),
    [
        ({"a": {0: 1.0}, "b": {0: 2.0}}, 1, 0),
        ({"a": {0: 1.0, 1: 1.5}, "b": {0: 2.0}}, 1, 0),
        ({"a": {0: 1.0, 1: 1.5}, "b": {2: 2.0, 3: 2.4, 4: 2.9}}, 2, None),
        ({"a": {0: 1.0, 1: 1.5}, "b": {0: 2.0, 1: 2.4}, "c": {0: 7.0}}, 2, None),
        ({"a": {0: 1.0, 1: 1.0}, "b": {0: 1.0, 1: 1.0}}, 2, None),
    ],
    ids=["one_seed", "one_seed_in_one_cell", "no_seed_in_common", "a_third_cell_with_one", "all_equal"],
)
def test_few_runs_give_a_finite_test_or_none(values, n, df):
    test = variance.contrast(values, "a", "b")
    assert test.n == n and (df is None or test.df == df) and np.isfinite([test.mean, test.error, test.df]).all()
    p = stats.different(test)
    assert p is None if test.df == 0 else 0 <= p <= 1


def test_a_cell_without_runs_gives_no_test():
    assert variance.contrast({"a": {0: 1.0}}, "a", "b") is None and variance.contrast({}, "a", "b") is None
    assert variance.components({}) is None and variance.components({"a": {0: 1.0}}) is None


def test_components_are_those_that_were_put_in():
    y = 3 * np.random.default_rng(0).normal(size=200) + np.random.default_rng(1).normal(size=(5, 200))
    found = variance.components(table(y))
    assert found.seed == pytest.approx(9, rel=0.3) and found.residual == pytest.approx(1, rel=0.1) and found.df == 4 * 199


def test_items_of_another_number_are_left_out():
    y = table(np.array([[0.5, 0.6, 0.7], [0.1, 0.2, 0.4]]))
    rng = np.random.default_rng(0)
    items = {"a": {s: rng.normal(size=9) for s in range(3)}, "b": {s: rng.normal(size=8) for s in range(3)}}
    assert variance.contrast(y, "a", "b", items=items) == variance.contrast(y, "a", "b")
    assert variance.contrast(y, "a", "b", items={"a": items["a"]}) == variance.contrast(y, "a", "b")
