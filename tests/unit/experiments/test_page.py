"""The table of all relations, made from stored results."""

import shutil
from dataclasses import replace

from experiments import filled, page
from experiments.judge import judge
from experiments.small import model, run
from experiments.study import Cell, Metric, Relation, Study
from lm import config

ACCURACY = Metric("accuracy", "accuracy")
CAUSAL = run(model("decoder"), config.Causal())


def study(*relations, **changes):
    cells = {name: Cell(name, CAUSAL) for name in ("good", "bad", "same")}
    return Study("one", "One", cells, 3, (ACCURACY,), relations, **changes)


def results(core_seconds=True):
    means = {"good": 0.9, "bad": 0.5, "same": 0.9}
    ledger = {"model_flops": 1e9} | ({"core_seconds": 20.0} if core_seconds else {})
    noise = (-0.001, 0.0, 0.001)
    return {
        cell: {seed: {"metrics": {"accuracy": mean + noise[seed]}, "flags": {}, "ledger": ledger} for seed in range(3)}
        for cell, mean in means.items()
    }


def stored(*relations, **changes):
    made, found = study(*relations, **changes), results()
    return page.Stored(made, found, judge(made, found))


def test_a_row_has_paper_gain_verdict_and_cost():
    relation = Relation("good > bad", "accuracy", "good", "bad", source="A, Table 1", published=(90.0, 80.0))
    table = page.section([stored(relation)])
    assert "**1 of 1 relations are decided**: 1 reproduced, 0 reversed; 0 unresolved, 0 not judged." in table
    (row,) = (line for line in table.splitlines() if "good > bad" in line)
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells[:4] == ["[one](one)", "good > bad", "A, Table 1", "90 vs 80"]
    assert cells[4].startswith("+0.4") and cells[5:7] == ["**reproduced**", "120"]


def test_a_cost_without_seconds_is_in_flops():
    made = study(Relation("good > bad", "accuracy", "good", "bad"))
    found = results(core_seconds=False)
    assert "| 6e+09 FLOPs |" in page.section([page.Stored(made, found, judge(made, found))])


def test_planted_relations_are_counted_apart():
    null = Relation("same", "accuracy", "good", "same", kind="equivalent", margin=0.1, planted="null")
    effect = Relation("good", "accuracy", "bad", "good", planted="effect")  # the wrong way round
    table = page.section([stored(Relation("good > bad", "accuracy", "good", "bad"), null, effect)])
    assert "**1 of 1 relations are decided**" in table
    assert "planted nulls: 1 of 1 not found as they should be, 0 decided wrongly" in table
    assert "planted effects: 0 of 1 found as they should be, 1 decided wrongly" in table


def test_studies_without_verdicts_are_listed():
    waiting = page.Stored(replace(study(), name="two"), {}, [])
    gone = stored(Relation("good > bad", "accuracy", "good", "bad"), withdrawn="it was wrong.")
    table = page.section([waiting, gone])
    assert "**Not run.** [two](two)." in table and "- [one](one): it was wrong." in table and "good > bad" not in table


def test_the_page_is_what_the_command_writes(tmp_path):
    copy = shutil.copy(page.README, tmp_path / "README.md")
    filled.fill(copy, "relations", page.section(page.stored()))
    assert copy.read_text() == page.README.read_text(), "run python -m experiments.page"
