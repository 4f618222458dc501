"""Logits equal those of tiny random models of transformers, in float32; positions equal their functions.

A family's table names, for each module of ours, the one of theirs; `L` stands for a layer. Every weight of theirs must
be taken, every one of ours given.
"""

import re

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

from flax import linen as nn  # noqa: E402

from lm.config import Alibi, Attention, Block, Buckets, Embed, Head, Mlp, Model, Norm, Rope, Stack  # noqa: E402
from lm.models import positions  # noqa: E402
from lm.models.presets.bert import bert  # noqa: E402
from lm.models.presets.gpt import gpt2  # noqa: E402
from lm.models.presets.t5 import t5  # noqa: E402
from lm.models.transformer import Transformer  # noqa: E402
from lm.types import Example, TokenStream  # noqa: E402

V, D, LAYERS, T = 61, 128, 4, 14
SHORT = dict(vocab_size=V, hidden_size=D, num_hidden_layers=LAYERS, max_position_embeddings=32)
SIZES = SHORT | dict(num_attention_heads=4, intermediate_size=96)
GQA = SIZES | dict(num_key_value_heads=2, pad_token_id=0)


def decoder(block: Block, position=None, *, pattern="L", head=Head(tied=False), embed=Embed(), **blocks) -> Model:  # noqa: B008
    return Model(V, D, decoder=Stack(LAYERS, {"L": block, **blocks}, pattern, position), head=head, embed=embed)


def llama(window=None, qk_norm=False, eps=1e-6) -> Block:
    attention = Attention(4, 2, head_dim=32, window=window, qk_norm=Norm("rms", eps=eps) if qk_norm else None)
    return Block(attention, Mlp(96, "silu", gated=True), Norm("rms", eps=eps))


def gemma(window) -> Block:
    attention = Attention(4, 2, 32, softcap=50.0, window=window, scale=64**-0.5)
    return Block(attention, Mlp(96, "gelu_tanh", gated=True), Norm("rms", eps=1e-6), ("in", "res"))


def names(stack: str, prefix: str, **modules: str) -> dict[str, str]:
    """`{"decoder/L/attention/query": "layers.{}.self_attn.q"}` from `attention__query="self_attn.q"`."""
    return {f"{stack}/L/{ours.replace('__', '/')}": f"{prefix}.{theirs}" for ours, theirs in modules.items()}


QKV = {f"attention__{ours}": f"self_attn.{x}_proj" for ours, x in dict(query="q", key="k", value="v", out="o").items()}
SWIGLU = dict(ffn__gate="mlp.up_proj", ffn__up="mlp.gate_proj", ffn__down="mlp.down_proj")
PRE = dict(attention_in_norm="input_layernorm", ffn_in_norm="post_attention_layernorm")
LLAMA = names("decoder", "model.layers.{}", **QKV, **SWIGLU, **PRE) | {
    "embed/tokens": "model.embed_tokens",
    "decoder/final_norm": "model.norm",
    "head/out": "lm_head",
}
QK_NORM = {f"attention__{x}_norm": f"self_attn.{x[0]}_norm" for x in ("query", "key")}
GEMMA_NORMS = dict(
    attention_in_norm="input_layernorm",
    attention_res_norm="post_attention_layernorm",
    ffn_in_norm="pre_feedforward_layernorm",
    ffn_res_norm="post_feedforward_layernorm",
)
GEMMA = LLAMA | names("decoder", "model.layers.{}", **GEMMA_NORMS)
FUSED = {f"attention__{x}": f"attention.{x}" for x in ("query", "key", "value")}
GPT2 = names(
    "decoder",
    "transformer.h.{}",
    **FUSED,
    attention__out="attn.c_proj",
    ffn__up="mlp.c_fc",
    ffn__down="mlp.c_proj",
    attention_in_norm="ln_1",
    ffn_in_norm="ln_2",
) | {
    "embed/tokens": "transformer.wte",
    "embed/decoder_positions": "transformer.wpe",
    "decoder/final_norm": "transformer.ln_f",
}
FFN_4H = dict(ffn__up="mlp.dense_h_to_4h", ffn__down="mlp.dense_4h_to_h")
NEOX = names("decoder", "gpt_neox.layers.{}", **FUSED, **FFN_4H, **PRE, attention__out="attention.dense") | {
    "embed/tokens": "gpt_neox.embed_in",
    "decoder/final_norm": "gpt_neox.final_layer_norm",
    "head/out": "lm_head",
}
BLOOM = names("decoder", "transformer.h.{}", **FUSED, **FFN_4H, **PRE, attention__out="self_attention.dense") | {
    "embed/tokens": "transformer.word_embeddings",
    "embed/decoder_norm": "transformer.word_embeddings_layernorm",
    "decoder/final_norm": "transformer.ln_f",
}
PHI = names(
    "decoder",
    "model.layers.{}",
    **QKV | dict(attention__out="self_attn.dense"),
    ffn__up="mlp.fc1",
    ffn__down="mlp.fc2",
    block_in_norm="input_layernorm",
) | {
    "embed/tokens": "model.embed_tokens",
    "decoder/final_norm": "model.final_layernorm",
    "head/out": "lm_head",
    "head": "lm_head",
}
BERT = names(
    "encoder",
    "bert.encoder.layer.{}",
    **{f"attention__{x}": f"attention.self.{x}" for x in ("query", "key", "value")},
    attention__out="attention.output.dense",
    attention_out_norm="attention.output.LayerNorm",
    ffn__up="intermediate.dense",
    ffn__down="output.dense",
    ffn_out_norm="output.LayerNorm",
) | {
    "embed/tokens": "bert.embeddings.word_embeddings",
    "embed/encoder_positions": "bert.embeddings.position_embeddings",
    "embed/types": "bert.embeddings.token_type_embeddings",
    "embed/encoder_norm": "bert.embeddings.LayerNorm",
    "head/transform": "cls.predictions.transform.dense",
    "head/transform_norm": "cls.predictions.transform.LayerNorm",
    "head": "cls.predictions",
}


def t5_names(stack: str, *parts: tuple[str, str]) -> dict[str, str]:
    modules = {f"{ours}__{k}": f"layer.{i}.{theirs}.{k[0]}" for i, (ours, theirs) in enumerate(parts) for k in ATTENTION}
    modules |= {f"{ours}_in_norm": f"layer.{i}.layer_norm" for i, (ours, _) in enumerate(parts)}
    last = f"layer.{len(parts)}"
    ffn = dict(ffn__up=f"{last}.DenseReluDense.wi", ffn__down=f"{last}.DenseReluDense.wo", ffn_in_norm=f"{last}.layer_norm")
    bias = {f"{stack}/position_bias": f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"}
    return names(stack, f"{stack}.block.{{}}", **modules, **ffn) | bias | {f"{stack}/final_norm": f"{stack}.final_layer_norm"}


ATTENTION = ("query", "key", "value", "out")
T5 = (
    t5_names("encoder", ("attention", "SelfAttention"))
    | t5_names("decoder", ("attention", "SelfAttention"), ("cross", "EncDecAttention"))
    | {"embed/tokens": "shared"}
)

SCALED = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0)
SCALED |= dict(original_max_position_embeddings=32, rope_theta=100.0)
BIASED = dict(bias=True, out_bias=True)
GELU4 = Mlp(4 * D, "gelu_tanh", bias=True)
EAGER = dict(attn_implementation="eager")

CASES = {
    "gpt2": (
        lambda: hf.GPT2LMHeadModel(hf.GPT2Config(**SHORT, n_head=2, n_inner=None, **EAGER)),
        gpt2(LAYERS, D, vocab_size=V, max_length=32, dropout=0.0),
        GPT2,
    ),
    "llama": (
        lambda: hf.LlamaForCausalLM(hf.LlamaConfig(**GQA, rope_parameters=SCALED, **EAGER)),
        decoder(llama(), Rope(theta=100.0, factor=8.0, original_length=32)),
        LLAMA,
    ),
    "mistral": (
        lambda: hf.MistralForCausalLM(hf.MistralConfig(**GQA, sliding_window=5, **EAGER)),
        decoder(llama(window=5), Rope()),
        LLAMA,
    ),
    "qwen3": (
        lambda: hf.Qwen3ForCausalLM(hf.Qwen3Config(**GQA, head_dim=32, rms_norm_eps=1e-5, **EAGER)),
        decoder(llama(qk_norm=True, eps=1e-5), Rope()),
        LLAMA | names("decoder", "model.layers.{}", **QK_NORM),
    ),
    "gemma2": (
        lambda: hf.Gemma2ForCausalLM(hf.Gemma2Config(**GQA, sliding_window=5, query_pre_attn_scalar=64, head_dim=32)),
        decoder(gemma(5), Rope(), pattern="LG", G=gemma(None), head=Head(softcap=30.0), embed=Embed(scale=D**0.5)),
        GEMMA,
    ),
    "neox": (
        lambda: hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**SIZES, rotary_pct=0.25, use_parallel_residual=False, **EAGER)),
        decoder(Block(Attention(4, **BIASED), Mlp(96, "gelu", bias=True)), Rope(fraction=0.25)),
        NEOX,
    ),
    "phi": (
        lambda: hf.PhiForCausalLM(hf.PhiConfig(**SIZES, partial_rotary_factor=0.5, **EAGER)),
        decoder(
            Block(Attention(4, **BIASED), Mlp(96, "gelu_tanh", bias=True), parallel="shared"),
            Rope(fraction=0.5),
            head=Head(tied=False, bias=True),
        ),
        PHI,
    ),
    "bloom": (
        lambda: hf.BloomForCausalLM(hf.BloomConfig(**SHORT, n_head=4, **EAGER)),
        decoder(Block(Attention(4, **BIASED), GELU4), Alibi(), head=Head(), embed=Embed(norm=Norm())),
        BLOOM,
    ),
    "bert": (
        lambda: hf.BertForMaskedLM(hf.BertConfig(**SHORT, num_attention_heads=2, intermediate_size=4 * D, **EAGER)),
        bert(LAYERS, D, vocab_size=V, max_length=32, dropout=0.0),
        BERT,
    ),
    "t5": (
        lambda: hf.T5ForConditionalGeneration(
            hf.T5Config(vocab_size=V, d_model=D, d_ff=96, num_layers=LAYERS, num_heads=3, decoder_start_token_id=0)
        ),
        t5(LAYERS, D, 3, 96, vocab_size=V, dropout=0.0),
        T5,
    ),
}


def unfused(name: str, state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Splits fused query, key and value, and transposes matrices to [outputs, inputs]."""
    split = {}
    for key, w in state.items():
        if name == "gpt2" and w.ndim == 2 and ".h." in key:
            w = w.T
        if "c_attn" in key:
            parts = np.split(w, 3)
        elif "query_key_value" in key:
            parts = np.moveaxis(w.reshape(4, 3, D // 4, -1), 1, 0).reshape(3, D, *w.shape[1:])
        else:
            split[key] = w + 1 if name == "gemma2" and "norm" in key else w
            continue
        stem, leaf = re.match(r"(.*)\.\w+\.\w+\.(\w+)", key).groups()
        split |= {f"{stem}.attention.{x}.{leaf}": p for x, p in zip(("query", "key", "value"), parts, strict=True)}
    return split


def with_their_weights(params, table: dict[str, str], state: dict[str, np.ndarray], pattern: str):
    """Returns our parameters with their weights."""
    state = dict(state)

    def one(path, leaf):
        path = jax.tree_util.keystr(path, simple=True, separator="/")
        module, _, kind = path.rpartition("/")
        found = re.search(r"group_(\d+)/block_(\d+)", path)
        layer = int(found[1]) * len(pattern) + int(found[2]) if found else None
        theirs = table[re.sub(r"group_\d+/block_\d+", "L", module)].format(layer)
        w = state.pop(f"{theirs}.{'bias' if kind == 'bias' else 'weight'}")
        return (w.T if kind == "kernel" else w).reshape(leaf.shape)

    tree = jax.tree_util.tree_map_with_path(one, params)
    assert not state, f"not taken: {sorted(state)}"
    return tree


def stream(tokens: np.ndarray, seen: np.ndarray) -> TokenStream:
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return TokenStream(tokens, positions, seen.astype(np.int32))


@pytest.mark.parametrize("name", CASES)
def test_logits_equal(name):
    make, model, table = CASES[name]
    torch.manual_seed(0)
    theirs = make().eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(0.05 * torch.randn_like(p))
    state = {k: p.detach().numpy() for k, p in theirs.named_parameters()}  # tied weights appear once

    rng = np.random.default_rng(0)
    tokens = rng.integers(1, V, (2, T)).astype(np.int32)
    padded = model.encoder is not None
    seen = np.arange(T) < np.array([[T], [T - 5 if padded else T]])
    inputs = dict(input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(seen).long())
    if model.architecture == "encoder_decoder":
        targets = rng.integers(1, V, (2, 9)).astype(np.int32)
        inputs |= dict(decoder_input_ids=torch.tensor(targets).long())
        example = Example(stream(tokens, seen), stream(targets, np.ones_like(targets)), None, None)
        counted = np.ones((2, 9), bool)
    else:
        one = stream(tokens, seen)
        example = Example(one, None, None, None) if model.encoder else Example(None, one, None, None)
        counted = seen
    with torch.no_grad():
        expected = theirs(**inputs).logits.numpy()

    ours = Transformer(model)
    shapes = nn.unbox(jax.eval_shape(ours.init, jax.random.key(0), example))["params"]
    stack = model.encoder or model.decoder
    params = with_their_weights(shapes, table, unfused(name, state), stack.pattern)
    got = np.asarray(jax.jit(ours.apply)({"params": params}, example))
    assert np.abs(expected[counted]).max() > 0.5  # not all zeros
    np.testing.assert_allclose(got[counted], expected[counted], atol=2e-5, rtol=0)


def test_scaled_rope_frequencies():
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = SCALED | dict(original_max_position_embeddings=8192, rope_theta=500_000.0)
    c = hf.LlamaConfig(hidden_size=4096, num_attention_heads=32, rope_parameters=scaling)
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](c, device="cpu")
    ours = positions.rope_frequencies(Rope(theta=500_000.0, factor=8.0, original_length=8192), 128)
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-5)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("count,furthest", [(32, 128), (16, 40), (8, 1000)])
def test_t5_buckets(causal, count, furthest):
    from transformers.models.t5.modeling_t5 import T5Attention

    distance = np.arange(-300, 301)
    key = torch.tensor(-distance)  # theirs is key - query
    theirs = T5Attention._relative_position_bucket(key, not causal, count, furthest).numpy()
    ours = positions.relative_bucket(distance, Buckets(count, furthest), causal=causal)
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("heads", [1, 2, 3, 6, 8, 12, 25, 112])
def test_alibi_slopes(heads):
    from transformers.models.bloom.modeling_bloom import build_alibi_tensor

    theirs = build_alibi_tensor(torch.ones(1, 2), heads, torch.float32)[:, 0, 1].numpy()
    np.testing.assert_allclose(positions.alibi_slopes(heads), theirs, rtol=1e-6)
