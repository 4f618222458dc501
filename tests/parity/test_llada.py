"""LLaDA's published config and tensor names: logits of transformers' LLaMA without a causal mask, and the likelihood bound."""

import itertools
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

import jax  # noqa: E402
from safetensors.torch import load_file, save_file  # noqa: E402

from lm import config, conversion  # noqa: E402
from lm.conversion.tables import canonical  # noqa: E402
from lm.errors import UserError  # noqa: E402
from lm.evaluation.bound import bound, each_number  # noqa: E402
from lm.models.transformer import Transformer  # noqa: E402
from lm.objectives.dummy_vocabulary import DummyVocabulary  # noqa: E402
from lm.types import Example, TokenStream  # noqa: E402
from tests.unit.conversion.test_published import PUBLISHED  # noqa: E402

V, D, BOS, MASK = 61, 64, 1, 4
SIZES = dict(vocab_size=V, embedding_size=V, d_model=D, n_heads=4, n_kv_heads=2, n_layers=2, mlp_hidden_size=96)
THEIRS = {  # of LLaDA's code -> of LLaMA's
    "model.transformer.wte": "model.embed_tokens",
    "model.transformer.ln_f": "model.norm",
    "model.transformer.ff_out": "lm_head",
}
LAYER = {f"{x}_proj": f"self_attn.{x}_proj" for x in "qkv"} | {
    "attn_out": "self_attn.o_proj",
    "attn_norm": "input_layernorm",
    "ff_norm": "post_attention_layernorm",
    "ff_proj": "mlp.gate_proj",
    "up_proj": "mlp.up_proj",
    "ff_out": "mlp.down_proj",
}
for n, (ours, theirs) in itertools.product(range(2), LAYER.items()):
    THEIRS[f"model.transformer.blocks.{n}.{ours}"] = f"model.layers.{n}.{theirs}"


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """transformers' LLaMA with random weights, and a folder with them under LLaDA's names."""
    torch.manual_seed(0)
    names = dict(hidden_size=D, num_attention_heads=4, num_key_value_heads=2, num_hidden_layers=2, intermediate_size=96)
    rope = dict(rope_type="default", rope_theta=500_000.0)
    settings = hf.LlamaConfig(**names, vocab_size=V, rms_norm_eps=1e-5, rope_parameters=rope, attn_implementation="eager")
    model = hf.LlamaForCausalLM(settings).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    folder = tmp_path_factory.mktemp("llada")
    (folder / "config.json").write_text(json.dumps(PUBLISHED["LLaDA-8B-Base"] | SIZES))
    tensors = model.state_dict()
    save_file({f"{a}.weight": tensors[f"{b}.weight"].clone() for a, b in THEIRS.items()}, folder / "model.safetensors")
    return model, folder


def both_sides(model, tokens: np.ndarray) -> np.ndarray:
    """float32 [B, T, V]: logits of transformers' model where each token sees all others."""
    seen = torch.zeros(len(tokens), 1, tokens.shape[1], tokens.shape[1])  # added to the scores of attention
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens).long(), attention_mask=seen).logits.numpy()


def test_logits_equal(saved):
    theirs, folder = saved
    imported = conversion.read(folder)
    assert imported.model.encoder and not imported.model.decoder
    tokens = np.random.default_rng(0).integers(0, V, (3, 11)).astype(np.int32)
    positions = np.broadcast_to(np.arange(11, dtype=np.int32), tokens.shape)
    example = Example(TokenStream(tokens, positions, np.ones_like(tokens)), None, None, None)
    got = jax.jit(lambda p: Transformer(imported.model).apply({"params": p}, example))(imported.params)
    expected = both_sides(theirs, tokens)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(np.asarray(got), expected, atol=2e-5, rtol=0)
    causal = theirs(input_ids=torch.tensor(tokens).long()).logits.detach().numpy()
    assert np.abs(causal - expected)[:, :-1].max() > 0.1  # the mask makes a difference


def test_written_back_byte_for_byte(saved, tmp_path):
    _, folder = saved
    imported = conversion.read(folder)
    assert conversion.write(imported.model, imported.params, tmp_path, family=None) == "llada"
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert canonical(conversion.read(tmp_path).model) == canonical(imported.model)


def test_likelihood_is_that_of_the_papers_formula(saved):
    """Its equation 6 (l of L tokens masked, their nats times L / l, averaged over l and sets of masks), in full: all sets."""
    theirs, folder = saved
    imported = conversion.read(folder)
    text = np.array([BOS, 20, 31, 42, 9], np.int32)
    places, total = range(1, len(text)), 0.0
    for size in range(1, len(text)):
        sets = list(itertools.combinations(places, size))
        rows = np.tile(text, (len(sets), 1))
        for row, chosen in zip(rows, sets, strict=True):
            row[list(chosen)] = MASK
        logits = both_sides(theirs, rows)
        logits[..., MASK] = -np.inf  # never the answer
        logp = torch.log_softmax(torch.tensor(logits), -1).numpy()
        nats = [-logp[i, list(chosen), text[list(chosen)]].sum() for i, chosen in enumerate(sets)]
        total += float(np.mean(nats)) / size
    special = DummyVocabulary(V)
    assert (special.bos_id, special.mask_id) == (BOS, MASK)
    found = bound(
        Transformer(imported.model),
        imported.params,
        config.MaskedDiffusion(),
        special,
        [text],
        each_number,
        draws=100,
    )
    assert found.error == 0.0
    assert found.nats[0] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(block_type="sequential"), "block_type"),
        (dict(include_qkv_bias=True), "include_qkv_bias"),
        (dict(embedding_size=V - 1), "embedding_size"),
        (dict(clip_qkv=6.0), "clip_qkv"),
    ],
)
def test_another_switch_of_their_code_is_refused_by_name(saved, tmp_path, changes, said):
    _, folder = saved
    settings = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(settings | changes))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match=said):
        conversion.read(tmp_path)


def test_a_file_without_the_switches_is_not_taken_for_llada(saved, tmp_path):
    """Their config class has another architecture by default."""
    _, folder = saved
    settings = json.loads((folder / "config.json").read_text())
    del settings["block_type"]
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
    with pytest.raises(UserError, match="block_type='sequential'"):
        conversion.read(tmp_path)
