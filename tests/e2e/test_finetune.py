"""Fine-tuning as a run: killed, it goes on to the bit though what it began from is gone; its model is kept."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments.finetune import fine_tune
from experiments.study import Finetune, Task
from lm import checkpoint, config, recipes, saved
from lm.config import resolve
from lm.errors import UserError
from lm.prepare import prepared_for
from lm.recipes.finetune import FineTuning
from lm.training.assembly import assemble
from lm.training.rundir import RunDir
from tests.e2e.conftest import TINY

CONFIG = Path(__file__).parents[2] / "configs" / "finetune.py"
SMALL = dict(
    steps="train.steps=12",
    batch="train.batch_size=4",
    save="checkpoint.every=4",
    test="evaluate.every=6",
    rows="evaluate.rows=10",
    log="log.every=2",
    board="log.tensorboard=False",
    length="recipe.length=24",
)


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


@pytest.fixture(scope="session")
def pretrained(corpus, tmp_path_factory):
    """The workdir of a causal run with dropout."""
    paths = {"data.sources.tiny.path": f"{corpus}/tiny.jsonl", "data.cache": f"{corpus}/cache"}
    workdir = tmp_path_factory.mktemp("pretrained")
    recipes.train(resolve.load(f"{TINY}:decoder.causal", paths), workdir, quiet=True)
    return workdir


@pytest.fixture(scope="session")
def tuning(corpus, pretrained):
    """The flags of a fine-tuning on records of made-up words."""
    texts = [json.loads(line)["text"].split() for line in (corpus / "tiny.jsonl").read_text().splitlines()]
    with open(corpus / "labelled.jsonl", "w") as file:
        for i, text in enumerate(texts * 2):
            words, label = text[i : i + 8], "yes" if i % 3 == 0 else "no"
            file.write(json.dumps({"text": " ".join([*words, label, str(i)]), "label": label}) + "\n")
    with open(corpus / "other.jsonl", "w") as file:
        for i, text in enumerate(texts):
            file.write(json.dumps({"text": " ".join(text[i : i + 8]), "label": ["no", "maybe", "yes"][i % 3]}) + "\n")
    with open(corpus / "pair.jsonl", "w") as file:
        for i, text in enumerate(texts):
            record = {"context": " ".join(text[i : i + 6]), "question": f"which {i}", "answer": text[i + 2]}
            file.write(json.dumps(record) + "\n")

    def make(what, *extra, start=pretrained, file=None, **changes):
        source = file or what.partition(".")[0]
        settings = [f"--config.{value}" for value in {**SMALL, **changes}.values()]
        return [
            f"--config={CONFIG}:{what}",
            f"--config.data.sources.mine.path={corpus}/{source}.jsonl",
            "--config.data.holdout=0.3",
            f"--config.data.cache={corpus}/cache",
            f"--config.train.init_from={start}",
            *settings,
            *extra,
        ]

    return make


@pytest.fixture
def tune(tuning, capsys):
    """Runs `lm.train` in this process; returns the exit code and what it said on standard error."""
    from lm.train import main

    def run(workdir, what, *extra, **changes):
        capsys.readouterr()
        code = main([f"--workdir={workdir}", *tuning(what, *extra, **changes)])
        return code, capsys.readouterr().err

    return run


def evaluated(workdir):
    """The held-out figures of the model that a run keeps, computed anew."""
    kept = saved.open(workdir)
    recipe = FineTuning()
    parts = assemble(recipe.complete(kept.run, workdir), recipe, progress=False)
    return recipe.evaluators(parts, None)[0](kept.params(device=jax.devices()[0]))


@pytest.mark.parametrize("what", ["labelled.head", "pair.text"])
def test_killed_it_goes_on_to_the_bit_and_keeps_a_model(what, tune, tuning, corpus, tmp_path):
    code, err = tune(tmp_path / "whole", what)
    assert code == 0, err
    whole = summary(tmp_path / "whole")

    workdir = tmp_path / "killed"
    words = [sys.executable, "-m", "lm.train", f"--workdir={workdir}", *tuning(what)]
    env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(corpus / "compiled"), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(words, env=env, stderr=subprocess.PIPE, text=True)
    end = time.time() + 900
    while not (workdir / "checkpoints" / "4").exists():
        assert process.poll() is None and time.time() < end, process.stderr.read()
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not (workdir / "summary.json").exists()

    code, err = tune(workdir, what, start=tmp_path / "moved away")  # what it began from is needed no more
    assert code == 0 and "going on from step" in err, err
    resumed = summary(workdir)
    assert resumed["params_sha256"] == whole["params_sha256"]
    for key in ("heldout", "heldout_intervals", "tokens_seen", "tokens_with_loss", "step"):
        assert resumed[key] == whole[key]

    kept = saved.open(workdir)
    assert kept.run.recipe.how == what.partition(".")[2] and kept.run.recipe.prefix is False
    assert (kept.model.head.outputs, kept.run.recipe.classes) == ((2, ("no", "yes")) if "head" in what else (None, None))
    assert evaluated(workdir) == whole["heldout"]
    names = ("accuracy", "nll", "majority") if "head" in what else ("exact", "f1", "nll", "majority")
    report = (workdir / "report.html").read_text()
    assert all(name in whole["heldout"] and f"held-out {name}" in report for name in names)
    assert "heldout/nll" in (workdir / "metrics.jsonl").read_text()


def test_its_data_is_prepared_ahead_of_time_with_the_tokenizer_that_it_starts_from(tuning):
    (given,), overrides = resolve.split_flags(tuning("labelled"))
    run = resolve.load(given.removeprefix("--config="), overrides)
    assert prepared_for(run).tokenizer.fingerprint == saved.open(run.train.init_from).tokenizer().fingerprint
    with pytest.raises(UserError, match="a fine-tuning needs a model to start from"):
        prepared_for(dataclasses.replace(run, train=config.Train()))


def test_a_fine_tuned_model_is_one_like_any_other(tune, tuning, corpus, tmp_path):
    """It begins another fine-tuning: with the head of the same classes, with a new one for others; and goes on in text."""
    first = tmp_path / "first"
    assert tune(first, "labelled")[0] == 0
    fresh, heads = {}, {}
    for name in ("labelled", "other"):
        words = tuning("labelled", start=first, file=name)
        overrides = dict(word.removeprefix("--config.").split("=", 1) for word in words[1:])
        recipe = FineTuning()
        run = recipe.complete(resolve.load(f"{CONFIG}:labelled", overrides), None)
        fresh[name], heads[name] = recipe.fresh, run.model.head.outputs
    assert fresh == {"labelled": (), "other": ("head",)} and heads == {"labelled": 2, "other": 3}
    again, none = tmp_path / "again", dict(steps="train.steps=1", rate="optimizer.learning_rate=0.0")
    assert tune(again, "labelled", start=first, **none)[0] == 0
    jax.tree.map(np.testing.assert_array_equal, saved.open(again).params(), saved.open(first).params())
    assert tune(tmp_path / "other", "labelled", start=first, file="other", **none)[0] == 0
    trunk, before = saved.open(tmp_path / "other").params(), saved.open(first).params()
    jax.tree.map(np.testing.assert_array_equal, trunk | {"head": 0}, before | {"head": 0})
    refused(tune(tmp_path / "text", "labelled.text", start=first), "no head over the vocabulary", "how=head")
    paths = {"data.sources.tiny.path": f"{corpus}/tiny.jsonl", "data.cache": f"{corpus}/cache"}
    with pytest.raises(UserError, match="a run with recipe.kind=finetune, and the config has pretrain: give another --workdir"):
        recipes.train(resolve.load(f"{TINY}:decoder.causal", paths), first, allow_changes=True, quiet=True)


def test_an_encoder_with_a_new_head_begins_with_a_decoders_stack(tuning, pretrained, tmp_path):
    words = tuning("labelled", steps="train.steps=1", rate="optimizer.learning_rate=0.0")
    run = resolve.load(f"{CONFIG}:labelled", dict(word.removeprefix("--config.").split("=", 1) for word in words[1:]))
    begun = saved.open(pretrained)
    encoder = dataclasses.replace(begun.model, encoder=begun.model.decoder, decoder=None)
    train = dataclasses.replace(run.train, init_map={"encoder": "decoder"})
    recipes.train(dataclasses.replace(run, model=encoder, train=train), tmp_path / "run", quiet=True)
    tuned, before = saved.open(tmp_path / "run"), begun.params()
    assert tuned.model.architecture == "encoder" and tuned.model.head.outputs == 2
    assert tuned.params().keys() == {"embed", "encoder", "head"}
    jax.tree.map(np.testing.assert_array_equal, tuned.params()["encoder"], before["decoder"])


def test_a_converted_model_is_fine_tuned_in_text(tune, pretrained, tmp_path):
    begun = saved.open(pretrained)
    checkpoint.save_params(tmp_path / "converted", begun.model, begun.params())
    refused(tune(tmp_path / "none", "labelled.text", start=tmp_path / "converted"), "has no tokenizer; put")
    (tmp_path / "converted" / "hf").mkdir()
    (tmp_path / "converted" / "hf" / "tokenizer.model").write_bytes(begun.tokenizer_bytes())
    code, err = tune(tmp_path / "tuned", "labelled.text", start=tmp_path / "converted")
    assert code == 0, err
    tuned = saved.open(tmp_path / "tuned")
    assert tuned.model == begun.model and isinstance(tuned.run.objective, config.Causal)
    assert {"accuracy", "nll", "majority"} <= summary(tmp_path / "tuned")["heldout"].keys()
    assert summary(tmp_path / "tuned")["heldout_intervals"].keys() == {"accuracy", "nll"}


def refused(result, *causes):
    code, err = result
    lines = [line for line in err.splitlines() if line.startswith("error:")]
    assert code == 2 and len(lines) == 1 and "Traceback" not in err, err
    assert all(cause in lines[0] for cause in causes), err


def test_mistakes_take_one_line(tune, pretrained, corpus, tmp_path):
    (tmp_path / "empty").mkdir()
    unknown = ("--config.data.sources.mine.kind=package", "--config.data.sources.mine.path=sentimant")
    for cause, words in {
        "no task 'labeled'; did you mean 'labelled'": ("labeled",),
        "no labelled set 'sentimant'; did you mean 'sentiment'": ("labelled", *unknown),
        "has no classes that a head could tell apart: set --config.recipe.how=text": ("pair.head",),
        "takes 80 positions of the decoder, which has learned 64: shorten it": ("labelled", "--config.recipe.length=80"),
        "config.recipe.length=1 is too small: give 3 or more": ("labelled", "--config.recipe.length=1"),
        "config.recipe.how is 'haed'; did you mean 'head'": ("labelled", "--config.recipe.how=haed"),
    }.items():
        refused(tune(tmp_path / "run", *words), cause)
    refused(tune(tmp_path / "run", "labelled", start=tmp_path / "empty"), "train.init_from=", "empty folder")
    refused(tune(tmp_path / "run", "labelled", start=tmp_path / "nowhere"), "train.init_from=", "does not exist")
    refused(tune(tmp_path / "run", "labelled", start="None"), "needs a model to start from: give --config.train.init_from=RUN")
    refused(tune(tmp_path / "run", "spans", file="pair", start="None"), "needs a model to start from")


def test_another_tokenizer_is_refused(tune, corpus, tmp_path):
    paths = {"data.sources.tiny.path": f"{corpus}/tiny.jsonl", "data.cache": f"{corpus}/cache"}
    run = resolve.load(f"{TINY}:decoder.causal", paths | {"data.tokenizer.vocab_size": "410", "train.steps": "1"})
    recipes.train(run, tmp_path / "other", quiet=True)
    (tmp_path / "other.model").write_bytes(saved.open(tmp_path / "other").tokenizer_bytes())
    given = f"--config.data.tokenizer.path={tmp_path}/other.model"
    refused(tune(tmp_path / "run", "labelled", given), "was trained with another tokenizer than data.tokenizer.path=")


def test_one_run_in_a_directory(tune, pretrained, tmp_path):
    refused(tune(pretrained, "labelled"), "holds a run that is no fine-tuning: give another --workdir")
    rundir = RunDir(tmp_path)
    try:
        refused(tune(tmp_path, "labelled"), "another run", "is at work in")
    finally:
        rundir.close()


def test_settings_are_chosen_on_training_records_that_are_set_apart(tune, tmp_path):
    """40 labels of the 50-odd training records, 10 others to test on."""
    code, err = tune(tmp_path / "run", "labelled", labels="recipe.labels=40", develop="recipe.develop=10")
    assert code == 0 and "held-out items          10\n" in err, err
    made = summary(tmp_path / "run")
    assert made["records"]["train"]["mine"]["records"] == 40
    assert made["records"]["holdout"]["mine"]["records"] == made["heldout"]["items"] == 10
    assert evaluated(tmp_path / "run") == made["heldout"]
    code, err = tune(tmp_path / "many", "labelled", labels="recipe.labels=60", develop="recipe.develop=10")
    assert code == 2 and "too few for recipe.labels=60 beside recipe.develop=10 with other questions: lower them" in err


def test_a_studys_task_is_chosen_tuned_and_tested(corpus, pretrained, tuning, tmp_path):
    """From a trained model and from one that nothing trained: means over seeds, each record's value, and all that it cost."""
    before = resolve.from_json((pretrained / "config.json").read_text())
    recipes.train(dataclasses.replace(before, train=config.Train(steps=0, batch_size=4)), tmp_path / "floor", quiet=True)
    source = config.Source(kind="jsonl", path=f"{corpus}/labelled.jsonl", format="labelled")
    data = config.Data(sources={"mine": source}, holdout=0.3, cache=f"{corpus}/cache")
    settings = Finetune(batch_size=4, length=24, rows=10, labels=30, seeds=2, grid=((1e-3, 2), (1e-2, 3)))
    task = Task("mine", "head", settings, data)
    for start in (pretrained, tmp_path / "floor"):
        folder = tmp_path / "tuned" / start.name
        found = fine_tune(task, before, start, folder)
        tried = sorted(path.name for path in (folder / "choice").iterdir())
        assert tried == ["0.001_2", "0.01_3"]
        costs = [json.loads(path.read_text())["model_flops"] for path in folder.rglob("summary.json")]
        assert found.flops == sum(costs) and len(costs) == 4
        for name in ("mine/accuracy", "mine/nll"):
            assert found.metrics[name] == pytest.approx(np.mean(found.nested[name])) == pytest.approx(found.items[name].mean())
            assert len(found.nested[name]) == 2 and len(found.items[name]) == found.metrics["mine/test_items"] == 10
        assert found.nested["mine/nll"][0] != found.nested["mine/nll"][1]
        assert (found.metrics["mine/learning_rate"], found.metrics["mine/steps"]) in settings.grid
        assert found.metrics["mine/train_items"] == 30
    written = max(path.stat().st_mtime_ns for path in folder.rglob("summary.json"))
    again = fine_tune(task, before, start, folder)
    assert again.metrics == found.metrics and written == max(p.stat().st_mtime_ns for p in folder.rglob("summary.json"))
