"""T5, T5 1.1, Flan-T5 and mT5 (also their encoders alone), BART."""

from dataclasses import replace
from typing import Any

from lm.config import Attention, Block, Buckets, Embed, Head, Learned, Mlp, Model, Norm, Stack
from lm.conversion.families.llama import block_of, mlp_of
from lm.conversion.settings import Hf
from lm.conversion.tables import (
    Family,
    Names,
    activation,
    architecture,
    attention_of,
    layers,
    projections,
    same_activation,
    their_activation,
)
from lm.errors import UserError


def feed_forward(c: Hf) -> Mlp:
    """Reads `feed_forward_proj`; `dense_act_fn` and `is_gated_act` must agree with it, or stand in for it if it is missing."""
    proj = c("feed_forward_proj")
    gated, _, act = proj.rpartition("-") if isinstance(proj, str) else ("no text", "", "")
    if gated not in ("", "gated"):
        raise UserError(f"config.json: feed_forward_proj={proj!r} must be an activation, or 'gated-' and an activation")
    # "gated-gelu" has always meant the tanh form.
    act, gate = "gelu_new" if proj == "gated-gelu" else act, bool(gated)
    if "feed_forward_proj" in c.values:
        same_activation(c, "dense_act_fn", act), c.agrees("is_gated_act", gate)
    means = {"dense_act_fn": c("dense_act_fn", act), "is_gated_act": c("is_gated_act", gate)}
    return Mlp(c.count("d_ff"), activation(Hf(means, ()), "dense_act_fn"), gated=Hf(means, ()).flag("is_gated_act"))


def read(c: Hf, *, scales: bool = True) -> Model:
    """Reads a T5, or its encoder alone if the file has no decoder tensors.

    With `tie_word_embeddings=false` (T5 1.1) logits are not scaled, and are untied if the file has a matrix for them. With
    `scales=False` (mT5) logits are never scaled.
    """
    width, heads, ffn = c.count("d_model"), c.count("num_heads"), feed_forward(c)
    c("is_encoder_decoder", True), c("n_positions", None)  # the length of training rows: positions are relative
    tied = c.flag("tie_word_embeddings", True)
    scaled = c.flag("scale_decoder_outputs", tied) if scales else False
    untied = c.has("lm_head.weight") and not scaled
    norm = Norm("rms", eps=c.eps("layer_norm_epsilon"))
    attention = Attention(heads, head_dim=c.count("d_kv"), scale=1.0)
    buckets = Buckets(c.count("relative_attention_num_buckets", least=4), c.count("relative_attention_max_distance"))

    def stack(count: int, *, cross: bool) -> Stack:
        return Stack(count, {"L": Block(attention, ffn, norm, cross=cross)}, position=buckets)

    count = c.parts("num_layers")
    m = Model(c.count("vocab_size"), width, encoder=stack(count, cross=False), head=None)
    if c.keys and not any(key.startswith("decoder.") for key in c.keys):
        c("num_decoder_layers")
        return m
    deep = c.parts("num_decoder_layers") if c("num_decoder_layers") is not None else count
    return replace(m, decoder=stack(deep, cross=True), head=Head(tied=not untied, scale=width**-0.5 if scaled else None))


def write(m: Model) -> dict[str, Any]:
    block, encoder = block_of(m), m.encoder
    assert encoder and isinstance(encoder.position, Buckets)
    act = {"gelu_tanh": "gelu" if mlp_of(m).gated else "gelu_new"}.get(mlp_of(m).activation, mlp_of(m).activation)
    return dict(
        vocab_size=m.vocab_size,
        d_model=m.width,
        d_kv=attention_of(block).size(m.width),
        d_ff=mlp_of(m).hidden,
        num_layers=encoder.num_layers,
        num_decoder_layers=m.decoder.num_layers if m.decoder else encoder.num_layers,
        num_heads=attention_of(block).num_heads,
        feed_forward_proj=f"gated-{act}" if mlp_of(m).gated else act,
        layer_norm_epsilon=block.norm.eps,
        relative_attention_num_buckets=encoder.position.num_buckets,
        relative_attention_max_distance=encoder.position.max_distance,
        tie_word_embeddings=m.head is None or m.head.scale is not None,
        is_encoder_decoder=m.decoder is not None,
    )


def t5_layers(stack: str, *parts: tuple[str, str]) -> dict[str, Any]:
    """Returns names in a layer, whose parts are numbered: attention, cross-attention (if any), feed-forward."""
    named: dict[str, str] = {}
    for i, (ours, theirs) in enumerate(parts):
        named |= {f"{ours}__{x}": f"layer.{i}.{theirs}.{x[0]}" for x in ("query", "key", "value", "out")}
        named |= {f"{ours}_in_norm": f"layer.{i}.layer_norm"}
    last = f"layer.{len(parts)}"
    return layers(
        stack, f"{stack}.block.{{}}.", **named, ffn_in_norm=f"{last}.layer_norm", ffn__down=f"{last}.DenseReluDense.wo"
    )


def names(m: Model) -> Names:
    gated = mlp_of(m).gated
    table: dict[str, Any] = {"embed/tokens": "shared", "head/out": "lm_head"}
    for stack, parts in (
        ("encoder", [("attention", "SelfAttention")]),
        ("decoder", [("attention", "SelfAttention"), ("cross", "EncDecAttention")]),
    ):
        wi = f"layer.{len(parts)}.DenseReluDense.wi"
        up = dict(ffn__up=f"{wi}_0", ffn__gate=f"{wi}_1") if gated else dict(ffn__up=wi)
        table |= t5_layers(stack, *parts) | layers(stack, f"{stack}.block.{{}}.", **up)
        table[f"{stack}/position_bias"] = f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias"
        table[f"{stack}/final_norm"] = f"{stack}.final_layer_norm"
    return table


def read_bart(c: Hf) -> Model:
    width, act = c.count("d_model"), activation(c, "activation_function")
    c("is_encoder_decoder", True)
    c.only("tie_word_embeddings", True), c.only("normalize_before", False), c.only("normalize_embedding", True)
    c.only("add_final_layer_norm", False), c.only("static_position_embeddings", False), c.only("extra_pos_embeddings", 2)
    c.only("add_bias_logits", False)
    positions, norm = Learned(c.count("max_position_embeddings"), offset=2), Norm(eps=1e-5)

    def stack(name: str, *, cross: bool) -> Stack:
        attention = Attention(c.count(f"{name}_attention_heads"), bias=True, out_bias=True)
        block = Block(attention, Mlp(c.count(f"{name}_ffn_dim"), act, bias=True), norm, ("out",), cross=cross)
        return Stack(c.parts(f"{name}_layers"), {"L": block}, position=positions, final_norm=False)

    return Model(
        c.count("vocab_size"),
        width,
        encoder=stack("encoder", cross=False),
        decoder=stack("decoder", cross=True),
        embed=Embed(scale=width**0.5 if c.flag("scale_embedding") else None, norm=norm),
    )


def write_bart(m: Model) -> dict[str, Any]:
    settings: dict[str, Any] = dict(vocab_size=m.vocab_size, d_model=m.width, scale_embedding=m.embed.scale is not None)
    for name, stack in (("encoder", m.encoder), ("decoder", m.decoder)):
        assert stack and isinstance(stack.position, Learned)
        block = stack.blocks[stack.letters()[0]]
        assert isinstance(block.ffn, Mlp)
        settings |= {
            f"{name}_attention_heads": attention_of(block).num_heads,
            f"{name}_ffn_dim": block.ffn.hidden,
            f"{name}_layers": stack.num_layers,
            "activation_function": their_activation(block.ffn.activation, "gelu_new"),
            "max_position_embeddings": stack.position.max_length,
        }
    return settings | dict(is_encoder_decoder=True, tie_word_embeddings=True)


def names_bart(m: Model) -> Names:
    table: dict[str, Any] = {"embed/tokens": "model.shared"}
    for stack in ("encoder", "decoder"):
        table[f"embed/{stack}_positions"] = f"model.{stack}.embed_positions"
        table[f"embed/{stack}_norm"] = f"model.{stack}.layernorm_embedding"
        table |= bart_layers(stack, norm_at="out")
    return table


def bart_layers(stack: str, *, norm_at: str) -> dict[str, Any]:
    """The layers of an encoder or a decoder as BART names them; `norm_at`: where its norms are."""
    parts = dict(attention="self_attn") | (dict(cross="encoder_attn") if stack == "decoder" else {})
    named = {"ffn__up": "fc1", "ffn__down": "fc2", f"ffn_{norm_at}_norm": "final_layer_norm"}
    for ours, theirs in parts.items():
        named |= projections(f"{theirs}.{{}}_proj", out="out", ours=ours)
        named[f"{ours}_{norm_at}_norm"] = f"{theirs}_layer_norm"
    return layers(stack, f"model.{stack}.layers.{{}}.", **named)


# Defaults of their config classes (transformers 5.24, `configuration_<family>.py`); tests/parity/test_config.py checks them.
T5 = dict(
    vocab_size=32_128,
    d_model=512,
    d_kv=64,
    d_ff=2048,
    num_layers=6,
    num_decoder_layers=None,
    num_heads=8,
    relative_attention_num_buckets=32,
    relative_attention_max_distance=128,
    layer_norm_epsilon=1e-6,
    feed_forward_proj="relu",
)
MT5 = T5 | dict(
    vocab_size=250_112, d_ff=1024, num_layers=8, num_heads=6, feed_forward_proj="gated-gelu", tie_word_embeddings=True
)
BART = dict(
    vocab_size=50_265,
    max_position_embeddings=1024,
    encoder_layers=12,
    encoder_ffn_dim=4096,
    encoder_attention_heads=16,
    decoder_layers=12,
    decoder_ffn_dim=4096,
    decoder_attention_heads=16,
    activation_function="gelu",
    d_model=1024,
    scale_embedding=False,
    tie_word_embeddings=True,
)
TABLES = ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


def t5(read: Any, name: str, defaults: dict[str, Any]) -> Family:
    return Family(
        read,
        write,
        names,
        architecture(name, "ForConditionalGeneration"),
        copies=dict.fromkeys(TABLES, "shared.weight"),
        defaults=defaults,
        aliases=dict(hidden_size="d_model", num_attention_heads="num_heads", num_hidden_layers="num_layers", head_dim="d_kv"),
    )


FAMILIES = {
    "t5": t5(read, "T5", T5),
    "mt5": t5(lambda c: read(c, scales=False), "MT5", MT5),
    "bart": Family(
        read_bart,
        write_bart,
        names_bart,
        architecture("Bart", "ForConditionalGeneration"),
        "model.",
        {name if name == "lm_head.weight" else f"model.{name}": "model.shared.weight" for name in TABLES},
        zeros=lambda m: {"final_logits_bias": (1, m.vocab_size)} if m.head else {},
        defaults=BART,
        aliases=dict(num_attention_heads="encoder_attention_heads", hidden_size="d_model", num_hidden_layers="encoder_layers"),
    ),
}
