"""Adapters against Hugging Face's peft: files read and written, the forward pass and the merged weights."""

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import linen as nn
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

from lm import config
from lm.conversion import read
from lm.conversion.adapters import CONFIG, PREFIX, WEIGHTS, described, with_adapter
from lm.errors import UserError
from lm.models import adapters
from lm.models.transformer import Transformer, boxed_params
from tests.parity.tiny import CASES, inputs_for

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # by peft

MODELS = {  # name -> modules of theirs, as a list, a regular expression, and all
    "llama": (["q_proj", "v_proj", "down_proj"], r".*\.(k_proj|o_proj|gate_proj)", "all-linear"),
    "gpt2": (["c_attn", "c_proj", "c_fc"], r".*\.c_attn", "all-linear"),
    "bert": (["query", "value", "dense"], r".*layer\.1\..*\.(query|key)", "all-linear"),
    "t5": (["q", "v", "wo"], r"decoder\..*\.(k|wi)", "all-linear"),
}
KINDS = {
    "lora": {},
    "rslora": dict(use_rslora=True),
    "dora": dict(use_dora=True),
    "patterns": dict(rank_pattern={r".*\.0\..*": 2}, alpha_pattern={r".*\.1\..*": 5}),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request, tmp_path_factory):
    """A tiny model of theirs, its folder, and the same one of ours."""
    torch.manual_seed(0)
    model, folder = CASES[request.param]().eval(), tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return request.param, folder, read(folder)


def reopened(folder):
    """A model of theirs as it was saved: peft changes the one that it is given."""
    import transformers

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    return getattr(transformers, name).from_pretrained(folder, attn_implementation="eager").eval()


def randomised(model):
    """Adapters far from their start, where B is 0."""
    torch.manual_seed(1)
    for name, x in model.named_parameters():
        if "lora_" in name:
            x.data += 0.1 * torch.randn_like(x).abs() if "magnitude" in name else 0.1 * torch.randn_like(x)
    return model


def close(imported, params, other):
    """That both give the same logits, up to what float32 leaves of two orders of summation (the weights are within 1e-6)."""
    example, given, seen, _ = inputs_for(imported.model)
    with torch.no_grad():
        theirs = other(**given).logits.numpy()
    ours = jax.jit(Transformer(imported.model).apply)({"params": jax.tree.map(jnp.asarray, params)}, example)
    assert np.abs(theirs).max() > 0.3
    np.testing.assert_allclose(np.asarray(ours)[seen], theirs[seen], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("modules", range(3))
def test_a_file_of_theirs_gives_their_model(pair, kind, modules, tmp_path):
    name, folder, imported = pair
    if modules and kind != "lora":
        pytest.skip("which modules, and what each computes, are independent")
    targets, conv1d = MODELS[name][modules], name == "gpt2"
    tuned = randomised(
        peft.get_peft_model(
            reopened(folder), peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, fan_in_fan_out=conv1d, **KINDS[kind])
        )
    )
    tuned.save_pretrained(tmp_path)
    params = with_adapter(imported.model, imported.params, tmp_path, imported.family)
    close(imported, params, tuned)
    merged = tuned.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    found, wanted = flatten_dict(params, sep="/"), flatten_dict(read(tmp_path / "merged").params, sep="/")
    before = flatten_dict(imported.params, sep="/")
    assert sum(not np.array_equal(found[path], before[path]) for path in found) >= 2
    for path in wanted:
        np.testing.assert_allclose(found[path], wanted[path], atol=1e-6, err_msg=path)


@pytest.mark.parametrize("lora", [dict(), dict(scale="alpha/sqrt(rank)", dora=True)], ids=str)
def test_a_file_of_ours_gives_our_model(pair, lora, tmp_path):
    name, folder, imported = pair
    lora = config.Lora(rank=3, alpha=5.0, **lora)
    boxed = boxed_params(Transformer(imported.model))
    own = nn.unbox(adapters.init(jax.random.key(0), boxed, lora))
    rng = np.random.default_rng(0)
    own = jax.tree.map(lambda x: np.asarray(x + 0.1 * np.abs(rng.normal(size=x.shape)), np.float32), own)
    params = adapters.added(imported.params, own, boxed, lora)
    settings, arrays = described(imported.model, lora, own, {}, params, imported.family)
    (tmp_path / CONFIG).write_text(json.dumps(settings))
    save_file(arrays, tmp_path / WEIGHTS, metadata={"format": "pt"})
    tuned = peft.PeftModel.from_pretrained(reopened(folder), tmp_path).eval()
    close(imported, params, tuned)
    again = with_adapter(imported.model, imported.params, tmp_path, imported.family)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), again, params)


def test_a_layer_that_was_trained_in_full_and_embeddings_are_read(tmp_path):
    torch.manual_seed(0)
    CASES["llama"]().save_pretrained(tmp_path / "base")
    imported = read(tmp_path / "base")
    settings = peft.LoraConfig(r=4, target_modules=["embed_tokens", "q_proj"], modules_to_save=["lm_head"])
    tuned = randomised(peft.get_peft_model(reopened(tmp_path / "base"), settings))
    tuned.base_model.model.lm_head.modules_to_save["default"].weight.data += 1.0
    tuned.save_pretrained(tmp_path / "adapter", save_embedding_layers=True)  # as if tokens had been added
    params = with_adapter(imported.model, imported.params, tmp_path / "adapter", "llama")
    close(imported, params, tuned)


TIED = "llama-biased-tied"


def test_an_adapter_of_an_embedding_that_is_also_the_head_is_one_with_its_ties_alone(tmp_path):
    """Theirs and ours both ways; without `ensure_weight_tying` peft's is of the input alone."""
    torch.manual_seed(0)
    CASES[TIED]().save_pretrained(tmp_path / "base")
    imported = read(tmp_path / "base")
    for tying, folder in ((True, tmp_path / "both"), (False, tmp_path / "input")):
        settings = peft.LoraConfig(r=4, lora_alpha=6, target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=tying)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # peft's, of what it does not tie
            tuned = peft.get_peft_model(reopened(tmp_path / "base"), settings)
            randomised(tuned).save_pretrained(folder)
        if tying:
            params = with_adapter(imported.model, imported.params, folder, imported.family)
            close(imported, params, tuned)
    with pytest.raises(UserError, match="ensure_weight_tying the adapter is of the input alone"):
        with_adapter(imported.model, imported.params, tmp_path / "input", imported.family)

    lora = config.Lora(rank=3, modules=("embed/tokens", "value"))
    boxed = boxed_params(Transformer(imported.model))
    rng = np.random.default_rng(0)
    own = nn.unbox(adapters.init(jax.random.key(0), boxed, lora))
    own = jax.tree.map(lambda x: np.asarray(x + 0.1 * rng.normal(size=x.shape), np.float32), own)
    params = adapters.added(imported.params, own, boxed, lora)
    about, arrays = described(imported.model, lora, own, {}, params, imported.family)
    (tmp_path / "ours").mkdir()
    (tmp_path / "ours" / CONFIG).write_text(json.dumps(about), encoding="utf-8")
    save_file(arrays, tmp_path / "ours" / WEIGHTS, metadata={"format": "pt"})
    close(imported, params, peft.PeftModel.from_pretrained(reopened(tmp_path / "base"), tmp_path / "ours").eval())
    again = with_adapter(imported.model, imported.params, tmp_path / "ours", imported.family)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), again, params)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """An adapter of theirs, and the model here that it is of."""
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    CASES["llama"]().save_pretrained(folder / "base")
    peft.get_peft_model(reopened(folder / "base"), peft.LoraConfig(r=4)).save_pretrained(folder / "adapter")
    return folder / "adapter", read(folder / "base")


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(peft_type="IA3"), "peft_type='IA3'"),
        (dict(bias="lora_only"), "bias='lora_only'"),
        (dict(init_lora_weights="pissa"), "init_lora_weights='pissa'"),
        (dict(alora_invocation_tokens=[1]), "alora_invocation_tokens"),
        (dict(lora_alpha=None), "lora_alpha"),
    ],
)
def test_an_adapter_that_computes_something_else_is_refused(llama, changes, named, tmp_path):
    (tmp_path / CONFIG).write_text(json.dumps(json.loads((llama[0] / CONFIG).read_text()) | changes))
    (tmp_path / WEIGHTS).write_bytes((llama[0] / WEIGHTS).read_bytes())
    with pytest.raises(UserError, match=named):
        with_adapter(llama[1].model, llama[1].params, tmp_path, "llama")


@pytest.mark.parametrize(
    ("name", "shape", "named"),
    [
        ("model.layers.7.self_attn.q_proj.lora_A.weight", (4, 64), "no such matrix"),
        ("model.layers.0.mlp.up_proj.lora_A.weight", (4, 64), "no pair"),
        ("model.layers.0.self_attn.q_proj.lora_A.weight", (4, 63), "its matrix"),
        ("model.embed_tokens.weight", (65, 64), "in the base"),  # of tokens that were added outside of the adapter
    ],
)
def test_a_tensor_that_has_no_place_is_refused(llama, name, shape, named, tmp_path):
    tensors = load_file(llama[0] / WEIGHTS) | {PREFIX + name: np.zeros(shape, np.float32)}
    save_file(tensors, tmp_path / WEIGHTS)
    (tmp_path / CONFIG).write_bytes((llama[0] / CONFIG).read_bytes())
    with pytest.raises(UserError, match=named):
        with_adapter(llama[1].model, llama[1].params, tmp_path, "llama")
