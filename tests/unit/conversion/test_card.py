"""The model card, and the folder that is prepared for the hub."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from lm import config
from lm.conversion import card, folders, push
from lm.convert import main
from lm.errors import UserError

LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
FIGURES = {"step": 10, "tokens_seen": 1234567, "model_flops": 5.87e12, "heldout": {"bits_per_byte": 1.5705, "tokens": 2000.0}}
FIGURES |= {"heldout_intervals": {"bits_per_byte": [1.5, 1.64]}}
FIGURES |= {"baselines": {"xz": 2.236}, "goodput": {"wall_seconds": 7200.0}}
TASKS = {"tasks": {"sotu_cloze": {"metrics": {"acc": {"value": 0.35, "low": 0.31, "high": 0.39}}}}}


def source(folder, step=10):
    data = config.Data({"mine": config.Source("jsonl", "a|b`c\n.jsonl")}, decoder_length=128)
    model = config.Model(
        50, 32, decoder=config.Stack(2, {"L": config.Block(config.Attention(4), config.Mlp(48), config.Norm())})
    )
    return SimpleNamespace(folder=folder, step=step, run=config.Run(model, data, train=config.Train(10)))


@pytest.fixture
def folder(tmp_path):
    files = {"summary.json": FIGURES, "task_scores.json": TASKS, "manifest.json": {"devices": {"kind": "cpu", "count": 4}}}
    for name, value in files.items():
        (tmp_path / name).write_text(json.dumps(value), encoding="utf-8")
    return tmp_path


def test_data_objective_compute_results_and_limits_are_those_of_the_run(folder):
    text = card.written(source(folder), LLAMA, 721_792, name="me/mine", licence="mit")
    for said in (
        "721,792 parameters",
        "objective causal, from random parameters: step 10 of 10",
        "Trained on 1,234,567 tokens.",
        "5.87e+12 FLOPs",
        "8 device-hours (7,200 s on 4 of `cpu`)",
        "| held-out bits per byte | 1.571 | 1.5 to 1.64 |",
        "means over 2,000 tokens of documents that were not trained on, of one run. Intervals are over documents",
        "| baseline xz (bits per byte) | 2.236 |  |",
        "| sotu_cloze: acc | 0.35 | 0.31 to 0.39 |",
        "rows of 128 tokens",
        "jsonl `a\\|b'c\\n.jsonl`",
        'AutoModelForCausalLM.from_pretrained("me/mine")',
    ):
        assert said in text, said
    assert text.index("# mine") > text.index("license:")


def test_what_is_not_known_is_said(tmp_path):
    text = card.written(source(tmp_path), LLAMA, 1, name="x", licence=None)
    assert "it was not finished" in text and "None are known." in text and "license:" not in text
    converted = card.written(SimpleNamespace(folder=tmp_path, run=None), LLAMA, 1, name="x", licence=None)
    assert "Not known here" in converted and "FLOPs" not in converted


def test_figures_of_another_checkpoint_are_left_out(folder):
    assert "FLOPs" not in card.written(source(folder, step=5), LLAMA, 1, name="x", licence=None)


@pytest.mark.parametrize("chats", [False, True])
def test_the_hub_reads_the_head(folder, chats):
    hub = pytest.importorskip("huggingface_hub")
    given = source(folder)
    if chats:
        data = config.Data({"mine": config.Source("jsonl", "x", format="messages")})
        given.run = SimpleNamespace(**{**vars(given.run), "data": data})
    data = hub.ModelCard(card.written(given, LLAMA, 1, name="x", licence="no")).data
    assert (data.license, data.library_name, data.pipeline_tag) == ("no", "transformers", "text-generation")
    assert data.tags == (["conversational"] if chats else None)


@pytest.mark.parametrize(
    "name", ["mine", "me/", "me/a--b", "me/a..b", "me/x.git", "-me/x", "a/b/c", "me/my model", "me/" + "x" * 97]
)
def test_names_that_the_hub_refuses_are_refused(name):
    hub = pytest.importorskip("huggingface_hub")
    with pytest.raises(UserError, match="give NAMESPACE/NAME"):
        push.push("run", "new", repository=name, licence=None, family=None, shard_gb=1.0)
    if "/" in name:
        with pytest.raises(hub.errors.HFValidationError):
            hub.utils.validate_repo_id(name)


def test_flags_are_checked_before_a_model_is_read(capsys):
    assert main(["push", "none", str(Path("new")), "--repository=me/mine", "--license=My Own"]) == 2
    assert "--license='My Own' is no identifier" in capsys.readouterr().err


def test_a_classifiers_outputs_are_named():
    """As transformers names them: by the classes of the run, in the order of the head's outputs."""
    run = lambda **recipe: SimpleNamespace(run=config.Run(None, recipe=config.Finetune(**recipe)))
    named = {"id2label": {"0": "ham", "1": "spam"}, "label2id": {"ham": 0, "spam": 1}}
    assert folders._labels(run(how="head", classes=("ham", "spam"))) == named
    assert folders._labels(run(how="text", classes=("ham", "spam"))) == folders._labels(SimpleNamespace(run=None)) == {}
