"""T5 and its versions 1.1 and Flan, BART: an encoder and a decoder."""

from typing import Any

from lm.config import Attention, Block, Buckets, Embed, Head, Learned, Mlp, Model, Norm, Stack
from lm.convert.families.llama import block_of, mlp_of
from lm.convert.tables import Family, Hf, Names, activation, layers, projections


def read(c: Hf) -> Model:
    """`tie_word_embeddings` false (version 1.1) says that the logits are not scaled, and have a matrix if the file has one."""
    width, heads = c("d_model"), c("num_heads")
    gated, _, act = c("feed_forward_proj", "relu").rpartition("-")
    c("dense_act_fn", None), c("is_gated_act", None)
    # "gated-gelu" has always meant the tanh form.
    act = {"gelu": "gelu_new"}.get(act, act) if gated else act
    names = Hf({"feed_forward_proj": act}, ())
    ffn = Mlp(c("d_ff"), activation(names, "feed_forward_proj"), gated=bool(gated))
    tied = c("tie_word_embeddings", True)
    scaled = c("scale_decoder_outputs", tied)
    own = c.has("lm_head.weight") and not scaled

    def stack(count: int, *, cross: bool) -> Stack:
        attention = Attention(heads, head_dim=c("d_kv"), scale=1.0)
        norm = Norm("rms", eps=c("layer_norm_epsilon", 1e-6))
        buckets = Buckets(c("relative_attention_num_buckets", 32), c("relative_attention_max_distance", 128))
        return Stack(count, {"L": Block(attention, ffn, norm, cross=cross)}, position=buckets)

    c("n_positions", None)
    return Model(
        c("vocab_size"),
        width,
        encoder=stack(c("num_layers"), cross=False),
        decoder=stack(c("num_decoder_layers", None) or c("num_layers"), cross=True),
        head=Head(tied=not own, scale=width**-0.5 if scaled else None),
    )


def write(m: Model) -> dict[str, Any]:
    block, encoder, decoder = block_of(m), m.encoder, m.decoder
    assert encoder and decoder and m.head and isinstance(encoder.position, Buckets)
    act = {"gelu_tanh": "gelu" if mlp_of(m).gated else "gelu_new"}.get(mlp_of(m).activation, mlp_of(m).activation)
    return dict(
        vocab_size=m.vocab_size,
        d_model=m.width,
        d_kv=block.attention.size(m.width),
        d_ff=mlp_of(m).hidden,
        num_layers=encoder.num_layers,
        num_decoder_layers=decoder.num_layers,
        num_heads=block.attention.num_heads,
        feed_forward_proj=f"gated-{act}" if mlp_of(m).gated else act,
        layer_norm_epsilon=block.norm.eps,
        relative_attention_num_buckets=encoder.position.num_buckets,
        relative_attention_max_distance=encoder.position.max_distance,
        tie_word_embeddings=m.head.scale is not None,
        is_encoder_decoder=True,
    )


def t5_layers(stack: str, *parts: tuple[str, str]) -> dict[str, Any]:
    """The parts of a layer are numbered: attention, cross-attention, feed-forward."""
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
    width, act = c("d_model"), activation(c, "activation_function", "gelu")
    c.only("tie_word_embeddings", True), c.only("normalize_before", False), c.only("normalize_embedding", True)
    c.only("add_final_layer_norm", False), c.only("static_position_embeddings", False), c.only("extra_pos_embeddings", 2)
    c.only("add_bias_logits", False), c("num_hidden_layers", None)
    positions, norm = Learned(c("max_position_embeddings"), offset=2), Norm(eps=1e-5)

    def stack(name: str, *, cross: bool) -> Stack:
        attention = Attention(c(f"{name}_attention_heads"), bias=True, out_bias=True)
        block = Block(attention, Mlp(c(f"{name}_ffn_dim"), act, bias=True), norm, ("out",), cross=cross)
        return Stack(c(f"{name}_layers"), {"L": block}, position=positions, final_norm=False)

    return Model(
        c("vocab_size"),
        width,
        encoder=stack("encoder", cross=False),
        decoder=stack("decoder", cross=True),
        embed=Embed(scale=width**0.5 if c("scale_embedding", False) else None, norm=norm),
    )


def write_bart(m: Model) -> dict[str, Any]:
    given: dict[str, Any] = dict(vocab_size=m.vocab_size, d_model=m.width, scale_embedding=m.embed.scale is not None)
    for name, stack in (("encoder", m.encoder), ("decoder", m.decoder)):
        assert stack and isinstance(stack.position, Learned)
        block = stack.blocks[stack.letters()[0]]
        assert isinstance(block.ffn, Mlp)
        given |= {
            f"{name}_attention_heads": block.attention.num_heads,
            f"{name}_ffn_dim": block.ffn.hidden,
            f"{name}_layers": stack.num_layers,
            "activation_function": block.ffn.activation,
            "max_position_embeddings": stack.position.max_length,
        }
    return given | dict(is_encoder_decoder=True, tie_word_embeddings=True)


def names_bart(m: Model) -> Names:
    table: dict[str, Any] = {"embed/tokens": "model.shared"}
    for stack in ("encoder", "decoder"):
        table[f"embed/{stack}_positions"] = f"model.{stack}.embed_positions"
        table[f"embed/{stack}_norm"] = f"model.{stack}.layernorm_embedding"
        parts = dict(attention="self_attn") | (dict(cross="encoder_attn") if stack == "decoder" else {})
        named = dict(ffn__up="fc1", ffn__down="fc2", ffn_out_norm="final_layer_norm")
        for ours, theirs in parts.items():
            named |= projections(f"{theirs}.{{}}_proj", out="out", ours=ours)
            named[f"{ours}_out_norm"] = f"{theirs}_layer_norm"
        table |= layers(stack, f"model.{stack}.layers.{{}}.", **named)
    return table


FAMILIES = {
    "t5": Family(
        read,
        write,
        names,
        lambda m: "T5ForConditionalGeneration",
        copies={
            name: "shared.weight" for name in ("lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
        },
    ),
    "bart": Family(
        read_bart,
        write_bart,
        names_bart,
        lambda m: "BartForConditionalGeneration",
        copies={
            name: "model.shared.weight"
            for name in ("lm_head.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")
        },
        zeros=lambda m: {"final_logits_bias": (1, m.vocab_size)},
    ),
}
