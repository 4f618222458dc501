"""Pythia and GPT-NeoX, BLOOM, Falcon, Phi: fused or parallel attention of the years after GPT-3."""

from dataclasses import replace
from typing import Any

from lm.config import Alibi, Attention, Block, Embed, Head, Mlp, Model, Norm, Rope, Stack
from lm.convert.families.llama import block_of, mlp_of, read_rope, sizes, write_rope
from lm.convert.tables import Family, Hf, Layout, Names, activation, fused, layers, projections, their_activation

FFN = dict(ffn__up="mlp.dense_h_to_4h", ffn__down="mlp.dense_4h_to_h")
NORMS = dict(attention_in_norm="input_layernorm", ffn_in_norm="post_attention_layernorm")
QKV = ("attention__query", "attention__key", "attention__value")


def per_head(m: Model, module: str) -> dict[str, Any]:
    """Queries of a key's group, then the key, then the value, group by group."""
    a = block_of(m).attention
    return fused(module, *QKV, layout=Layout(groups=a.kv_heads))


def model(c: Hf, block: Block, position: Any, layers: str = "num_hidden_layers", *, tied: bool, **rest: Any) -> Model:
    stack = Stack(c(layers), {"L": block}, position=position)
    return Model(c("vocab_size"), c("hidden_size"), decoder=stack, head=Head(tied=c("tie_word_embeddings", tied)), **rest)


def read_neox(c: Hf) -> Model:
    bias = c("attention_bias", True)
    block = Block(
        Attention(c("num_attention_heads"), bias=bias, out_bias=bias),
        Mlp(c("intermediate_size"), activation(c, "hidden_act", "gelu"), bias=True),
        Norm(eps=c("layer_norm_eps", 1e-5)),
        parallel="separate" if c("use_parallel_residual", True) else "no",
    )
    c("max_position_embeddings", None)
    rope = read_rope(c, c("rotary_emb_base", 10_000))
    fraction = c("rotary_pct", None)
    return model(c, block, rope if fraction is None else replace(rope, fraction=fraction), tied=False)


def write_neox(m: Model) -> dict[str, Any]:
    block, stack = block_of(m), m.decoder
    assert stack and isinstance(stack.position, Rope)
    return dict(
        **sizes(m),
        attention_bias=block.attention.bias,
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
    c.only("apply_residual_connection_post_layernorm", False), c("slow_but_exact", None), c("seq_length", None)
    c("n_inner", None), c("offset_alibi", None), c("attention_softmax_in_fp32", None), c("masked_softmax_fusion", None)
    c("skip_bias_add", None), c("skip_bias_add_qkv", None), c("unk_token_id", None)
    norm = Norm(eps=c("layer_norm_epsilon", 1e-5))
    heads = c("n_head", None) or c("num_attention_heads")
    attention, width = Attention(heads, bias=True, out_bias=True), c("hidden_size")
    count = "n_layer" if "n_layer" in c.values else "num_hidden_layers"
    block = Block(attention, Mlp(4 * width, "gelu_tanh", bias=True), norm)
    return model(c, block, Alibi(), count, tied=True, embed=Embed(norm=norm))


def write_bloom(m: Model) -> dict[str, Any]:
    block, given = block_of(m), sizes(m)
    return dict(
        vocab_size=m.vocab_size,
        hidden_size=m.width,
        n_layer=given["num_hidden_layers"],
        n_head=given["num_attention_heads"],
        layer_norm_epsilon=block.norm.eps,
        tie_word_embeddings=given["tie_word_embeddings"],
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
    """Two generations: one norm and one key (7B), or a norm each and groups of keys (40B, 180B)."""
    c.only("alibi", False), c("max_position_embeddings", None), c("hidden_dropout", None)
    heads, bias, width = c("num_attention_heads"), c("bias", False), c("hidden_size")
    grouped, one_key, parallel = c("new_decoder_architecture", False), c("multi_query", True), c("parallel_attn", True)
    kv = c("num_kv_heads", None)
    kv = (kv or heads) if grouped else 1 if one_key else heads
    norms = c("num_ln_in_parallel_attn", None) or (2 if grouped else 1)
    block = Block(
        Attention(heads, kv, bias=bias, out_bias=bias),
        Mlp(c("ffn_hidden_size", None) or 4 * width, activation(c, "activation", "gelu"), bias=bias),
        Norm(eps=c("layer_norm_epsilon", 1e-5)),
        parallel="no" if not (parallel or grouped) else "separate" if grouped and norms == 2 else "shared",
    )
    return model(c, block, read_rope(c), tied=True)


def write_falcon(m: Model) -> dict[str, Any]:
    block, stack, given = block_of(m), m.decoder, sizes(m)
    a = block.attention
    assert stack and isinstance(stack.position, Rope)
    kv, one = a.kv_heads, a.num_kv_heads == 1
    grouped = block.parallel == "separate" or 1 < kv < a.num_heads
    given["ffn_hidden_size"] = given.pop("intermediate_size")
    return given | dict(
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
    c.only("qk_layernorm", False), c("max_position_embeddings", None)
    heads = c("num_attention_heads")
    block = Block(
        Attention(heads, c("num_key_value_heads", None) or heads, bias=True, out_bias=True),
        Mlp(c("intermediate_size"), activation(c, "hidden_act", "gelu_new"), bias=True),
        Norm(eps=c("layer_norm_eps", 1e-5)),
        parallel="shared",
    )
    fraction = c("partial_rotary_factor", None) or (c("rope_parameters", None) or {}).get("partial_rotary_factor", 0.5)
    m = model(c, block, replace(read_rope(c), fraction=fraction), tied=False)
    return replace(m, head=Head(tied=False, bias=True))


def write_phi(m: Model) -> dict[str, Any]:
    block, stack = block_of(m), m.decoder
    assert stack and isinstance(stack.position, Rope)
    return dict(
        **sizes(m),
        num_key_value_heads=block.attention.kv_heads,
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
    } | layers(
        "decoder",
        "model.layers.{}.",
        **projections() | dict(attention__out="self_attn.dense"),
        ffn__up="mlp.fc1",
        ffn__down="mlp.fc2",
        block_in_norm="input_layernorm",
    )


FAMILIES = {
    "gpt_neox": Family(read_neox, write_neox, names_neox, lambda m: "GPTNeoXForCausalLM"),
    "bloom": Family(
        read_bloom,
        write_bloom,
        names_bloom,
        lambda m: "BloomForCausalLM",
        "transformer.",
        {"lm_head.weight": "transformer.word_embeddings.weight"},
    ),
    "falcon": Family(
        read_falcon,
        write_falcon,
        names_falcon,
        lambda m: "FalconForCausalLM",
        "transformer.",
        {"lm_head.weight": "transformer.word_embeddings.weight"},
    ),
    "phi": Family(read_phi, write_phi, names_phi, lambda m: "PhiForCausalLM"),
}
