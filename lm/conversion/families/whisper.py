"""Whisper (arXiv 2212.04356)."""

from typing import Any

from lm.config import Attention, Block, Frames, Learned, Mlp, Model, Norm, Stack
from lm.conversion.families.t5 import bart_layers
from lm.conversion.settings import Hf
from lm.conversion.tables import (
    Family,
    Layout,
    Names,
    Slice,
    activation,
    architecture,
    attention_of,
    their_activation,
)

# What augments training data or aligns words in time, and computes nothing here.
UNUSED = ("mask_time_prob", "mask_time_length", "mask_time_min_masks", "mask_feature_prob", "mask_feature_length")
UNUSED += ("mask_feature_min_masks", "median_filter_width", "apply_spec_augment")


def read(c: Hf) -> Model:
    """Reads an encoder-decoder. The encoder's positions are sines and cosines, which the file has as a table; here they are
    learned ones."""
    act = activation(c, "activation_function")
    c("is_encoder_decoder", True), c.only("tie_word_embeddings", True), c.only("scale_embedding", False)
    c.only("use_weighted_layer_sum", False), [c(name) for name in UNUSED]
    heard = c.count("max_source_positions")
    stem = Frames(2 * heard, c.count("num_mel_bins"))

    def stack(name: str, length: int, **changes: Any) -> Stack:
        attention = Attention(c.count(f"{name}_attention_heads"), bias=True, out_bias=True, key_bias=False)
        block = Block(attention, Mlp(c.count(f"{name}_ffn_dim"), act, bias=True), Norm(eps=1e-5), cross=name == "decoder")
        return Stack(c.parts(f"{name}_layers"), {"L": block}, position=Learned(length), **changes)

    decoder = stack("decoder", c.count("max_target_positions"))
    return Model(c.count("vocab_size"), c.count("d_model"), encoder=stack("encoder", heard, stem=stem), decoder=decoder)


def write(m: Model) -> dict[str, Any]:
    stem = m.encoder.stem if m.encoder else None
    assert isinstance(stem, Frames) and m.decoder and isinstance(m.decoder.position, Learned)
    settings: dict[str, Any] = dict(
        vocab_size=m.vocab_size,
        d_model=m.width,
        num_mel_bins=stem.bands,
        max_source_positions=stem.length,
        max_target_positions=m.decoder.position.max_length,
        is_encoder_decoder=True,
        tie_word_embeddings=True,
    )
    for name, stack in (("encoder", m.encoder), ("decoder", m.decoder)):
        assert stack
        block = stack.blocks[stack.letters()[0]]
        assert isinstance(block.ffn, Mlp)
        settings |= {
            f"{name}_attention_heads": attention_of(block).num_heads,
            f"{name}_ffn_dim": block.ffn.hidden,
            f"{name}_layers": stack.num_layers,
            "activation_function": their_activation(block.ffn.activation, "gelu_new"),
        }
    return settings


def names(m: Model) -> Names:
    conv = Layout(taps=True)
    table: dict[str, Any] = {f"embed/encoder_stem/conv_{i}": Slice(f"model.encoder.conv{i + 1}", layout=conv) for i in range(2)}
    table["embed/tokens"] = "model.decoder.embed_tokens"
    for stack in ("encoder", "decoder"):
        table[f"embed/{stack}_positions"] = f"model.{stack}.embed_positions"
        table[f"{stack}/final_norm"] = f"model.{stack}.layer_norm"
        table |= bart_layers(stack, norm_at="in")
    return table


# Defaults of their config class (transformers 5.24, `configuration_whisper.py`); tests/parity/test_config.py checks them.
DEFAULTS = dict(
    vocab_size=51_865,
    num_mel_bins=80,
    encoder_layers=4,
    encoder_attention_heads=6,
    decoder_layers=4,
    decoder_attention_heads=6,
    decoder_ffn_dim=1536,
    encoder_ffn_dim=1536,
    activation_function="gelu",
    d_model=384,
    scale_embedding=False,
    max_source_positions=1500,
    max_target_positions=448,
    use_weighted_layer_sum=False,
    apply_spec_augment=False,
    mask_time_prob=0.05,
    mask_time_length=10,
    mask_time_min_masks=2,
    mask_feature_prob=0.0,
    mask_feature_length=10,
    mask_feature_min_masks=0,
    median_filter_width=7,
    tie_word_embeddings=True,
)
FAMILIES = {
    "whisper": Family(
        read,
        write,
        names,
        architecture("Whisper", "ForConditionalGeneration"),
        "model.",
        {"proj_out.weight": "model.decoder.embed_tokens.weight"},
        defaults=DEFAULTS,
        aliases=dict(
            num_key_value_heads="encoder_attention_heads",
            num_attention_heads="encoder_attention_heads",
            hidden_size="d_model",
            num_hidden_layers="encoder_layers",
        ),
    )
}
