"""OPT."""

from typing import Any

from lm.config import Attention, Block, Head, Learned, Mlp, Model, Norm, Stack
from lm.conversion.families.llama import mlp_of, sizes
from lm.conversion.settings import Hf
from lm.conversion.tables import Family, Names, activation, architecture, layers, projections, their_activation


def read(c: Hf) -> Model:
    width = c.count("hidden_size")
    c.only("do_layer_norm_before", True), c.agrees("word_embed_proj_dim", width), c.only("_remove_final_layer_norm", False)
    c.only("enable_bias", True), c.only("layer_norm_elementwise_affine", True)
    attention = Attention(c.count("num_attention_heads"), bias=True, out_bias=True)
    block = Block(attention, Mlp(c.count("ffn_dim"), activation(c, "activation_function"), bias=True), Norm())
    position = Learned(c.count("max_position_embeddings"), offset=2)
    stack = Stack(c.parts("num_hidden_layers"), {"L": block}, position=position)
    return Model(c.count("vocab_size"), width, decoder=stack, head=Head(tied=c.flag("tie_word_embeddings")))


def write(m: Model) -> dict[str, Any]:
    settings, stack = sizes(m), m.decoder
    assert stack and isinstance(stack.position, Learned)
    settings["ffn_dim"] = settings.pop("intermediate_size")
    act = their_activation(mlp_of(m).activation)
    return settings | dict(
        word_embed_proj_dim=m.width, activation_function=act, max_position_embeddings=stack.position.max_length
    )


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


# Defaults of their config class (transformers 5.24, `configuration_opt.py`); tests/parity/test_config.py checks them.
OPT = dict(
    vocab_size=50_272,
    hidden_size=768,
    num_hidden_layers=12,
    ffn_dim=3072,
    max_position_embeddings=2048,
    do_layer_norm_before=True,
    _remove_final_layer_norm=False,
    word_embed_proj_dim=None,
    num_attention_heads=12,
    activation_function="relu",
    enable_bias=True,
    layer_norm_elementwise_affine=True,
    tie_word_embeddings=True,
)
TIED = {"lm_head.weight": "model.decoder.embed_tokens.weight"}
FAMILIES = {"opt": Family(read, write, names, architecture("OPT"), "model.", TIED, defaults=OPT)}
