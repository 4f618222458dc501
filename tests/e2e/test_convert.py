"""`python -m lm.convert` from a folder to ours and back, from a run, and what it says when it cannot."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import linen as nn

from lm import conversion, recipes, saved
from lm.config import Attention, Block, Head, Mlp, Model, Norm, Rope, Stack, resolve
from lm.conversion.tables import canonical
from lm.convert import main
from lm.data import chat
from lm.models.transformer import Transformer, abstract_params
from lm.types import Example, TokenStream

BLOCK = Block(Attention(4, 2), Mlp(48, "silu", gated=True), Norm("rms", eps=1e-6))
FINETUNE = Path(__file__).parents[2] / "configs" / "finetune.py"
MODEL = Model(50, 32, decoder=Stack(2, {"L": BLOCK}, position=Rope()), head=Head(tied=False))


@pytest.fixture
def theirs(tmp_path):
    """A small LLaMA as they would save it, with a tokenizer's file."""
    tokens = np.zeros((1, 4), np.int32)
    example = Example(None, TokenStream(tokens, tokens, tokens), None, None)
    params = jax.jit(lambda key: nn.unbox(Transformer(MODEL).init(key, example)["params"]))(jax.random.key(0))
    folder = tmp_path / "theirs"
    conversion.write(MODEL, jax.tree.map(np.asarray, params), folder)
    words = {"type": "WordLevel", "vocab": {"a": 0, "[UNK]": 1}, "unk_token": "[UNK]"}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": words}))
    return folder


def test_to_ours_and_back_is_the_same_file(theirs, tmp_path, capsys):
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert main(["from_hf", str(theirs), str(ours)]) == 0
    assert "llama, float32" in (said := capsys.readouterr().out) and "tokenizer.json" in said and "peak memory" in said
    assert canonical(saved.open(ours).model) == canonical(MODEL)
    assert main(["to_hf", str(ours), str(back)]) == 0
    assert (back / "model.safetensors").read_bytes() == (theirs / "model.safetensors").read_bytes()
    assert (back / "config.json").read_text() == (theirs / "config.json").read_text()
    assert (back / "tokenizer.json").read_text() == (theirs / "tokenizer.json").read_text()
    # A bit of it changed is noticed.
    victim = max((p for p in (ours / "params").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    assert main(["to_hf", str(ours), str(tmp_path / "again")]) == 2
    assert "was changed or cut short" in capsys.readouterr().err


def test_a_classifier_keeps_its_head_and_what_it_is_called(theirs, tmp_path, capsys):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(theirs / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors | {"score.weight": np.ones((3, 32), np.float32)}, theirs / "model.safetensors")
    said = json.loads((theirs / "config.json").read_text())
    names = {"0": "bad", "1": "fair", "2": "good"}
    said |= dict(architectures=["LlamaForSequenceClassification"], id2label=names, problem_type="regression")
    (theirs / "config.json").write_text(json.dumps(said))
    assert main(["from_hf", str(theirs), str(tmp_path / "ours")]) == 0
    assert saved.open(tmp_path / "ours").model.head == Head(tied=False, norm=None, outputs=3)
    assert main(["to_hf", str(tmp_path / "ours"), str(tmp_path / "back")]) == 0
    back = json.loads((tmp_path / "back" / "config.json").read_text())
    assert back["id2label"] == names and back["architectures"] == said["architectures"]
    after = load_file(tmp_path / "back" / "model.safetensors")
    np.testing.assert_array_equal(after["score.weight"], 1.0)
    # The trunk alone, by the flag that the message names.
    assert main(["from_hf", str(theirs), str(tmp_path / "trunk"), "--drop=score.*"]) == 0
    assert saved.open(tmp_path / "trunk").model.head is None
    said["architectures"] = ["LlamaForTokenRanking"]
    del tensors["model.norm.weight"]
    save_file(tensors | {"model.norm.gain": np.ones(32, np.float32)}, theirs / "model.safetensors")
    (theirs / "config.json").write_text(json.dumps(said))
    capsys.readouterr()
    assert main(["from_hf", str(theirs), str(tmp_path / "none")]) == 2
    assert "missing: lm_head.weight, model.norm.weight" in (err := capsys.readouterr().err) and "--drop 'model" in err


def test_our_file_is_the_one_that_safetensors_writes(theirs, tmp_path):
    from safetensors.numpy import load_file, save_file

    save_file(load_file(theirs / "model.safetensors"), tmp_path / "again", metadata={"format": "pt"})
    assert (tmp_path / "again").read_bytes() == (theirs / "model.safetensors").read_bytes()


def test_a_run_is_exported(train, tmp_path, capsys):
    block = "--config.model.decoder.blocks.L"
    biased = [f"{block}.attention.bias=True", f"{block}.attention.out_bias=True", f"{block}.ffn.bias=True"]
    judged = ["--config.evaluate.rows=64", "--config.evaluate.batch_size=4"]
    more = ["--config.train.steps=2", "--config.optimizer.ema=0.9"]
    code, err = train(tmp_path / "run", "decoder.causal", *biased, *judged, *more)
    assert code == 0, err
    assert main(["to_hf", str(tmp_path / "run"), str(tmp_path / "out")]) == 0
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    heldout, ends = summary["heldout"], summary["heldout_intervals"]  # over documents
    assert ends.keys() == heldout.keys() - {"tokens"} and all(low < heldout[n] < high for n, (low, high) in ends.items())
    low, high = ends["loss"]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert f"| held-out loss | {heldout['loss']:.4g} | {low:.4g} to {high:.4g} |" in card
    imported = conversion.read(tmp_path / "out")
    assert imported.family == "gpt2"
    params = saved.open(tmp_path / "run").params(abstract_params(imported.model))
    jax.tree.map(np.testing.assert_array_equal, imported.params, jax.tree.map(np.asarray, params))
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() and not (tmp_path / "out" / "chat_template.jinja").exists()
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text(encoding="utf-8")) == ids
    assert ids.items() <= json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8")).items()
    assert "step 2 of 2" in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    # Read back, the tokenizer gives the ids of the run's, for a folder of the hub too.
    assert main(["push", str(tmp_path / "run"), str(tmp_path / "hub"), "--repository=me/mine"]) == 0
    assert "hf upload me/mine" in capsys.readouterr().out and (tmp_path / "hub" / ".gitattributes").exists()
    assert main(["from_hf", str(tmp_path / "hub"), str(tmp_path / "read")]) == 0
    ours, again = (saved.open(tmp_path / name).tokenizer() for name in ("run", "read"))
    for text in (" a  new\n\nday", "</s> \u2581 \u6f22", ""):
        assert ours.encode(text).tolist() == again.encode(text).tolist() and again.decode(again.encode(text)) == text
    # Fine-tuned on conversations, it takes its template along; they are read from Parquet, in ShareGPT's shape.
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    talk = [{"from": "human", "value": "a new day"}, {"from": "gpt", "value": "the old day"}]
    table = {"conversations": [[{**talk[0], "value": f"day {i}"}, talk[1]] for i in range(20)]}
    (tmp_path / "talks").mkdir()
    parquet.write_table(pyarrow.table(table), tmp_path / "talks" / "a.parquet", row_group_size=7)
    settings = {"data.sources.mine.kind": "parquet", "data.sources.mine.path": f"{tmp_path / 'talks'}"}
    settings |= {"data.cache": f"{tmp_path / 'cache'}"}
    settings |= {"train.init_from": f"{tmp_path / 'run'}", "train.steps": "2", "recipe.length": "40", "evaluate.rows": "2"}
    recipes.train(resolve.load(f"{FINETUNE}:messages", settings), tmp_path / "talking", quiet=True)
    assert main(["to_hf", str(tmp_path / "talking"), str(tmp_path / "told")]) == 0
    assert main(["from_hf", str(tmp_path / "told"), str(tmp_path / "back")]) == 0
    asked = [{"role": "user", "content": "a new day"}]
    learned, back = (chat.of(saved.open(tmp_path / name)) for name in ("talking", "back"))
    assert learned.ids(asked).tolist() == back.ids(asked).tolist() and learned.end == back.end
    # And from the converted folder a run goes on with that template, and says so.
    capsys.readouterr()
    settings |= {"train.init_from": f"{tmp_path / 'back'}", "log.tensorboard": "False"}
    recipes.train(resolve.load(f"{FINETUNE}:messages", settings), tmp_path / "on")
    assert "conversations are written by the chat template of the model before" in capsys.readouterr().err
    on = saved.open(tmp_path / "on")
    assert on.run.data.template == (tmp_path / "told" / "chat_template.jinja").read_text(encoding="utf-8")
    assert chat.of(on).ids(asked).tolist() == learned.ids(asked).tolist()


def test_of_a_run_of_two_models_comes_the_one_it_is_about(train, tmp_path):
    code, err = train(tmp_path / "run", "encoder.replaced_tokens", "--config.train.steps=2", "--config.optimizer.ema=0.9")
    assert code == 0, err
    model = saved.open(tmp_path / "run").model
    assert model.head.outputs == 1 and model.width == 32
    params = saved.open(tmp_path / "run").params(abstract_params(model))
    example = Example(TokenStream(*[np.zeros((1, 4), np.int32)] * 3), None, None, None)
    assert jax.jit(Transformer(model).apply)({"params": params}, example).shape == (1, 4, 1)
    # Hugging Face's ELECTRA is not among the families, and that is what is said.
    assert main(["to_hf", str(tmp_path / "run"), str(tmp_path / "out")]) == 2


@pytest.mark.parametrize(
    "words,said",
    [
        (["from_hf", "{nothing}", "{new}"], "has no config.json"),
        (["from_hf", "{theirs}", "{theirs}"], "is not an empty folder"),
        (["to_hf", "{theirs}", "{new}"], "is a Hugging Face folder that is not converted: python -m lm.convert from_hf"),
        (["to_hf", "{ours}", "{new}", "--family=gpt2"], "model_type gpt2 cannot express this model"),
        (["to_hf", "{ours}", "{new}", "--family=lama"], "--family 'lama' is not known; did you mean 'llama'"),
    ],
)
def test_mistakes_are_one_line(theirs, tmp_path, capsys, words, said):
    assert main(["from_hf", str(theirs), str(tmp_path / "ours")]) == 0
    capsys.readouterr()
    places = dict(nothing=tmp_path / "nothing", new=tmp_path / "new", theirs=theirs, ours=tmp_path / "ours")
    assert main([w.format(**places) for w in words]) == 2
    err = capsys.readouterr().err
    assert said in err and err.startswith("error: ") and err.count("\n") == 1
    assert not Path(places["new"] / "config.json").exists()
