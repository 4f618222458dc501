"""GPT-NeoX and Pythia, BLOOM, Falcon, Phi: decoders after GPT-3 with fused projections or parallel blocks."""

from dataclasses import replace
from typing import Any

from lm.config import Alibi, Attention, Block, Embed, Head, Mlp, Model, Norm, Rope, Stack
from lm.conversion.families.llama import block_of, mlp_of, read_rope, sizes, write_rope
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
from lm.errors import UserError

FFN = dict(ffn__up="mlp.dense_h_to_4h", ffn__down="mlp.dense_4h_to_h")
NORMS = dict(attention_in_norm="input_layernorm", ffn_in_norm="post_attention_layernorm")
QKV = ("attention__query", "attention__key", "attention__value")


def per_head(m: Model, module: str) -> dict[str, Any]:
    """Returns names for `layers` where `module` fuses, group by group, the queries of a key head, the key and the value."""
    a = attention_of(block_of(m))
    return fused(module, *QKV, layout=Layout(groups=a.kv_heads))


def model(c: Hf, block: Block, position: Any, layers: str = "num_hidden_layers") -> Model:
    stack = Stack(c.parts(layers), {"L": block}, position=position)
    return Model(c.count("vocab_size"), c.count("hidden_size"), decoder=stack, head=Head(tied=c.flag("tie_word_embeddings")))


def read_neox(c: Hf) -> Model:
    """Their code reads `rotary_emb_base` and `rotary_pct`, not `rope_theta` and `partial_rotary_factor`, which must agree if
    they are there."""
    bias = c.flag("attention_bias")
    block = Block(
        Attention(c.count("num_attention_heads"), bias=bias, out_bias=bias),
        Mlp(c.count("intermediate_size"), activation(c, "hidden_act"), bias=True),
        Norm(eps=c.eps("layer_norm_eps")),
        parallel="separate" if c.flag("use_parallel_residual") else "no",
    )
    unread = {name: c.values.pop(name, None) for name in ("rope_theta", "partial_rotary_factor")}
    rope = read_rope(c, c.number("rotary_emb_base", 10_000.0), c.number("rotary_pct", 0.25))
    c.values |= unread
    c.agrees("rope_theta", rope.theta), c.agrees("partial_rotary_factor", rope.fraction)
    return model(c, block, rope)


def write_neox(m: Model) -> dict[str, Any]:
    block, stack = block_of(m), m.decoder
    assert stack and isinstance(stack.position, Rope)
    return dict(
        **sizes(m),
        attention_bias=attention_of(block).bias,
        hidden_act=their_activation(mlp_of(m).activation),
        layer_norm_eps=block.norm.eps,
        use_parallel_residual=block.parallel == "separate",
        rotary_pct=stack.position.fraction,
        **write_rope(stack.position),
    )


def names_neox(m: Model) -> Names:
    return {
        "embed/tokens": "gpt_neox.embed_in",
        "decoder/final_norm": "gpt_neox.final_layer_norm",
        "head/out": "embed_out",
    } | layers(
        "decoder",
        "gpt_neox.layers.{}.",
        **per_head(m, "attention.query_key_value"),
        attention__out="attention.dense",
        **FFN,
        **NORMS,
    )


def read_bloom(c: Hf) -> Model:
    c.only("apply_residual_connection_post_layernorm", False)
    for name in ("slow_but_exact", "seq_length", "n_inner", "offset_alibi", *FUSED):
        c(name, None)  # settings of the training code, unread by transformers
    norm, width = Norm(eps=c.eps("layer_norm_epsilon")), c.count("hidden_size")
    attention = Attention(c.count("n_head"), bias=True, out_bias=True)
    block = Block(attention, Mlp(4 * width, "gelu_tanh", bias=True), norm)
    return replace(model(c, block, Alibi(), "n_layer"), embed=Embed(norm=norm))


FUSED = ("bias_dropout_fusion", "masked_softmax_fusion", "skip_bias_add", "skip_bias_add_qkv")


def write_bloom(m: Model) -> dict[str, Any]:
    block, settings = block_of(m), sizes(m)
    return dict(
        vocab_size=m.vocab_size,
        hidden_size=m.width,
        n_layer=settings["num_hidden_layers"],
        n_head=settings["num_attention_heads"],
        layer_norm_epsilon=block.norm.eps,
        tie_word_embeddings=settings["tie_word_embeddings"],
    )


def names_bloom(m: Model) -> Names:
    return {
        "embed/tokens": "transformer.word_embeddings",
        "embed/decoder_norm": "transformer.word_embeddings_layernorm",
        "decoder/final_norm": "transformer.ln_f",
        "head/out": "lm_head",
    } | layers(
        "decoder",
        "transformer.h.{}.",
        **per_head(m, "self_attention.query_key_value"),
        attention__out="self_attention.dense",
        **FFN,
        **NORMS,
    )


def read_falcon(c: Hf) -> Model:
    """The 7B has one norm per layer and one key-value head; 40B and 180B have a norm for each part and several heads."""
    heads, bias, width = c.count("num_attention_heads"), c.flag("bias"), c.count("hidden_size")
    c.only("alibi", False)
    grouped, one_key, parallel = c.flag("new_decoder_architecture"), c.flag("multi_query"), c.flag("parallel_attn")
    kv, norms = c.count_or_none("num_kv_heads") or heads, c.count_or_none("num_ln_in_parallel_attn") or (2 if grouped else 1)
    if grouped and not (parallel and norms in (1, 2)) or not grouped and parallel and norms != 1:
        raise UserError(
            f"config.json: new_decoder_architecture={grouped}, parallel_attn={parallel}, num_ln_in_parallel_attn={norms} "
            "is no Falcon that transformers runs"
        )
    if not grouped and not one_key:
        c.agrees("num_kv_heads", heads)
    block = Block(
        Attention(heads, kv if grouped else 1 if one_key else heads, bias=bias, out_bias=bias),
        Mlp(c.count_or_none("ffn_hidden_size") or 4 * width, activation(c, "activation"), bias=bias),
        Norm(eps=c.eps("layer_norm_epsilon")),
        parallel="no" if not parallel else "separate" if norms == 2 else "shared",
    )
    return model(c, block, read_rope(c))


def write_falcon(m: Model) -> dict[str, Any]:
    block, stack, settings = block_of(m), m.decoder, sizes(m)
    a = attention_of(block)
    assert stack and isinstance(stack.position, Rope)
    kv, one = a.kv_heads, a.num_kv_heads == 1
    grouped = block.parallel == "separate" or 1 < kv < a.num_heads
    settings["ffn_hidden_size"] = settings.pop("intermediate_size")
    return settings | dict(
        bias=a.bias,
        activation=their_activation(mlp_of(m).activation),
        layer_norm_epsilon=block.norm.eps,
        new_decoder_architecture=grouped,
        multi_query=one,
        num_kv_heads=kv,
        parallel_attn=block.parallel != "no",
        num_ln_in_parallel_attn=(2 if block.parallel == "separate" else 1) if grouped else None,
        alibi=False,
        **write_rope(stack.position),
    )


def names_falcon(m: Model) -> Names:
    norms = NORMS | dict(block_in_norm="input_layernorm")
    if block_of(m).parallel == "separate":
        norms = dict(attention_in_norm="ln_attn", ffn_in_norm="ln_mlp")
    return {
        "embed/tokens": "transformer.word_embeddings",
        "decoder/final_norm": "transformer.ln_f",
        "head/out": "lm_head",
    } | layers(
        "decoder",
        "transformer.h.{}.",
        **per_head(m, "self_attention.query_key_value"),
        attention__out="self_attention.dense",
        **FFN,
        **norms,
    )


def read_phi(c: Hf) -> Model:
    c.only("qk_layernorm", False)
    heads = c.count("num_attention_heads")
    block = Block(
        Attention(heads, c.count_or_none("num_key_value_heads") or heads, bias=True, out_bias=True),
        Mlp(c.count("intermediate_size"), activation(c, "hidden_act"), bias=True),
        Norm(eps=c.eps("layer_norm_eps")),
        parallel="shared",
    )
    m = model(c, block, read_rope(c, fraction=0.5))
    return replace(m, head=Head(tied=c.flag("tie_word_embeddings"), bias=True))


def write_phi(m: Model) -> dict[str, Any]:
    block, stack = block_of(m), m.decoder
    assert stack and isinstance(stack.position, Rope)
    return dict(
        **sizes(m),
        num_key_value_heads=attention_of(block).kv_heads,
        hidden_act=their_activation(mlp_of(m).activation, "gelu_new"),
        layer_norm_eps=block.norm.eps,
        partial_rotary_factor=stack.position.fraction,
        **write_rope(stack.position),
    )


def names_phi(m: Model) -> Names:
    return {
        "embed/tokens": "model.embed_tokens",
        "decoder/final_norm": "model.final_layernorm",
        "head/out": "lm_head",
        "head": "lm_head",
    } | layers(
        "decoder",
        "model.layers.{}.",
        **projections() | dict(attention__out="self_attn.dense"),
        ffn__up="mlp.fc1",
        ffn__down="mlp.fc2",
        block_in_norm="input_layernorm",
    )


# Defaults of their config classes (transformers 5.24, `configuration_<family>.py`); tests/parity/test_config.py checks them.
NEOX = dict(
    vocab_size=50_432,
    hidden_size=6144,
    num_hidden_layers=44,
    num_attention_heads=64,
    intermediate_size=24_576,
    hidden_act="gelu",
    max_position_embeddings=2048,
    layer_norm_eps=1e-5,
    tie_word_embeddings=False,
    use_parallel_residual=True,
    rope_parameters=None,
    attention_bias=True,
)
BLOOM = dict(
    vocab_size=250_880,
    hidden_size=64,
    n_layer=2,
    n_head=8,
    layer_norm_epsilon=1e-5,
    apply_residual_connection_post_layernorm=False,
    slow_but_exact=False,
    tie_word_embeddings=True,
)
FALCON = dict(
    vocab_size=65_024,
    hidden_size=4544,
    num_hidden_layers=32,
    num_attention_heads=71,
    num_ln_in_parallel_attn=None,
    layer_norm_epsilon=1e-5,
    num_kv_heads=None,
    alibi=False,
    new_decoder_architecture=False,
    multi_query=True,
    parallel_attn=True,
    bias=False,
    max_position_embeddings=2048,
    rope_parameters=None,
    ffn_hidden_size=None,
    activation="gelu",
    tie_word_embeddings=True,
)
PHI = dict(
    vocab_size=51_200,
    hidden_size=2048,
    intermediate_size=8192,
    num_hidden_layers=24,
    num_attention_heads=32,
    num_key_value_heads=None,
    hidden_act="gelu_new",
    max_position_embeddings=2048,
    layer_norm_eps=1e-5,
    tie_word_embeddings=False,
    rope_parameters=None,
    qk_layernorm=False,
)
OLD = {"n_embed": "hidden_size"}


def family(read: Any, write: Any, names: Any, name: str, defaults: dict[str, Any], prefix: str, **rest: Any) -> Family:
    """rest: `head` and `table`, their modules for logits and token embeddings; the others are fields of Family."""
    tied = {f"{rest.pop('head', 'lm_head')}.weight": f"{prefix}{rest.pop('table')}.weight"}
    return Family(read, write, names, architecture(name), prefix, tied, defaults=defaults, **rest)


FAMILIES = {
    "gpt_neox": family(
        read_neox,
        write_neox,
        names_neox,
        "GPTNeoX",
        NEOX,
        "gpt_neox.",
        head="embed_out",
        table="embed_in",
        classifier=token_classifier,
    ),
    "bloom": family(
        read_bloom,
        write_bloom,
        names_bloom,
        "Bloom",
        BLOOM,
        "transformer.",
        table="word_embeddings",
        classifier=token_classifier,
        aliases=OLD | dict(num_hidden_layers="n_layer", num_attention_heads="n_head"),
    ),
    "falcon": family(
        read_falcon,
        write_falcon,
        names_falcon,
        "Falcon",
        FALCON,
        "transformer.",
        table="word_embeddings",
        classifier=token_classifier,
        aliases=OLD,
    ),
    "phi": family(read_phi, write_phi, names_phi, "Phi", PHI, "model.", table="embed_tokens"),
}
