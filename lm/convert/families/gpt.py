"""GPT-1, GPT-2 and GPT-3's layout, StarCoder (`gpt_bigcode`) and StarCoder2."""

from typing import Any

from lm.config import Attention, Block, Head, Learned, Mlp, Model, Norm, Rope, Stack
from lm.convert.families.llama import block_of, mlp_of, read_rope, sizes, windows, write_rope
from lm.convert.tables import Family, Hf, Layout, Names, activation, fused, layers, projections, their_activation


def read(c: Hf, *, norm_at: Any = ("in",), kv: int | None = None, act: str = "activation_function") -> Model:
    width, heads = c("n_embd"), c("n_head")
    c.only("scale_attn_weights", True), c.only("scale_attn_by_inverse_layer_idx", False)
    c.only("reorder_and_upcast_attn", False)
    hidden = c("n_inner", None) or 4 * width
    attention = Attention(heads, kv, bias=True, out_bias=True)
    block = Block(attention, Mlp(hidden, activation(c, act), bias=True), Norm(eps=c("layer_norm_epsilon", 1e-5)), norm_at)
    stack = Stack(c("n_layer"), {"L": block}, position=Learned(c("n_positions")), final_norm="in" in norm_at)
    c("n_ctx", None)
    return Model(c("vocab_size"), width, decoder=stack, head=Head(tied=c("tie_word_embeddings", True)))


def write(m: Model, act: str = "activation_function") -> dict[str, Any]:
    block, stack = block_of(m), m.decoder
    assert stack and m.head and isinstance(stack.position, Learned)
    return {
        "vocab_size": m.vocab_size,
        "n_embd": m.width,
        "n_layer": stack.num_layers,
        "n_head": block.attention.num_heads,
        "n_inner": mlp_of(m).hidden,
        "n_positions": stack.position.max_length,
        "layer_norm_epsilon": block.norm.eps,
        "tie_word_embeddings": m.head.tied,
        act: their_activation(mlp_of(m).activation, "gelu_new"),
    }


def read_gpt1(c: Hf) -> Model:
    # Their "gelu" of this one family is the tanh form.
    c.values = {**c.values, "afn": {"gelu": "gelu_new"}.get(c.values["afn"], c.values["afn"])}
    return read(c, norm_at=("out",), act="afn")


def write_gpt1(m: Model) -> dict[str, Any]:
    given = write(m, "afn")
    del given["n_inner"]
    return given | dict(afn="gelu")


def read_bigcode(c: Hf) -> Model:
    c("attention_softmax_in_fp32", None), c("scale_attention_softmax_in_fp32", None)
    c("num_key_value_heads", None)
    return read(c, kv=1 if c("multi_query", True) else None)


def write_bigcode(m: Model) -> dict[str, Any]:
    a = block_of(m).attention
    return write(m) | dict(multi_query=a.num_kv_heads == 1 and a.num_heads > 1)


def read_starcoder2(c: Hf) -> Model:
    c.only("norm_type", "layer_norm"), c.only("mlp_type", "default"), c("max_position_embeddings", None)
    bias = c("use_bias", True)
    attention = Attention(c("num_attention_heads"), c("num_key_value_heads", 2), bias=bias, out_bias=bias)
    ffn = Mlp(c("intermediate_size"), activation(c, "hidden_act", "gelu_pytorch_tanh"), bias=bias)
    stack = Stack(
        c("num_hidden_layers"), {"L": Block(attention, ffn, Norm(eps=c("norm_epsilon", 1e-5)))}, position=read_rope(c)
    )
    m = Model(c("vocab_size"), c("hidden_size"), decoder=stack, head=Head(tied=c("tie_word_embeddings", True)))
    return windows(m, c("sliding_window", None), lambda i: True)


def write_starcoder2(m: Model) -> dict[str, Any]:
    block, stack = block_of(m), m.decoder
    assert stack and isinstance(stack.position, Rope)
    return dict(
        **sizes(m),
        num_key_value_heads=block.attention.kv_heads,
        use_bias=mlp_of(m).bias,
        hidden_act=their_activation(mlp_of(m).activation),
        norm_epsilon=block.norm.eps,
        sliding_window=block.attention.window,
        **write_rope(stack.position),
    )


QKV = ("attention__query", "attention__key", "attention__value")
NORMS = dict(attention_in_norm="ln_1", ffn_in_norm="ln_2")
CONV = Layout(conv1d=True)
TRUNK = {
    "embed/tokens": "transformer.wte",
    "embed/decoder_positions": "transformer.wpe",
    "decoder/final_norm": "transformer.ln_f",
    "head/out": "lm_head",
}


def conv1d(**norms: str) -> dict[str, Any]:
    """The layers of GPT-1 and 2, whose matrices are [inputs, outputs]."""
    plain = fused("attn.c_proj", "attention__out", layout=CONV)
    plain |= fused("mlp.c_fc", "ffn__up", layout=CONV) | fused("mlp.c_proj", "ffn__down", layout=CONV)
    return layers("decoder", "transformer.h.{}.", **fused("attn.c_attn", *QKV, layout=CONV), **plain, **norms)


def names_gpt1(m: Model) -> Names:
    table = TRUNK | {"embed/tokens": "transformer.tokens_embed", "embed/decoder_positions": "transformer.positions_embed"}
    return table | conv1d(attention_out_norm="ln_1", ffn_out_norm="ln_2")


def names_bigcode(m: Model) -> Names:
    a = block_of(m).attention
    qkv = fused("attn.c_attn", *QKV, layout=Layout(groups=a.kv_heads))
    rest = dict(attention__out="attn.c_proj", ffn__up="mlp.c_fc", ffn__down="mlp.c_proj")
    return TRUNK | layers("decoder", "transformer.h.{}.", **qkv, **rest, **NORMS)


def names_starcoder2(m: Model) -> Names:
    rest = dict(attention_in_norm="input_layernorm", ffn_in_norm="post_attention_layernorm")
    trunk = {"embed/tokens": "model.embed_tokens", "decoder/final_norm": "model.norm", "head/out": "lm_head"}
    return trunk | layers("decoder", "model.layers.{}.", **projections(), ffn__up="mlp.c_fc", ffn__down="mlp.c_proj", **rest)


TIED = {"lm_head.weight": "transformer.wte.weight"}
FAMILIES = {
    "openai-gpt": Family(
        read_gpt1,
        write_gpt1,
        names_gpt1,
        lambda m: "OpenAIGPTLMHeadModel",
        "transformer.",
        {"lm_head.weight": "transformer.tokens_embed.weight"},
    ),
    "gpt2": Family(read, write, lambda m: TRUNK | conv1d(**NORMS), lambda m: "GPT2LMHeadModel", "transformer.", TIED),
    "gpt_bigcode": Family(read_bigcode, write_bigcode, names_bigcode, lambda m: "GPTBigCodeForCausalLM", "transformer.", TIED),
    "starcoder2": Family(
        read_starcoder2,
        write_starcoder2,
        names_starcoder2,
        lambda m: "Starcoder2ForCausalLM",
        copies={"lm_head.weight": "model.embed_tokens.weight"},
    ),
}
