"""Checkpoints as people publish them: trunks without a head, classifiers, older names of tensors, families under another name.
Outputs equal those of transformers' class, and the files that we write back are equal byte for byte.
"""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

from safetensors.numpy import load_file, save_file  # noqa: E402

from lm import conversion  # noqa: E402
from lm.convert import main  # noqa: E402
from lm.errors import UserError  # noqa: E402
from lm.models.transformer import Transformer  # noqa: E402
from lm.types import Example  # noqa: E402
from tests.parity import tiny  # noqa: E402

DISTIL = dict(vocab_size=tiny.V, dim=tiny.D, n_layers=2, n_heads=4, hidden_dim=96)
ELECTRA = tiny.BERT | dict(embedding_size=24)
ROBERTA = tiny.BERT | dict(type_vocab_size=1)
MODERN = tiny.SIZES | dict(cls_token_id=1, sep_token_id=2, local_attention=6)
BLOOM = dict(vocab_size=tiny.V, hidden_size=tiny.D, n_layer=2, n_head=4, pad_token_id=0)
TRUNKS = {
    "LlamaModel": ("Llama", tiny.GQA),
    "Gemma2Model": ("Gemma2", tiny.GQA | dict(head_dim=16)),
    "GPT2Model": ("GPT2", tiny.GPT),
    "OpenAIGPTModel": ("OpenAIGPT", tiny.GPT),
    "GPTNeoXModel": ("GPTNeoX", tiny.SIZES),
    "BloomModel": ("Bloom", BLOOM),
    "PhiModel": ("Phi", tiny.SIZES),
    "OPTModel": ("OPT", tiny.OPT),
    "RobertaModel": ("Roberta", ROBERTA),
    "DistilBertModel": ("DistilBert", DISTIL),
    "ElectraModel": ("Electra", ELECTRA),
    "ModernBertModel": ("ModernBert", MODERN),
    "T5Model": ("T5", tiny.T5),
    "T5EncoderModel": ("T5", tiny.T5),
    "BartModel": ("Bart", tiny.BART),
}
CLASSIFIERS = {
    "BertForSequenceClassification": ("Bert", tiny.BERT),
    "BertForTokenClassification": ("Bert", tiny.BERT),
    "RobertaForSequenceClassification": ("Roberta", ROBERTA),
    "DistilBertForSequenceClassification": ("DistilBert", DISTIL),
    "ElectraForSequenceClassification": ("Electra", ELECTRA),
    "ModernBertForSequenceClassification": ("ModernBert", MODERN),
    "ModernBertForTokenClassification": ("ModernBert", MODERN),
    "LlamaForSequenceClassification": ("Llama", tiny.GQA),
    "LlamaForTokenClassification": ("Llama", tiny.GQA),
    "GPT2ForSequenceClassification": ("GPT2", tiny.GPT),
}
RENAMED = {
    "XLMRobertaForMaskedLM": ("XLMRoberta", ROBERTA),
    "CamembertForMaskedLM": ("Camembert", ROBERTA),
    "MT5ForConditionalGeneration": ("MT5", tiny.T5),
}


def made(cls: str, settings: tuple[str, dict], folder: Path, **more):
    """Saves their model, with noise added to its initial weights, and returns it."""
    torch.manual_seed(0)
    name, values = settings
    config = getattr(hf, f"{name}Config")(attn_implementation="eager", **values, **more)
    model = getattr(hf, cls)(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    model.save_pretrained(folder)
    return model


def outputs(imported, given: Example) -> np.ndarray:
    return np.asarray(jax.jit(Transformer(imported.model).apply)({"params": imported.params}, given))


def both(theirs, imported) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns our outputs, theirs, and the mask of positions to compare."""
    example, given, counted, _ = tiny.inputs_for(imported.model)
    with torch.no_grad():
        out = theirs(**given)
    expected = out.logits if "logits" in out else out.last_hidden_state
    return outputs(imported, example), expected.numpy(), counted


def goes_back(imported, folder: Path, target: Path) -> None:
    said = json.loads((folder / "config.json").read_text())
    # No tensor tells whether a ModernBERT classifies texts or tokens.
    also = {"architectures": said["architectures"]} if said["model_type"] == "modernbert" else {}
    conversion.write(imported.model, imported.params, target, family=said["model_type"], also=also)
    assert json.loads((target / "config.json").read_text())["architectures"] == said["architectures"]
    before, after = load_file(folder / "model.safetensors"), load_file(target / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(tensor.tobytes() == after[name].tobytes() for name, tensor in before.items())
    again = conversion.read(target)
    assert again.model.head == imported.model.head


@pytest.mark.parametrize("cls", TRUNKS)
def test_trunks_come_without_a_head(cls, tmp_path):
    theirs = made(cls, TRUNKS[cls], tmp_path / "theirs")
    imported = conversion.read(tmp_path / "theirs")
    assert imported.model.head is None
    if cls == "T5EncoderModel":
        assert imported.model.decoder is None
    ours, expected, counted = both(theirs, imported)
    np.testing.assert_allclose(ours[counted], expected[counted], atol=2e-5, rtol=0)
    goes_back(imported, tmp_path / "theirs", tmp_path / "back")


@pytest.mark.parametrize("cls", CLASSIFIERS)
def test_classifiers_keep_their_head_or_drop_it(cls, tmp_path):
    theirs = made(cls, CLASSIFIERS[cls], tmp_path / "theirs", num_labels=5)
    imported = conversion.read(tmp_path / "theirs")
    assert imported.model.head.outputs == 5
    ours, expected, counted = both(theirs, imported)
    if expected.ndim == 2:  # of a text: read at its first token, or by a decoder at its last
        rows = np.arange(len(ours))
        ours = ours[rows, counted.sum(1) - 1] if imported.model.decoder else ours[:, 0]
        np.testing.assert_allclose(ours, expected, atol=2e-5, rtol=0)
    else:
        np.testing.assert_allclose(ours[counted], expected[counted], atol=2e-5, rtol=0)
    assert np.abs(expected).max() > 0.1
    goes_back(imported, tmp_path / "theirs", tmp_path / "back")
    trunk = conversion.read(tmp_path / "theirs", drop=r"(pre_)?classifier\..*|score\..*|head\..*")
    assert trunk.model.head is None
    with torch.no_grad():
        example, given, counted, _ = tiny.inputs_for(trunk.model)
        hidden = theirs.base_model(**given).last_hidden_state.numpy()
    np.testing.assert_allclose(outputs(trunk, example)[counted], hidden[counted], atol=2e-5, rtol=0)


def test_a_classifier_of_tokens_stays_one_through_the_commands(tmp_path):
    made("ModernBertForTokenClassification", ("ModernBert", MODERN), tmp_path / "theirs", num_labels=5)
    assert main(["from_hf", str(tmp_path / "theirs"), str(tmp_path / "ours")]) == 0
    assert main(["to_hf", str(tmp_path / "ours"), str(tmp_path / "back")]) == 0
    assert json.loads((tmp_path / "back" / "config.json").read_text())["architectures"] == ["ModernBertForTokenClassification"]


@pytest.mark.parametrize("cls", RENAMED)
def test_families_under_another_name_are_read(cls, tmp_path):
    theirs = made(cls, RENAMED[cls], tmp_path / "theirs")
    if cls.startswith("MT5"):  # transformers ties what the released checkpoints do not
        theirs.lm_head.weight = torch.nn.Parameter(0.2 * torch.randn(tiny.V, tiny.D))
        theirs.save_pretrained(tmp_path / "theirs")
    imported = conversion.read(tmp_path / "theirs")
    ours, expected, counted = both(theirs, imported)
    np.testing.assert_allclose(ours[counted], expected[counted], atol=2e-5, rtol=0)
    goes_back(imported, tmp_path / "theirs", tmp_path / "back")


def rewritten(folder: Path, target: Path, name, **changes) -> Path:
    """Copies a checkpoint, renaming tensors by `name` (None: left out) and changing config.json (None: removed)."""
    target.mkdir()
    named = {name(k): v for k, v in load_file(folder / "model.safetensors").items()}
    save_file({k: v for k, v in named.items() if k}, target / "model.safetensors", metadata={"format": "pt"})
    said = json.loads((folder / "config.json").read_text()) | changes
    (target / "config.json").write_text(json.dumps({k: v for k, v in said.items() if v is not None}))
    return target


OLD_NAMES = {
    "gamma and beta": (
        "bert",
        lambda k: k.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"),
    ),
    "OPT's decoder.": ("opt", lambda k: k.removeprefix("model.")),
    "GPT-2 without a prefix": ("gpt2", lambda k: k.removeprefix("transformer.")),
    "GPT without a prefix": ("gpt1", lambda k: k.removeprefix("transformer.")),
    "BLOOM without a prefix": ("bloom", lambda k: k.removeprefix("transformer.")),
    "only the logits' table is kept": ("gemma2", lambda k: k.replace("model.embed_tokens", "lm_head")),
    "only the encoder's table is kept": ("t5", lambda k: k.replace("shared.", "encoder.embed_tokens.")),
}


@pytest.mark.parametrize("case", OLD_NAMES)
def test_older_names_are_the_same_model(case, tmp_path):
    which, name = OLD_NAMES[case]
    tiny.CASES[which]().save_pretrained(tmp_path / "theirs")
    wanted = conversion.read(tmp_path / "theirs")
    got = conversion.read(rewritten(tmp_path / "theirs", tmp_path / "old", name))
    assert got.model == wanted.model
    jax.tree.map(np.testing.assert_array_equal, got.params, wanted.params)


def test_headless_untied_checkpoints_are_trunks(tmp_path):
    """Only if config.json names no class: with a class that has a head, the head's tensor is missing."""
    tiny.CASES["llama"]().save_pretrained(tmp_path / "theirs")
    trunk = lambda k: None if k == "lm_head.weight" else k.removeprefix("model.")
    assert conversion.read(rewritten(tmp_path / "theirs", tmp_path / "bare", trunk, architectures=None)).model.head is None
    with pytest.raises(UserError, match=r"missing: lm_head.weight"):
        conversion.read(rewritten(tmp_path / "theirs", tmp_path / "cut", lambda k: None if k == "lm_head.weight" else k))


def test_a_classifier_of_other_shape_says_how_to_leave_it_out(tmp_path):
    made("BartForSequenceClassification", ("Bart", tiny.BART), tmp_path / "theirs")
    with pytest.raises(UserError) as error:
        conversion.read(tmp_path / "theirs")
    regex = str(error.value).split("--drop '")[1].split("'")[0]
    assert "classification_head" in regex
    imported = conversion.read(tmp_path / "theirs", drop=regex)
    assert imported.model.head is None and imported.model.architecture == "encoder_decoder"


@pytest.mark.parametrize("case,near", [("llama", "llama"), ("bert", "bert"), ("gpt2", "gpt2"), ("t5", "t5"), ("opt", "opt")])
def test_an_unknown_model_type_names_the_family_that_fits(case, near, tmp_path):
    """By the file's contents, not by a similar name."""
    tiny.CASES[case]().save_pretrained(tmp_path / "theirs")
    for name in ("yi", "gpt_neo", "mbart", 7):
        with pytest.raises(UserError, match=f"did you mean '{near}'"):
            conversion.read(rewritten(tmp_path / "theirs", tmp_path / f"as {name}", lambda k: k, model_type=name))


def test_a_file_that_no_family_fits_names_none(tmp_path):
    """GPT-Neo has a name like GPT-NeoX's and is a different model."""
    sizes = dict(vocab_size=tiny.V, hidden_size=tiny.D, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]])
    made("GPTNeoForCausalLM", ("GPTNeo", sizes), tmp_path / "theirs")
    with pytest.raises(UserError, match="'gpt_neo' of config.json is not known, and no known family fits this file"):
        conversion.read(tmp_path / "theirs")


def test_transformers_runs_a_gemma2_without_windows(tmp_path):
    full = dict(layer_types=["full_attention"] * 2)
    theirs = made("Gemma2ForCausalLM", ("Gemma2", tiny.GQA | dict(head_dim=16)), tmp_path / "theirs", **full)
    imported = conversion.read(tmp_path / "theirs")
    conversion.write(imported.model, imported.params, tmp_path / "back", family="gemma2", also=dict(pad_token_id=0))
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path / "back", attn_implementation="eager").eval()
    _, given, _, _ = tiny.inputs_for(imported.model)
    with torch.no_grad():
        np.testing.assert_allclose(again(**given).logits.numpy(), theirs(**given).logits.numpy(), atol=1e-5)


def test_sizes_left_out_are_named(tmp_path):
    """The file's sizes differ from transformers' defaults, and config.json omits them."""
    tiny.CASES["llama"]().save_pretrained(tmp_path / "theirs")
    with pytest.raises(UserError, match="not in config.json, so by transformers' default: intermediate_size=11008"):
        conversion.read(rewritten(tmp_path / "theirs", tmp_path / "short", lambda k: k, intermediate_size=None))
