"""experiments/report.py on synthetic results with known effects: ten cells, four metrics, three seeds, eight relations."""

import dataclasses
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments import pages, report, tables
from experiments.judge import judge
from experiments.study import Cell, Metric, Relation, Study
from lm import config
from lm.errors import UserError

RUN = config.Run(config.Model(8, 8))
RAN = sorted(path.parent for path in Path(report.__file__).parent.glob("*/study.json"))
METRICS = (
    Metric("sentiment/accuracy", "sentiment accuracy"),
    Metric("suffix/bits_per_byte", "suffix, bits per byte", higher=False, flag="not normalised in masked models"),
    Metric("spans/f1", "F1 of spans"),
    Metric("text/score", "text-to-text score"),
)
NAMES = {
    "encdec_denoising": "encoder-decoder, denoising",
    "encdec_lm": "encoder-decoder, language model",
    "shared_denoising": "encoder-decoder, shared parameters, denoising",
    "shared_lm": "encoder-decoder, shared parameters, language model",
    "half_denoising": "encoder-decoder, 6 + 6 layers, denoising",
    "half_lm": "encoder-decoder, 6 + 6 layers, language model",
    "causal": "causal decoder",
    "prefix": "prefix decoder",
    "encoder": "encoder, 15 % masked & <mask>_words",
    "untied": "encoder, 40 % masked",
}
CELLS = {
    name: Cell(label, RUN, {"architecture": label.split(",")[0], "objective": label.split(", ")[-1]})
    for name, label in NAMES.items()
}
ACCURACY = dict(zip(NAMES, (0.90, 0.86, 0.9001, 0.85, 0.88, 0.84, 0.80, 0.87, 0.70, 0.70), strict=True))
BITS = dict(zip(NAMES, (2.1, 1.9, 2.2, 1.95, 2.3, 2.0, 1.70, 1.80, 2.9, 2.4), strict=True))
RELATIONS = (
    Relation(
        "denoising above language modelling",
        METRICS[0].name,
        "encdec_denoising",
        "encdec_lm",
        source="T5, table 2",
        published=(83.28, 79.56),
    ),
    Relation("prefix above causal", METRICS[0].name, "prefix", "causal", source="T5, table 2", published=(81.82, 74.70)),
    Relation(
        "shared parameters make no difference",
        METRICS[0].name,
        "shared_denoising",
        "encdec_denoising",
        kind="equivalent",
        margin=0.01,
        source="T5, table 2",
        published=(82.81, 83.28),
    ),
    Relation(
        "the encoder above the causal decoder, planted wrong way about", METRICS[0].name, "encoder", "causal", source="nobody"
    ),
    Relation(
        "causal above prefix in bits", METRICS[1].name, "causal", "prefix", source="Wang et al. 2022", published=(1.1, 1.2)
    ),
    Relation("halves equal, planted far apart", METRICS[1].name, "half_denoising", "half_lm", kind="equivalent", margin=0.05),
    Relation("a planted null", METRICS[2].name, "encdec_lm", "half_lm"),
    Relation("an afterthought", METRICS[2].name, "prefix", "causal", primary=False),
)
PLANTED = ["reproduced", "reproduced", "reproduced", "reversed", "reproduced", "reversed", "unresolved", "unresolved"]


def a_study(**changes) -> Study:
    values = {"name": "planted", "title": "A planted study", "cells": CELLS, "seeds": 3, "metrics": METRICS}
    return Study(**(values | {"relations": RELATIONS, "match": "flops", "budget": 1e12} | changes))


def a_result(cell: str, seed: int) -> dict:
    """Noise: a part that all cells of a seed share (0.01), and a small part per run (0.0003)."""
    rng = np.random.default_rng([seed, list(NAMES).index(cell)])
    shared = 0.01 * np.random.default_rng(seed).normal()
    metrics = {
        METRICS[0].name: ACCURACY[cell] + shared + 0.0003 * rng.normal(),
        METRICS[1].name: BITS[cell] + shared + 0.001 * rng.normal(),
        METRICS[2].name: 0.5 + 0.05 * rng.normal(),
    }
    if not cell.startswith(("encoder", "untied")):  # encoders do not generate text
        metrics[METRICS[3].name] = 30 + 2 * rng.normal()
    steps = range(0, 501, 20)
    loss = lambda step: float(2 + 7 * np.exp(-step / 80) + 0.3 * BITS[cell] + 0.05 * rng.normal())
    return {
        "cell": cell,
        "seed": seed,
        "metrics": metrics,
        "flags": {METRICS[2].name: "a span of more than 10 words is left out"} if cell == "causal" else {},
        "ledger": {
            "model_flops": 1e12 * (1 + 0.002 * rng.uniform()),
            "tokens_seen": 2**20,
            "tokens_with_loss": 2**18,
            "parameters": 1_234_567,
            "parameters_without_embeddings": 1_000_000,
            "raw_bytes": 4 * 2**20,
            "device_seconds": 61.5,
        },
        "curve": [{"step": s, "flops": s * 2e9, "tokens_seen": s * 2048, "loss": loss(s)} for s in steps],
    }


def the_results(seeds=range(3), cells=tuple(NAMES)) -> dict:
    return {cell: {seed: a_result(cell, seed) for seed in seeds} for cell in cells}


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return report.write(a_study(), the_results(), tmp_path_factory.mktemp("report"), command="python -m experiments.report x")


@pytest.fixture
def no_pictures(monkeypatch):
    """Skips the pictures, which take seconds."""
    for name in ("dots", "forest", "curves"):
        monkeypatch.setattr(report.pictures, name, lambda *args: None)


def test_verdicts_are_as_planted(written):
    assert [j.verdict for j in judge(a_study(), the_results())] == PLANTED
    text = written["md"].read_text()
    assert "30 of 30 runs are done" in text and "Of 7 primary relations: 4 reproduced, 2 reversed, 1 unresolved." in text
    table = tables.relations_table(judge(a_study(), the_results()))
    assert [row[0].text.split(" (within")[0] for row in table.rows] == [r.name for r in RELATIONS]
    assert [row[-1].text for row in table.rows] == [*PLANTED[:-1], "unresolved, exploratory"]
    assert re.search(r"^\| prefix above causal<sup>1</sup> \|.*\| \*\*reproduced\*\* \|$", text, re.M)
    assert "83.28 vs 79.56 |" in text and "1.1 vs 1.2 |" in text


def test_no_verdict_between_cells_at_chance(no_pictures):
    """Two cells that predict the most common class are equal, but not equivalent. If one is above chance, there is a
    verdict."""
    equal = Relation("equal", "accuracy", "a", "b", kind="equivalent", margin=0.02)
    metrics = (Metric("accuracy", "accuracy", chance="majority"), Metric("majority", "majority"))
    cells = {name: CELLS["causal"] for name in "ab"}
    study = a_study(cells=cells, metrics=metrics, relations=(equal,), match=None)

    def results(a: float, b: float) -> dict:
        rng = np.random.default_rng(0)
        value = lambda mean: {"accuracy": mean + 0.001 * rng.normal(), "majority": 0.2}
        return {n: {s: {"metrics": value(m), "flags": {}, "ledger": {}} for s in range(4)} for n, m in (("a", a), ("b", b))}

    (at_chance,), (learned,) = judge(study, results(0.2, 0.2)), judge(study, results(0.6, 0.601))
    assert at_chance.words == "not judged (neither shown to be above chance)" and learned.words == "reproduced"


def test_planted_relations_are_counted_by_themselves(no_pictures, tmp_path):
    planted = [
        dataclasses.replace(r, planted=p)
        for r, p in ((RELATIONS[0], "effect"), (RELATIONS[3], "effect"), (RELATIONS[6], "null"))
    ]
    text = report.write(a_study(relations=(RELATIONS[1], *planted)), the_results(), tmp_path)["md"].read_text()
    assert "Of 1 primary relation: 1 reproduced, 0 reversed, 0 unresolved." in text
    assert "Of 3 planted relations: 2 as planted, 1 against it, 0 undecided." in text


def test_a_share_of_the_budget_is_what_is_held(no_pictures):
    cells = {"whole": CELLS["causal"], "half": dataclasses.replace(CELLS["causal"], share=0.5)}

    def warned(flops: float) -> bool:
        result = lambda spent: {0: {"metrics": {}, "flags": {}, "ledger": {"model_flops": spent}}}
        blocks = tables.ledger(a_study(cells=cells, relations=()), {"whole": result(1e12), "half": result(flops)})
        return any("Warning" in getattr(b, "text", "") for b in blocks)

    assert not warned(0.5e12) and warned(0.53e12)


def test_bold_is_for_what_is_significantly_best(written):
    """Accuracies of 0.9000 and 0.9001 differ by chance; 1.70 bits are fewer than 1.80 beyond it."""
    table = tables.results_table(a_study(), the_results())
    assert [(i, row[0].text, t.text) for row in table.rows for i, t in enumerate(row) if t.bold] == [
        (5, NAMES["causal"], "1.702 ± 0.003")
    ]


def test_all_is_there(written):
    assert {path.name for path in written.values()} == {path.name for path in written["md"].parent.iterdir()}
    assert all(path.read_bytes()[:4] == b"\x89PNG" for path in written.values() if path.suffix == ".png")
    text, page = written["md"].read_text(), written["html"].read_text()
    pictures = re.findall(r"!\[.*\]\((.*)\)", text)
    assert len(pictures) == 6 == page.count("data:image/png;base64,") and "src=" + '"met' not in page
    assert "**model FLOPs (held equal)**" in text and "Warning" not in text
    assert "<sup>1</sup> not normalised in masked models" in text and "<sup>2</sup> a span of more than 10 words" in text
    assert r"encoder, 15 % masked & \<mask>\_words" in text and "15 % masked &amp; &lt;mask&gt;_words" in page
    assert "python -m experiments.report x" in text


def test_latex_is_whole_and_escaped(written):
    """Every brace and environment is closed, and each row has all columns. (pdflatex was tried by hand.)"""
    tex = written["tex"].read_text()
    assert r"15 \% masked \& $<$mask$>$\_words" in tex
    depth = 0
    for brace in re.findall(r"(?<!\\)[{}]", tex):
        depth += 1 if brace == "{" else -1
        assert depth >= 0
    assert depth == 0
    assert len(re.findall(r"\\begin\{table\}.*?\\caption\{.*?\\label\{.*?\\end\{table\}", tex, re.S)) == 5
    bodies = re.findall(r"\\begin\{tabular\}\{@\{\}(\S+)@\{\}\}\n(.*?)\\end\{tabular\}", tex, re.S)
    assert len(bodies) == 5
    for align, body in bodies:
        columns = len(re.sub(r">.*cm\}", "l", align))
        rows = re.findall(r"^(.*) \\\\$", body, re.M)
        assert rows and all(len(re.findall(r"(?<!\\)&", row)) == columns - 1 for row in rows)
        assert r"\toprule" in body and r"\midrule" in body and r"\bottomrule" in body


def test_every_special_character_is_escaped():
    assert pages.escaped(r"\ & % $ # _ { } ~ ^") == (
        r"\textbackslash{} \& \% \$ \# \_ \{ \} \textasciitilde{} \textasciicircum{}"
    )
    assert pages.escaped("[a] *b* ± <c>") == r"{[}a{]} {*}b{*} $\pm$ $<$c$>$"


def test_the_same_results_give_the_same_bytes(tmp_path):
    study = a_study(metrics=METRICS[:1], relations=RELATIONS[:3])
    once, again = (report.write(study, the_results(cells=list(NAMES)[:4]), tmp_path / name) for name in "ab")
    assert {"relations", "curves", "md", "tex"} < set(once)
    for key, path in once.items():
        assert path.read_bytes() == again[key].read_bytes(), key


def test_an_unfinished_study_shows_what_is_there(tmp_path):
    results = the_results(cells=("encdec_denoising", "encdec_lm", "prefix"))
    del results["encdec_lm"][1], results["prefix"][1], results["prefix"][2]
    results["causal"] = {0: a_result("causal", 0)}
    study = a_study(relations=(*RELATIONS, Relation("no text of an encoder", METRICS[3].name, "prefix", "encoder")))
    text = report.write(study, results, tmp_path)["md"].read_text()
    assert "7 of 30 runs are done" in text and "encoder-decoder, language model (1)" in text
    first = next(line for line in text.splitlines() if line.startswith("| denoising above"))
    assert first.split(" | ")[4] == "2"  # both cells have seeds 0 and 2
    assert "unresolved (one seed)" in text and text.count("unresolved (a cell has no run yet)") == 5
    judged = judge(study, results)
    # The family keeps all eight primary relations, so that missing ones do not lower the thresholds.
    assert sum(j.p_holm is not None for j in judged) == 1 and judged[0].p_holm == pytest.approx(8 * judged[0].p)


def test_nothing_done_yet(tmp_path, no_pictures):
    written = report.write(a_study(), {}, tmp_path)
    assert "0 of 30 runs are done" in written["md"].read_text() and set(written) == {"md", "html", "tex", "results"}


def test_what_is_not_held_equal_is_said(tmp_path, no_pictures):
    results = the_results()
    results["causal"][1]["ledger"]["model_flops"] = 0.97e12
    results["causal"][2]["metrics"][METRICS[0].name] = float("nan")
    results["stranger"] = {0: a_result("causal", 0)}
    text = report.write(a_study(), results, tmp_path)["md"].read_text()
    assert "**Warning: model FLOPs should be held equal, but a run is off by 3.0 % (tolerated: 1 %).**" in text
    assert "**Warning: not finite, and left out: sentiment accuracy of causal decoder, seed 2.**" in text
    assert "does not have are left out: stranger" in text
    assert "| **3.00 %** |" in text


def test_what_the_results_were_made_with_is_said(tmp_path, no_pictures):
    results = the_results(range(2))
    text = lambda: report.write(a_study(seeds=2), results, tmp_path, command="made so")["md"].read_text()
    assert " runs with " not in text()  # it was not recorded
    for runs in results.values():
        runs[0]["made_with"] = {"python": "3.11.9", "jax": "0.10.2"}
    assert "10 runs with python 3.11.9, jax 0.10.2; 10 runs with what was not recorded." in text()


def test_a_studys_own_metrics_and_section(tmp_path, no_pictures):
    def derive(results):
        for seeds in results.values():
            for result in seeds.values():
                result["metrics"]["errors"] = 1 - result["metrics"][METRICS[0].name]
        return results

    def analyse(results, folder):
        (folder / "own.png").write_bytes(b"\x89PNG")
        assert results["causal"][0]["metrics"]["errors"] > 0.1
        text = "## Own\n\nA **bold** `x_1 < 2` [link](https://a.b/c).\n\n"
        return text + "| a | b |\n|---|---|\n| 1 | 2 |\n\n- one\n- two\n\n![own](own.png)"

    study = a_study(metrics=(*METRICS, Metric("errors", "errors", higher=False)), derive=derive, analyse=analyse)
    results = the_results()
    written = report.write(study, results, tmp_path)
    assert "errors" not in results["causal"][0]["metrics"] and "errors" not in written["results"].read_text()
    assert "## Own" in written["md"].read_text() and "errors ↓" in written["md"].read_text()
    page = written["html"].read_text()
    for piece in (
        "<h2>Own</h2>",
        '<p>A <b>bold</b> <code>x_1 &lt; 2</code> <a href="https://a.b/c">link</a>.</p>',
        "<thead><tr><th>a<th>b</thead><tbody><tr><td>1<td>2</tbody>",
        "<ul><li>one<li>two</ul>",
        '<img alt="own" src="data:image/png;base64,iVBORw==">',
    ):
        assert piece in page


@pytest.mark.parametrize(
    ("relation", "message"),
    [
        (Relation("r", "sentiment/acuracy", "causal", "prefix"), "did you mean 'sentiment/accuracy'"),
        (Relation("r", METRICS[0].name, "causal", "prefx"), "did you mean 'prefix'"),
        (Relation("r", METRICS[0].name, "causal", "prefix", kind="equivalent"), "without a margin"),
        (Relation("r", METRICS[0].name, "causal", "causal"), "compares cell 'causal' with itself"),
    ],
)
def test_a_relation_that_cannot_be_tested_is_refused(relation, message):
    with pytest.raises(UserError, match=message):
        judge(a_study(relations=(relation,)), the_results())


def test_runs_and_the_small_file_give_the_same_report(tmp_path, no_pictures, monkeypatch, capsys):
    """From a work directory, and again from the results.json of that report."""
    spec = {"study": "planted", "settings": {"seeds": 2}}
    module = type("module", (), {"study": staticmethod(lambda **settings: a_study(**settings))})
    monkeypatch.setitem(sys.modules, "experiments.planted", module)
    monkeypatch.setitem(sys.modules, "experiments.planted.study", module)
    runs, small, third = tmp_path / "runs", tmp_path / "small", tmp_path / "third"
    runs.mkdir()
    (runs / "study.json").write_text(json.dumps(spec))
    for cell, seeds in the_results(range(2)).items():
        for seed, result in seeds.items():
            folder = runs / cell / f"seed{seed}"
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(json.dumps(result))
    assert report.main([str(runs), f"--out={small}"]) == 0
    assert "20 of 20 runs are done" in (small / "report.md").read_text()
    assert report.main([str(small), f"--out={third}"]) == 0
    for name in ("report.tex", "results.json", "study.json"):
        assert (small / name).read_bytes() == (third / name).read_bytes()
    (runs / "causal/seed0/result.json").write_text("{")
    assert report.main([str(runs)]) == 2 and "is not valid JSON" in capsys.readouterr().err
    (small / "study.json").write_text(json.dumps(spec | {"study": "planned"}))
    assert report.main([str(small)]) == 2 and "names study 'planned'" in capsys.readouterr().err
    assert report.main([str(tmp_path)]) == 2 and "has no study.json" in capsys.readouterr().err


@pytest.mark.parametrize("folder", RAN, ids=lambda folder: folder.name)
def test_a_study_whose_results_are_kept_ran_whole_as_it_stands_and_held_its_budget(folder):
    study, results = report.load(folder)
    assert {cell: sorted(seeds) for cell, seeds in results.items()} == dict.fromkeys(study.cells, list(range(study.seeds)))
    for name, cell in study.cells.items():
        for result in results[name].values():
            assert result["settings"] == study.mark(name), f"{name} has other settings now"
            if study.match and "diverged" not in result["flags"]:
                spent = result["ledger"][tables.MATCHED[study.match]]
                assert spent == pytest.approx(study.budget * cell.share, rel=0.01), name


def test_a_withdrawn_study_gets_no_verdict(no_pictures, tmp_path):
    study = a_study(withdrawn="its floor is above its cells.")
    judged = judge(study, the_results())
    assert {j.words for j in judged} == {"withdrawn"} and {j.verdict for j in judged} == {"unresolved"}
    text = report.write(study, the_results(), tmp_path)["md"].read_text()
    assert "**Withdrawn: its floor is above its cells.**" in text and "primary relations:" not in text
    assert not re.search("reproduced|reversed|unresolved", text)
    assert "Bold:" not in text and not re.search(r"\*\*[\d.]+ ±", text)


@pytest.mark.parametrize("folder", RAN, ids=lambda folder: folder.name)
def test_what_is_withdrawn_is_so_wherever_it_is_read(folder):
    """In the study's README and reports, on the page of relations, and on the page of comparisons."""
    if not report.load(folder)[0].withdrawn:
        return
    for name in ("README.md", "report.md", "report.tex"):
        text = (folder / name).read_text()
        assert "Withdrawn" in text[:1500] or name == "report.tex", name
        assert not re.search(r"reproduced|reversed|unresolved", text), f"{name} gives a verdict"
    assert f"- [{folder.name}]({folder.name}): " in (folder.parent / "README.md").read_text().partition("**Withdrawn.**")[2]
    assert re.search(rf"`{folder.name}`[^.]* withdrawn", (folder.parent.parent / "docs/comparisons.md").read_text())
