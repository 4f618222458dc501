"""GPT-1, GPT-2 (whose layout GPT-3 shares), StarCoder (`gpt_bigcode`) and StarCoder2."""

from typing import Any

from lm.config import Attention, Block, Head, Learned, Mlp, Model, Norm, Rope, Stack
from lm.conversion.families.llama import block_of, mlp_of, read_rope, sizes, windows, write_rope
from lm.conversion.settings import Hf
from lm.conversion.tables import (
    Family,
    Layout,
    Names,
    activation,
    architecture,
    attention_of,
    fused,
    layers,
    projections,
    their_activation,
    token_classifier,
)


def read(c: Hf, *, norm_at: Any = ("in",), kv: int | None = None, act: str = "activation_function") -> Model:
    width, heads = c.count("n_embd"), c.count("n_head")
    c.only("scale_attn_weights", True), c.only("reorder_and_upcast_attn", False)
    hidden = c.count_or_none("n_inner", None) or 4 * width
    attention = Attention(heads, kv, bias=True, out_bias=True)
    block = Block(attention, Mlp(hidden, activation(c, act), bias=True), Norm(eps=c.eps("layer_norm_epsilon")), norm_at)
    position = Learned(c.count("n_positions"))
    c("n_ctx", None)  # the context length of training; the table has n_positions rows
    stack = Stack(c.parts("n_layer"), {"L": block}, position=position, final_norm="in" in norm_at)
    return Model(c.count("vocab_size"), width, decoder=stack, head=Head(tied=c.flag("tie_word_embeddings")))


def write(m: Model, act: str = "activation_function") -> dict[str, Any]:
    block, stack = block_of(m), m.decoder
    assert stack and isinstance(stack.position, Learned)
    return {
        "vocab_size": m.vocab_size,
        "n_embd": m.width,
        "n_layer": stack.num_layers,
        "n_head": attention_of(block).num_heads,
        "n_inner": mlp_of(m).hidden,
        "n_positions": stack.position.max_length,
        "layer_norm_epsilon": block.norm.eps,
        "tie_word_embeddings": m.head is None or m.head.tied,
        act: their_activation(mlp_of(m).activation, "gelu_new"),
    }


def read_gpt1(c: Hf) -> Model:
    # In this family "gelu" is the tanh form, and its code knows only these names.
    c.values["afn"] = {"gelu": "gelu_new"}.get(c.only("afn", "gelu", "relu", "silu", "swish"), c("afn"))
    c("n_inner", None)
    c.values["n_inner"] = None  # their code does not read it
    return read(c, norm_at=("out",), act="afn")


def write_gpt1(m: Model) -> dict[str, Any]:
    settings = write(m, "afn")
    del settings["n_inner"]
    return settings | dict(afn={"gelu_new": "gelu"}.get(settings["afn"], settings["afn"]))


def read_bigcode(c: Hf) -> Model:
    kv = 1 if c.flag("multi_query") else None
    c.agrees("num_key_value_heads", kv or c.count("n_head"))
    return read(c, kv=kv)


def write_bigcode(m: Model) -> dict[str, Any]:
    a = attention_of(block_of(m))
    return write(m) | dict(multi_query=a.num_kv_heads == 1 and a.num_heads > 1)


def read_starcoder2(c: Hf) -> Model:
    c.only("norm_type", "layer_norm"), c.only("mlp_type", "default")
    c("activation_function", None), c("layer_norm_epsilon", None)  # in released files, but their code does not read them
    bias = c.flag("use_bias")
    attention = Attention(c.count("num_attention_heads"), c.count("num_key_value_heads"), bias=bias, out_bias=bias)
    ffn = Mlp(c.count("intermediate_size"), activation(c, "hidden_act"), bias=bias)
    block = Block(attention, ffn, Norm(eps=c.eps("norm_epsilon")))
    stack = Stack(c.parts("num_hidden_layers"), {"L": block}, position=read_rope(c))
    m = Model(c.count("vocab_size"), c.count("hidden_size"), decoder=stack, head=Head(tied=c.flag("tie_word_embeddings")))
    return windows(m, c.count_or_none("sliding_window"), lambda i: True)


def write_starcoder2(m: Model) -> dict[str, Any]:
    block, stack = block_of(m), m.decoder
    assert stack and isinstance(stack.position, Rope)
    return dict(
        **sizes(m),
        num_key_value_heads=attention_of(block).kv_heads,
        use_bias=mlp_of(m).bias,
        hidden_act=their_activation(mlp_of(m).activation),
        norm_epsilon=block.norm.eps,
        sliding_window=attention_of(block).window,
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
    """Returns names in the layers of GPT-1 and 2, whose matrices are [inputs, outputs]."""
    plain = fused("attn.c_proj", "attention__out", layout=CONV)
    plain |= fused("mlp.c_fc", "ffn__up", layout=CONV) | fused("mlp.c_proj", "ffn__down", layout=CONV)
    return layers("decoder", "transformer.h.{}.", **fused("attn.c_attn", *QKV, layout=CONV), **plain, **norms)


def names_gpt1(m: Model) -> Names:
    table = TRUNK | {"embed/tokens": "transformer.tokens_embed", "embed/decoder_positions": "transformer.positions_embed"}
    return table | conv1d(attention_out_norm="ln_1", ffn_out_norm="ln_2")


def names_bigcode(m: Model) -> Names:
    a = attention_of(block_of(m))
    qkv = fused("attn.c_attn", *QKV, layout=Layout(groups=a.kv_heads))
    rest = dict(attention__out="attn.c_proj", ffn__up="mlp.c_fc", ffn__down="mlp.c_proj")
    return TRUNK | layers("decoder", "transformer.h.{}.", **qkv, **rest, **NORMS)


def names_starcoder2(m: Model) -> Names:
    rest = dict(attention_in_norm="input_layernorm", ffn_in_norm="post_attention_layernorm")
    trunk = {"embed/tokens": "model.embed_tokens", "decoder/final_norm": "model.norm", "head/out": "lm_head"}
    return trunk | layers("decoder", "model.layers.{}.", **projections(), ffn__up="mlp.c_fc", ffn__down="mlp.c_proj", **rest)


# Defaults of their config classes (transformers 5.24, `configuration_<family>.py`); tests/parity/test_config.py checks them.
GPT1 = dict(
    vocab_size=40_478,
    n_positions=512,
    n_embd=768,
    n_layer=12,
    n_head=12,
    afn="gelu",
    layer_norm_epsilon=1e-5,
    tie_word_embeddings=True,
)
BIGCODE = {k: v for k, v in GPT1.items() if k != "afn"} | dict(
    vocab_size=50_257,
    n_positions=1024,
    n_inner=None,
    activation_function="gelu_pytorch_tanh",
    scale_attn_weights=True,
    multi_query=True,
)
GPT2 = {k: v for k, v in BIGCODE.items() if k != "multi_query"} | dict(
    activation_function="gelu_new", scale_attn_by_inverse_layer_idx=False, reorder_and_upcast_attn=False
)
STARCODER2 = dict(
    vocab_size=49_152,
    hidden_size=3072,
    intermediate_size=12_288,
    num_hidden_layers=30,
    num_attention_heads=24,
    num_key_value_heads=2,
    hidden_act="gelu_pytorch_tanh",
    max_position_embeddings=4096,
    norm_epsilon=1e-5,
    rope_parameters=None,
    sliding_window=None,
    use_bias=True,
    tie_word_embeddings=True,
)
ALIASES = dict(
    hidden_size="n_embd", max_position_embeddings="n_positions", num_attention_heads="n_head", num_hidden_layers="n_layer"
)


def family(read: Any, write: Any, names: Any, name: str, defaults: dict[str, Any], head: str, table: str = "wte") -> Family:
    tied = {"lm_head.weight": f"transformer.{table}.weight"}
    own: dict[str, Any] = dict(classifier=token_classifier, defaults=defaults, aliases=ALIASES)
    return Family(read, write, names, architecture(name, head), "transformer.", tied, **own)


FAMILIES = {
    "openai-gpt": family(read_gpt1, write_gpt1, names_gpt1, "OpenAIGPT", GPT1, "LMHeadModel", "tokens_embed"),
    "gpt2": family(read, write, lambda m: TRUNK | conv1d(**NORMS), "GPT2", GPT2, "LMHeadModel"),
    "gpt_bigcode": family(read_bigcode, write_bigcode, names_bigcode, "GPTBigCode", BIGCODE, "ForCausalLM"),
    "starcoder2": Family(
        read_starcoder2,
        write_starcoder2,
        names_starcoder2,
        architecture("Starcoder2"),
        "model.",
        {"lm_head.weight": "model.embed_tokens.weight"},
        defaults=STARCODER2,
    ),
}
