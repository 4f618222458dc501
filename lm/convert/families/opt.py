"""OPT."""

from typing import Any

from lm.config import Attention, Block, Head, Learned, Mlp, Model, Norm, Stack
from lm.convert.families.llama import mlp_of, sizes
from lm.convert.tables import Family, Hf, Names, activation, layers, projections, their_activation


def read(c: Hf) -> Model:
    width = c("hidden_size")
    c.only("do_layer_norm_before", True), c.only("word_embed_proj_dim", width), c.only("_remove_final_layer_norm", False)
    c.only("enable_bias", True), c.only("layer_norm_elementwise_affine", True)
    attention = Attention(c("num_attention_heads"), bias=True, out_bias=True)
    block = Block(attention, Mlp(c("ffn_dim"), activation(c, "activation_function", "relu"), bias=True), Norm())
    stack = Stack(c("num_hidden_layers"), {"L": block}, position=Learned(c("max_position_embeddings"), offset=2))
    return Model(c("vocab_size"), width, decoder=stack, head=Head(tied=c("tie_word_embeddings", True)))


def write(m: Model) -> dict[str, Any]:
    given, stack = sizes(m), m.decoder
    assert stack and isinstance(stack.position, Learned)
    given["ffn_dim"] = given.pop("intermediate_size")
    act = their_activation(mlp_of(m).activation)
    return given | dict(word_embed_proj_dim=m.width, activation_function=act, max_position_embeddings=stack.position.max_length)


def names(m: Model) -> Names:
    return {
        "embed/tokens": "model.decoder.embed_tokens",
        "embed/decoder_positions": "model.decoder.embed_positions",
        "decoder/final_norm": "model.decoder.final_layer_norm",
        "head/out": "lm_head",
    } | layers(
        "decoder",
        "model.decoder.layers.{}.",
        **projections(out="out"),
        attention_in_norm="self_attn_layer_norm",
        ffn_in_norm="final_layer_norm",
        ffn__up="fc1",
        ffn__down="fc2",
    )


TIED = {"lm_head.weight": "model.decoder.embed_tokens.weight"}
FAMILIES = {"opt": Family(read, write, names, lambda m: "OPTForCausalLM", copies=TIED)}
