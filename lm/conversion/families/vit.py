"""ViT (arXiv 2010.11929), and the two encoders of CLIP (arXiv 2103.00020), each as a model; `lm.conversion.clip` has both."""

from typing import Any

from lm.config import Attention, Block, Embed, Head, Learned, Mlp, Model, Norm, Patches, Stack
from lm.conversion.families.llama import block_of, mlp_of
from lm.conversion.settings import Hf
from lm.conversion.tables import (
    Family,
    Layout,
    Names,
    Slice,
    activation,
    attention_of,
    layers,
    projections,
    their_activation,
)

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # of its training images


def read_patches(c: Hf, **changes: Any) -> Patches:
    return Patches(c.count("patch_size"), c.count("image_size"), c.count("num_channels"), **changes)


def read_stack(c: Hf, length: int, *, bias: bool = True, **changes: Any) -> Stack:
    attention = Attention(c.count("num_attention_heads"), bias=bias, out_bias=True)
    ffn = Mlp(c.count("intermediate_size"), activation(c, "hidden_act"), bias=True)
    block = Block(attention, ffn, Norm(eps=c.eps("layer_norm_eps")))
    return Stack(c.parts("num_hidden_layers"), {"L": block}, position=Learned(length), **changes)


def write_stack(m: Model) -> dict[str, Any]:
    stack, block = m.encoder or m.decoder, block_of(m)
    assert stack and isinstance(stack.position, Learned)
    found: dict[str, Any] = dict(
        hidden_size=m.width,
        num_hidden_layers=stack.num_layers,
        num_attention_heads=attention_of(block).num_heads,
        intermediate_size=mlp_of(m).hidden,
        hidden_act=their_activation(mlp_of(m).activation),
        layer_norm_eps=block.norm.eps,
    )
    if isinstance(stem := stack.stem, Patches):
        found |= dict(patch_size=stem.size, image_size=stem.image, num_channels=stem.channels)
    return found


def read_vit(c: Hf) -> Model:
    """Reads a ViT; its classifier and pooler if the file has them."""
    c.only("pooler_act", "tanh"), c("encoder_stride", None)
    c.agrees("pooler_output_size", c.count("hidden_size"))
    stem = read_patches(c)
    head = Head(tied=False, bias=True, norm=None, outputs=c.labels()) if "classifier.weight" in c.keys else None
    stack = read_stack(c, stem.length, bias=c.flag("qkv_bias"), stem=stem)
    return Model(1, c.count("hidden_size"), encoder=stack, head=head, pooler=c.has("pooler.dense.weight"))


def write_vit(m: Model) -> dict[str, Any]:
    return write_stack(m) | dict(qkv_bias=attention_of(block_of(m)).bias)


def names_vit(m: Model) -> Names:
    return {
        "embed/encoder_stem/class_token": Slice("vit.embeddings.cls_token", layout=Layout(ones=2)),
        "embed/encoder_stem/patches": Slice("vit.embeddings.patch_embeddings.projection", layout=_patches(m)),
        "embed/encoder_positions/embedding": Slice("vit.embeddings.position_embeddings", layout=Layout(ones=1)),
        "encoder/final_norm": "vit.layernorm",
        "pooler": "vit.pooler.dense",
    } | layers(
        "encoder",
        "vit.encoder.layer.{}.",
        **{f"attention__{x}": f"attention.attention.{x}" for x in ("query", "key", "value")},
        attention__out="attention.output.dense",
        attention_in_norm="layernorm_before",
        ffn__up="intermediate.dense",
        ffn__down="output.dense",
        ffn_in_norm="layernorm_after",
    )


def _patches(m: Model) -> Layout:
    stem = m.encoder.stem if m.encoder else None
    assert isinstance(stem, Patches), "no patches"
    return Layout(channels=stem.channels)


def projection(c: Hf, name: str) -> Head | None:
    """The projection to the common space, if the file has it."""
    outputs = c.count("projection_dim")
    return Head(tied=False, norm=None, outputs=outputs) if f"{name}.weight" in c.keys else None


def read_clip_vision(c: Hf) -> Model:
    stem = read_patches(c, bias=False, mean=CLIP_MEAN, std=CLIP_STD)
    stack = read_stack(c, stem.length, stem=stem)
    norm = stack.blocks["L"].norm
    head = projection(c, "visual_projection")
    return Model(1, c.count("hidden_size"), encoder=stack, embed=Embed(norm=norm), head=head)


def read_clip_text(c: Hf) -> Model:
    """Reads the encoder of captions. The ids of its special tokens say which token's vector is the caption's."""
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        c(name, None)
    stack = read_stack(c, c.count("max_position_embeddings"))
    head = projection(c, "text_projection")
    return Model(c.count("vocab_size"), c.count("hidden_size"), decoder=stack, head=head)


def write_clip(m: Model) -> dict[str, Any]:
    found = write_stack(m) | dict(projection_dim=m.head.outputs if m.head else 512)
    if m.decoder is None:
        return found
    assert isinstance(m.decoder.position, Learned)
    return found | dict(vocab_size=m.vocab_size, max_position_embeddings=m.decoder.position.max_length)


def _clip_layers(stack: str, trunk: str) -> dict[str, Any]:
    return layers(
        stack,
        f"{trunk}.encoder.layers.{{}}.",
        **projections(out="out") | dict(attention__out="self_attn.out_proj"),
        attention_in_norm="layer_norm1",
        ffn__up="mlp.fc1",
        ffn__down="mlp.fc2",
        ffn_in_norm="layer_norm2",
    )


def names_clip_vision(m: Model) -> Names:
    return {
        "embed/encoder_stem/class_token": "vision_model.embeddings.class_embedding",
        "embed/encoder_stem/patches": Slice("vision_model.embeddings.patch_embedding", layout=_patches(m)),
        "embed/encoder_positions": "vision_model.embeddings.position_embedding",
        "embed/encoder_norm": "vision_model.pre_layrnorm",
        "encoder/final_norm": "vision_model.post_layernorm",
    } | _clip_layers("encoder", "vision_model")


def names_clip_text(m: Model) -> Names:
    return {
        "embed/tokens": "text_model.embeddings.token_embedding",
        "embed/decoder_positions": "text_model.embeddings.position_embedding",
        "decoder/final_norm": "text_model.final_layer_norm",
    } | _clip_layers("decoder", "text_model")


# Defaults of their config classes (transformers 5.24, `configuration_<family>.py`); tests/parity/test_config.py checks them.
VIT = dict(
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    hidden_act="gelu",
    layer_norm_eps=1e-12,
    image_size=224,
    patch_size=16,
    num_channels=3,
    qkv_bias=True,
    encoder_stride=16,
    pooler_output_size=None,
    pooler_act="tanh",
)
CLIP_VISION = dict(
    hidden_size=768,
    intermediate_size=3072,
    projection_dim=512,
    num_hidden_layers=12,
    num_attention_heads=12,
    num_channels=3,
    image_size=224,
    patch_size=32,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
)
CLIP_TEXT = dict(
    vocab_size=49_408,
    hidden_size=512,
    intermediate_size=2048,
    projection_dim=512,
    num_hidden_layers=12,
    num_attention_heads=8,
    max_position_embeddings=77,
    hidden_act="quick_gelu",
    layer_norm_eps=1e-5,
    pad_token_id=1,
    bos_token_id=49_406,
    eos_token_id=49_407,
)
FAMILIES = {
    "vit": Family(
        read_vit,
        write_vit,
        names_vit,
        lambda m: "ViTForImageClassification" if m.head else "ViTModel",
        "vit.",
        classifier=lambda m: {"head/out": "classifier"},
        defaults=VIT,
    ),
    "clip_vision_model": Family(
        read_clip_vision,
        write_clip,
        names_clip_vision,
        lambda m: "CLIPVisionModelWithProjection" if m.head else "CLIPVisionModel",
        classifier=lambda m: {"head/out": "visual_projection"},
        defaults=CLIP_VISION,
    ),
    "clip_text_model": Family(
        read_clip_text,
        write_clip,
        names_clip_text,
        lambda m: "CLIPTextModelWithProjection" if m.head else "CLIPTextModel",
        classifier=lambda m: {"head/out": "text_projection"},
        defaults=CLIP_TEXT,
    ),
}
