"""experiments/judge.py: what is judged, and what is not and why; and the power of a study before it runs."""

import dataclasses
import math

import numpy as np
import pytest

from experiments import tables
from experiments.judge import gates, judge
from experiments.power import power_rows
from experiments.study import Cell, Derived, Gate, Metric, Relation, Study, derived_result
from lm import config
from lm.errors import UserError

RUN = config.Run(config.Model(8, 8))
ACCURACY = Metric("accuracy", "accuracy", floor=True)
CELLS = {
    "none": Cell("no pretraining", RUN, share=0.0),
    "masked": Cell("masked", RUN, floor="none"),
    "causal": Cell("causal", RUN, floor="none"),
}
ABOVE = Relation("masked above causal", "accuracy", "masked", "causal")
EQUAL = Relation("masked = causal", "accuracy", "masked", "causal", kind="equivalent", margin=0.05)
NOISE = (-0.01, 0.0, 0.01, 0.004, -0.006)


def a_study(*relations: Relation, **changes) -> Study:
    return Study("made", "Made", CELLS, 5, (ACCURACY,), relations or (ABOVE,), **changes)


def the_results(seeds: int = 5, **means: float) -> dict:
    """The same noise for all cells, each in an order of its own."""
    run = lambda value, **more: {"metrics": {"accuracy": value} | more, "flags": {}, "ledger": {"model_flops": 1.0}}
    return {
        cell: {s: run(mean + NOISE[(i + s * (i + 1)) % 5], kept=mean) for s in range(seeds)}
        for i, (cell, mean) in enumerate(means.items())
    }


def test_cells_below_the_same_model_without_pretraining_are_not_judged():
    (below,) = judge(a_study(), the_results(none=0.75, masked=0.61, causal=0.36))
    assert below.verdict == "not judged" and below.p is None
    assert below.words == "not judged (not above the floor: masked 0.6096, no pretraining 0.7496)"
    (judged,) = judge(a_study(), the_results(none=0.3, masked=0.61, causal=0.36))
    assert judged.words == "reproduced"
    (table,) = tables.floors_table(a_study(), the_results(none=0.5, masked=0.61, causal=0.36))
    assert [(row[1].text, row[-1].text) for row in table.rows] == [("masked", "yes"), ("causal", "not shown")]


def test_a_floor_that_has_not_run_gives_no_verdict():
    (judged,) = judge(a_study(), the_results(masked=0.61, causal=0.36))
    assert judged.words == "not judged (no two runs of the floor, no pretraining)"


def test_a_relation_to_the_floor_itself_is_judged():
    harm = Relation("pretraining helps", "accuracy", "masked", "none")
    (judged,) = judge(a_study(harm), the_results(none=0.75, masked=0.61))
    assert judged.verdict == "reversed"


def test_a_saturated_cell_is_above_a_constant_floor_by_its_items():
    results = the_results(3, none=0.0, masked=0.0, causal=0.0)
    for cell, hit in (("none", 0), ("masked", 1), ("causal", 1)):
        for result in results[cell].values():
            result["metrics"]["accuracy"] = float(hit)
            result["items"] = {"accuracy": str(hit) * 300}
    (judged,) = judge(a_study(EQUAL), results)
    assert judged.words == "reproduced" and judged.power > 0.9


GATE = Gate("the discriminator finds replaced tokens", "kept", at_least=0.2, cells=("masked",))


def test_a_relation_is_judged_only_if_its_cells_pass_their_gates():
    study, results = a_study(gates=(GATE,)), the_results(none=0.1, masked=0.61, causal=0.36)
    assert judge(study, results)[0].verdict == "reproduced"
    results["masked"][3]["metrics"]["kept"] = 0.0
    (judged,) = judge(study, results)
    assert judged.words.startswith(
        "not judged (masked fails the check that the discriminator finds replaced tokens: 0.61, 0.61"
    )
    assert ", 0, 0.61)" in judged.words
    (table,) = tables.gates_table(study, results)
    assert [[t.text for t in row[1:]] for row in table.rows] == [["masked", "kept ≥ 0.2", "0.61, 0.61, 0.61, 0, 0.61", "fails"]]


def test_a_cell_that_goes_on_from_another_is_judged_only_if_that_one_passes():
    study, results = a_study(gates=(GATE,)), the_results(none=0.1, masked=0.61, causal=0.36)
    cells = dict(study.cells) | {
        "causal": dataclasses.replace(study.cells["causal"], start="first"),
        "first": study.cells["none"],
    }
    study = dataclasses.replace(study, cells=cells, gates=(dataclasses.replace(GATE, cells=("first",)),))
    results["first"] = results["masked"]
    assert judge(study, results)[0].verdict == "reproduced"
    results["first"] = {seed: {**r, "metrics": {"kept": 0.0}} for seed, r in results["masked"].items()}
    assert "fails the check" in judge(study, results)[0].words


def test_pairs_by_design_need_a_common_start():
    cells = CELLS | {
        "more": Cell("masked, longer", RUN, start="masked"),
        "twin": Cell("masked, otherwise", RUN, start="masked"),
    }
    made = lambda *relation: Study("made", "Made", cells, 5, (ACCURACY,), (Relation("a", "accuracy", *relation, paired=True),))
    results = the_results(none=0.3, masked=0.61, causal=0.36, more=0.62, twin=0.5)
    for cells_of_it in (("more", "masked"), ("more", "twin")):
        (judged,) = judge(made(*cells_of_it), results)
        assert judged.test.how == "paired by design"
        assert power_rows(made(*cells_of_it), results)[0].source.endswith("paired by design")
    with pytest.raises(UserError, match="'a' is paired, but 'more' and 'causal' go on from no common cell"):
        judge(made("more", "causal"), results)


def test_a_derived_result_is_judged_only_if_the_cells_that_it_is_made_from_pass():
    study, results = a_study(gates=(GATE,)), the_results(none=0.1, masked=0.61, causal=0.36)
    relation = dataclasses.replace(ABOVE, better="best")
    study = dataclasses.replace(study, relations=(relation,), derived={"best": Derived("the best", ("masked",))})
    results["best"] = {seed: derived_result({"accuracy": r["metrics"]["accuracy"]}) for seed, r in results["masked"].items()}
    assert judge(study, results)[0].verdict == "reproduced"
    results["masked"][0]["metrics"]["kept"] = 0.0
    assert "masked fails the check" in judge(study, results)[0].words
    with pytest.raises(UserError, match="'best' is derived from 'maskd'; did you mean 'masked'?"):
        dataclasses.replace(study, derived={"best": Derived("the best", ("maskd",))})


@pytest.mark.parametrize(("value", "passes"), [(0.5, True), (0.2, True), (0.1, False), (0.9, False), (math.nan, False)])
def test_a_gate_has_two_sides_and_nan_fails_it(value, passes):
    gate = Gate("in range", "kept", at_least=0.2, at_most=0.8)
    results = {"masked": {0: {"metrics": {"kept": 0.5}}, 1: {"metrics": {"kept": value}}}}
    (found,) = gates(a_study(gates=(gate,)), results)
    assert found.passed == passes


def test_a_named_cell_without_the_gates_metric_fails_and_others_are_not_asked():
    results = {"masked": {0: {"metrics": {}}}, "causal": {0: {"metrics": {}}}}
    assert [g.passed for g in gates(a_study(gates=(GATE,)), results)] == [False]
    assert gates(a_study(gates=(dataclasses.replace(GATE, cells=()),)), results) == []


def test_planted_relations_say_whether_they_came_out_as_planted():
    null = Relation("same, renamed", "accuracy", "masked", "causal", planted="null", primary=False)
    effect = dataclasses.replace(ABOVE, name="effect", planted="effect", primary=False)
    both, apart = the_results(none=0.1, masked=0.5, causal=0.5), the_results(none=0.1, masked=0.8, causal=0.5)
    found = judge(a_study(null, effect), both)
    assert [j.words for j in found] == ["unresolved, planted null", "unresolved, planted effect"]
    assert [j.as_planted for j in found] == [True, None]
    found = judge(a_study(null, effect), apart)
    assert [j.as_planted for j in found] == [False, True] and found[0].p_holm == pytest.approx(2 * found[0].p)


def test_without_a_better_direction_more_is_a_gain_and_the_table_has_no_arrow():
    metric = Metric("accuracy", "exponent", higher=None)
    study = dataclasses.replace(a_study(), metrics=(metric,))
    results = the_results(none=0.1, masked=0.61, causal=0.36)
    assert judge(study, results)[0].test.mean > 0
    assert tables.results_table(study, results).header[-1].text == "exponent"


def test_fine_tunings_of_one_model_are_one_value_and_their_spread_is_shown():
    results = the_results(none=0.1, masked=0.61, causal=0.36)
    for result in results["masked"].values():
        value = result["metrics"]["accuracy"]
        result["nested"] = {"accuracy": [value - 0.1, value, value + 0.1]}
    (judged,) = judge(a_study(), results)
    assert judged.test.n == 5
    (table,) = tables.variances_table(a_study(), results)
    assert table.header[-1].text == "fine-tuning" and table.rows[0][-1].text == "0.1"


def test_a_metric_that_a_cell_lacks_is_no_difference():
    results = the_results(none=0.1, masked=0.61, causal=0.36)
    for result in results["causal"].values():
        result["metrics"]["accuracy"] = math.nan
    (judged,) = judge(a_study(), results)
    assert judged.words == "unresolved (a cell has no run yet)"
    assert tables.checks_table([judged]).rows[0][1].text == "–"


def test_power_before_a_run_is_that_of_earlier_runs_with_the_planned_seeds():
    study = dataclasses.replace(a_study(ABOVE, EQUAL), seeds=5)
    pilot = the_results(3, none=0.1, masked=0.61, causal=0.36)
    greater, equal = power_rows(study, pilot)
    assert 0 < greater.mde < 0.06 and greater.power_at_margin is None and 0 < equal.power_at_margin <= 1
    more = power_rows(dataclasses.replace(study, seeds=10), pilot)[0]
    assert more.mde < greater.mde and more.df > greater.df
    others = power_rows(study, {"none": pilot["none"]})[0]
    assert others.source == "earlier runs of other cells: 3 seeds, variance of 1 cell" and others.mde > 0
    assert [r.mde for r in power_rows(study, {})] == [None, None]
    assert [r.sd for r in power_rows(dataclasses.replace(study, seeds=1), pilot)] == [None, None]


def test_power_of_equal_runs_is_no_division_by_zero():
    flat = the_results(3, none=0.1, masked=0.5, causal=0.5)
    for cell in flat.values():
        for result in cell.values():
            result["metrics"]["accuracy"] = 0.5
    (row,) = power_rows(a_study(EQUAL), flat)
    assert row.mde == 0.0 and row.sd == 0.0
    assert np.isfinite(row.df)


def test_flags_of_either_cell_are_said_beside_the_relation():
    results = the_results(none=0.1, masked=0.61, causal=0.36)
    results["causal"][2]["flags"] = {"accuracy": "far from training"}
    (judged,) = judge(a_study(), results)
    assert judged.verdict == "reproduced" and judged.flags == ("far from training",)
    table = tables.relations_table([judged])
    assert table.notes == ["far from training"] and table.rows[0][1].marks == (1,)


def test_a_floor_that_trains_nothing_does_not_count_in_the_ledgers_means():
    results = the_results(none=0.1, masked=0.61, causal=0.36)
    for result in results["none"].values():
        result["ledger"] = {"model_flops": 0.0}
    (table,) = tables.ledger(a_study(match="flops", budget=1.0), results)
    assert [row[1].text for row in table.rows] == ["0", "1", "1", "0.00 %"]


def test_a_saturated_cell_is_above_a_constant_chance_by_its_items():
    metric = Metric("accuracy", "accuracy", chance="majority")
    study = dataclasses.replace(a_study(EQUAL), metrics=(metric,))
    run = {"metrics": {"accuracy": 1.0, "majority": 0.5}, "items": {"accuracy": "1" * 300}, "flags": {}}
    results = {cell: dict.fromkeys(range(3), run) for cell in ("masked", "causal")}
    assert judge(study, results)[0].verdict == "reproduced"
    results = {cell: {s: {"metrics": run["metrics"], "flags": {}} for s in range(3)} for cell in results}
    assert judge(study, results)[0].why == "neither shown to be above chance"  # three seeds cannot show it without the items


def test_an_equivalence_that_its_items_cannot_show_asks_for_items_not_seeds():
    run = {"metrics": {"accuracy": 1.0}, "items": {"accuracy": "1" * 20}, "flags": {}}
    study = dataclasses.replace(a_study(EQUAL), metrics=(Metric("accuracy", "accuracy"),))
    judged = judge(study, {cell: dict.fromkeys(range(3), run) for cell in ("masked", "causal")})
    assert judged[0].verdict == "unresolved" and tables.relations_table(judged).rows[0][7].text == "more items"
