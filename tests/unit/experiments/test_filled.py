"""Commands write complete tables into the READMEs, and change only their sections."""

import json
import re

import pytest

from experiments.filled import ROOT, fill
from experiments.objectives import run as objectives_run
from experiments.quickstart import run as quickstart_run
from lm import config
from lm.config.resolve import load
from lm.errors import UserError
from lm.objectives import pairs

CONFIGS = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
OTHERS = {"finetune", "family", "pod", "quickstart", "quickstart_15min", "code", "my_text", "my_labels"}
OTHERS |= {"image_codes", "decoder_draws", "encdec_captioner", "clip_openmoji", "encoder_vit"}  # of pictures
OTHERS |= {"decoder_recurrent", "decoder_mamba"}
OTHERS |= {"encoder_ctc_speech", "encdec_speech"}
OTHERS |= {"encoder_tree"}
RESULT = dict(
    parameters=720_000, loss=4.5, accuracy=0.2, tokens_seen=5000, tokens_with_loss=400, model_flops=2e12, seconds=60.4
)


def test_a_part_is_replaced_and_the_rest_stays(tmp_path):
    file = tmp_path / "README.md"
    file.write_text("before\n<!-- x -->\nold\n<!-- /x -->\nafter é\n")
    fill(file, "x", "new\n\nlines\n\n")
    assert file.read_text() == "before\n<!-- x -->\nnew\n\nlines\n<!-- /x -->\nafter é\n"
    fill(file, "x", "again")
    assert file.read_text() == "before\n<!-- x -->\nagain\n<!-- /x -->\nafter é\n"
    with pytest.raises(UserError, match="has no section between <!-- y --> and <!-- /y -->"):
        fill(file, "y", "text")
    file.write_text("<!-- x -->\nno end")
    with pytest.raises(UserError, match="no section"):
        fill(file, "x", "text")
    assert file.read_text() == "<!-- x -->\nno end"


def runs_of_a_minute():
    for case in objectives_run.CASES.values():
        overrides = dict(flag.removeprefix("--config.").split("=", 1) for flag in case.flags)
        yield case, load(f"{ROOT}/configs/{case.config}.py", overrides)


def test_every_config_of_a_minute_and_every_objective_is_in_the_table():
    runs = list(runs_of_a_minute())
    assert {case.config for case, _ in runs} == set(CONFIGS) - OTHERS
    kinds = {type(run.objective) for _, run in runs}
    kinds |= {
        type(p.objective) for _, run in runs if isinstance(run.objective, config.Mixture) for p in run.objective.parts.values()
    }
    assert kinds == {objective for _, objective in pairs()}
    assert len({(case.config, case.flags) for case, _ in runs}) == len(runs)


def test_the_table_has_a_row_for_each_and_says_what_is_missing():
    text = objectives_run.table({"decoder_fim": RESULT, "encdec_mass": RESULT | {"commit": "abc1234"}})
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert len(rows) == len(objectives_run.CASES) and all(row.count("|") == 9 for row in rows)
    assert "| `decoder_fim` | 0.72 M | 4.500 | 0.200 | 5,000 | 400 | 2.00e+12 | 60 |" in rows
    assert "Measured at abc1234. The figures are of the first version" in text and "not measured yet" in text
    new = objectives_run.table(dict.fromkeys(objectives_run.CASES, RESULT | {"commit": "abc1234"}))
    assert new.rstrip().endswith("|\n\nMeasured at abc1234.") and "–" not in new


def test_the_readmes_have_the_table_of_the_results_that_are_kept():
    here = ROOT / "experiments" / "objectives"
    text = objectives_run.table(json.loads((here / "results.json").read_text()))
    assert (here / "table.md").read_text() == text
    for readme in (ROOT / "docs/objectives.md", here / "README.md"):
        part = re.search(r"<!-- objectives -->\n(.*)<!-- /objectives -->", readme.read_text(), re.S)
        assert part and part.group(1) == text, f"{readme} has another table: python -m experiments.objectives.run --table"


PRINTED = """         131,072  embed/tokens
step 16/310  loss 6.9  1,000 tokens/s
step 280/310  loss 3.108  9,339 tokens/s
step 300/310  loss 3.106  8,121 tokens/s
step 310/310  loss 3.066  7,538 tokens/s
step 310  held-out  loss 3.0095

> Fellow citizens, -> of
report: runs/quickstart/report.html
"""


def test_the_section_shows_the_last_lines_of_the_quickstart():
    seconds = dict(prepare=15.98, train=127.07, evaluate=16.9, baselines=37.2, compile=8.5, data_wait=2.3)
    text = quickstart_run.section({"seconds": seconds}, PRINTED, "experiments/quickstart/")
    assert "it took 3 min 28 s: 16 s to\nprepare" in text and "127 s of training" in text
    assert "```\nstep 280/310  loss" in text and text.endswith("report: runs/quickstart/report.html\n```\n")
    assert "step 16/310" not in text and "([summary.json](experiments/quickstart/summary.json))" in text


def test_the_quickstart_measures_a_whole_run_only(tmp_path, capsys):
    assert quickstart_run.main([f"--workdir={tmp_path}"]) == 2
    assert "exists already: give a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("run", [quickstart_run, objectives_run])
@pytest.mark.parametrize("gone", ["README.md", "here/README.md"])
def test_a_readme_without_the_part_is_told_before_anything_runs(tmp_path, capsys, monkeypatch, run, gone):
    here = tmp_path / "here"
    here.mkdir()
    readmes = (tmp_path / "README.md", here / "README.md")
    for readme in readmes:
        readme.write_text(f"<!-- {run.PART} -->\n<!-- /{run.PART} -->\n")
    (tmp_path / gone).write_text("rewritten")
    for name, value in dict(ROOT=tmp_path, HERE=here, PAGES=readmes).items():
        monkeypatch.setattr(run, name, value, raising=False)
    ran = []
    monkeypatch.setattr(run.subprocess, "run", lambda *words, **_: ran.append(words))
    assert run.main([f"--workdir={tmp_path / 'new'}"]) == 2
    err = capsys.readouterr().err
    assert "has no section between" in err and err.count("\n") == 1 and not ran


@pytest.mark.parametrize("file", ["README.md", "experiments/quickstart/README.md"])
def test_the_quickstarts_part_is_in_the_readmes(file):
    text = (ROOT / file).read_text()
    assert text.count("<!-- quickstart -->\n") == text.count("<!-- /quickstart -->\n") == 1
