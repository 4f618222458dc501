"""LLaMA (as are SmolLM2, Orca and Code Llama) and families built like it: Mistral, Mixtral, Qwen3, OLMo 2, Gemma, Gemma 2,
Arcee (LLaMA without a gate)."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from lm.config import Attention, Block, Embed, Head, Mlp, Model, Moe, Norm, Rope, Stack
from lm.conversion.settings import MAX_SIZE, Hf
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


def read_rope(c: Hf, theta: float = 10_000.0, fraction: float | None = None) -> Rope:
    """Reads rotary positions from `rope_parameters`, or from `rope_theta` and `rope_scaling` (transformers before 5).

    `fraction` is the family's default for `partial_rotary_factor`; None: the family's code rotates the full head dim and
    ignores that key.
    """
    scaling, parameters, theta = c("rope_scaling", None), c("rope_parameters", None), c.number("rope_theta", theta)
    partial = c.number("partial_rotary_factor", fraction or 1.0)
    settings = scaling or parameters or {}
    if not isinstance(settings, dict) or any(isinstance(v, dict) for v in settings.values()):
        raise UserError(f"config.json: rope_parameters={settings!r} is not implemented, only one set for all layers")
    plain = Hf({"rope_type": settings.get("type", "default"), **settings}, ())
    plain("type", None)
    kind, theta = plain.only("rope_type", "default", "linear", "llama3"), plain.number("rope_theta", theta)
    partial = plain.number("partial_rotary_factor", partial)
    if fraction is None and kind != "default" and partial != 1.0:
        raise UserError(f"config.json: partial_rotary_factor={partial} beside rope_type={kind!r} fails in this family's code")
    rope = Rope(theta, 1.0 if fraction is None else partial)
    reach = c.count("max_position_embeddings", MAX_SIZE)
    if kind != "llama3":
        plain("original_max_position_embeddings", None)
        rope = replace(rope, factor=plain.number("factor") if kind == "linear" else float(plain.only("factor", 1.0)))
    else:
        reach = c.count("original_max_position_embeddings", plain("original_max_position_embeddings", reach))
        rope = replace(
            rope,
            factor=plain.number("factor"),
            low_freq_factor=plain.number("low_freq_factor"),
            high_freq_factor=plain.number("high_freq_factor"),
            original_length=reach,
        )
        if rope.high_freq_factor <= rope.low_freq_factor:
            raise UserError(f"config.json: high_freq_factor={rope.high_freq_factor} must exceed low_freq_factor")
    plain.check_all_used()
    return rope


def write_rope(rope: Rope) -> dict[str, Any]:
    settings: dict[str, Any] = dict(rope_theta=rope.theta, rope_type="default")
    if rope.fraction != 1.0:
        settings |= dict(partial_rotary_factor=rope.fraction)
    if rope.original_length is not None:
        settings |= dict(rope_type="llama3", factor=rope.factor, original_max_position_embeddings=rope.original_length)
        settings |= dict(low_freq_factor=rope.low_freq_factor, high_freq_factor=rope.high_freq_factor)
    elif rope.factor != 1.0:
        settings |= dict(rope_type="linear", factor=rope.factor)
    return dict(rope_parameters=settings)


EMPTY: Mapping[str, Any] = {}
LAYER_TYPES = ("sliding_attention", "full_attention")


def block_of(m: Model) -> Block:
    """The first layer's block."""
    stack = m.decoder or m.encoder
    assert stack
    return stack.blocks[stack.letters()[0]]


def mlp_of(m: Model) -> Mlp:
    """The first layer's feed-forward; AssertionError if it is a mixture of experts."""
    ffn = block_of(m).ffn
    assert isinstance(ffn, Mlp), "a mixture of experts"
    return ffn


def sizes(m: Model) -> dict[str, Any]:
    """The keys that almost every decoder of theirs has under these names."""
    stack, block = m.decoder or m.encoder, block_of(m)
    assert stack
    return dict(
        vocab_size=m.vocab_size,
        hidden_size=m.width,
        num_hidden_layers=stack.num_layers,
        num_attention_heads=attention_of(block).num_heads,
        intermediate_size=mlp_of(m).hidden,
        tie_word_embeddings=bool(m.head and m.head.tied),
    )


def read(
    c: Hf,
    *,
    attention: Mapping[str, Any] = EMPTY,
    block: Mapping[str, Any] = EMPTY,
    norm: Mapping[str, Any] = EMPTY,
    theta: float = 10_000.0,
    act: str = "hidden_act",
    has_bias: bool = True,
    gated: bool = True,
) -> Model:
    """Reads LLaMA, or a family that differs from it in a few settings.

    attention, block, norm: further fields of these dataclasses.
    theta: default of `rope_theta`.
    act: key of the activation.
    has_bias: whether the family's code reads `attention_bias`.
    gated: whether the feed-forward has a gate.
    """
    heads, bias = c.count("num_attention_heads"), has_bias and c.flag("attention_bias")
    kv_heads, head_dim = c.count_or_none("num_key_value_heads") or heads, c.count_or_none("head_dim", None)
    activation_name = activation(c, act)
    mlp_bias = "mlp_bias" in c.defaults and c.flag("mlp_bias")
    layer = Block(
        Attention(heads, kv_heads, head_dim, bias=bias, out_bias=bias, **attention),
        Mlp(c.count("intermediate_size"), activation_name, gated=gated, bias=mlp_bias),
        Norm("rms", eps=c.eps("rms_norm_eps"), **norm),
        **block,
    )
    return Model(
        c.count("vocab_size"),
        c.count("hidden_size"),
        decoder=Stack(c.parts("num_hidden_layers"), {"L": layer}, position=read_rope(c, theta)),
        embed=Embed(),
        head=Head(tied=c.flag("tie_word_embeddings")),
    )


def write(m: Model) -> dict[str, Any]:
    block = block_of(m)
    a, ffn, stack = attention_of(block), mlp_of(m), m.decoder
    assert stack and isinstance(stack.position, Rope)
    return dict(
        **sizes(m),
        num_key_value_heads=a.kv_heads,
        head_dim=a.size(m.width),
        attention_bias=a.bias,
        mlp_bias=ffn.bias,
        hidden_act=their_activation(ffn.activation),
        rms_norm_eps=block.norm.eps,
        max_position_embeddings=stack.position.original_length or 4096,
        **write_rope(stack.position),
    )


def windows(m: Model, window: int | None, windowed: Callable[[int], bool]) -> Model:
    """Returns the model with attention windows in the layers i where `windowed(i)` is true."""
    assert m.decoder
    block = m.decoder.blocks["L"]
    local = replace(block, attention=replace(attention_of(block), window=window))
    letters = "".join("W" if window and windowed(i) else "L" for i in range(m.decoder.num_layers))
    return replace(m, decoder=replace(m.decoder, blocks={"L": block, "W": local}, pattern=letters))


def read_layer_types(c: Hf, count: int, by_default: Callable[[int], bool]) -> list[bool]:
    """Returns for each layer whether it has a window: by `layer_types`, or if that is missing by `by_default(i)`."""
    types = c("layer_types", None)
    if types is None:
        return [by_default(i) for i in range(count)]
    if not isinstance(types, list) or len(types) != count or not set(map(str, types)) <= set(LAYER_TYPES):
        raise UserError(f"config.json: layer_types must be a list of {count}, each {' or '.join(LAYER_TYPES)}, not {types!r}")
    return [t == LAYER_TYPES[0] for t in types]


def typed_windows(c: Hf, m: Model, window: int | None, by_default: Callable[[int], bool]) -> Model:
    """Returns the model with attention windows in the layers that `layer_types` names."""
    assert m.decoder
    local = read_layer_types(c, m.decoder.num_layers, by_default)
    if window is None and any(local):
        raise UserError("config.json gives layers of sliding_attention but no sliding_window")
    return windows(m, window, lambda i: local[i])


def layer_types(m: Model) -> dict[str, Any]:
    """Returns their keys `layer_types` and `sliding_window`."""
    assert m.decoder
    by_layer = [attention_of(m.decoder.blocks[letter]).window for letter in m.decoder.letters()]
    types = ["sliding_attention" if w else "full_attention" for w in by_layer]
    return dict(layer_types=types, sliding_window=next((w for w in by_layer if w), None))


def read_mistral(c: Hf, theta: float = 10_000.0) -> Model:
    return windows(read(c, theta=theta, has_bias=False), c.count_or_none("sliding_window"), lambda i: True)


def write_mistral(m: Model) -> dict[str, Any]:
    settings = write(m)
    del settings["attention_bias"], settings["mlp_bias"]
    return settings | dict(sliding_window=attention_of(block_of(m)).window)


def read_arcee(c: Hf) -> Model:
    return read(c, gated=False)


def read_mixtral(c: Hf) -> Model:
    """The router's loss weights and noise are not converted: like dropout, they belong to a training run."""
    m = read_mistral(c, theta=1_000_000.0)
    assert m.decoder
    experts, chosen = c.parts("num_local_experts"), c.count("num_experts_per_tok")
    blocks = {k: replace(b, ffn=Moe(experts, chosen, b.ffn)) for k, b in m.decoder.blocks.items() if isinstance(b.ffn, Mlp)}
    return replace(m, decoder=replace(m.decoder, blocks=blocks))


def write_mixtral(m: Model) -> dict[str, Any]:
    assert m.decoder
    moe = block_of(m).ffn
    assert isinstance(moe, Moe)
    dense = {k: replace(b, ffn=moe.expert) for k, b in m.decoder.blocks.items()}
    settings = write_mistral(replace(m, decoder=replace(m.decoder, blocks=dense)))
    return settings | dict(num_local_experts=moe.num_experts, num_experts_per_tok=moe.top_k)


def read_qwen3(c: Hf) -> Model:
    norm = Norm("rms", eps=c.eps("rms_norm_eps"))
    window, first = c.count_or_none("sliding_window"), c.count("max_window_layers", least=0)
    window = window if c.flag("use_sliding_window") else None
    model = read(c, attention=dict(qk_norm=norm))
    return typed_windows(c, model, window, lambda i: window is not None and i >= first)


def write_qwen3(m: Model) -> dict[str, Any]:
    settings = write(m) | layer_types(m)
    del settings["mlp_bias"]
    return settings | dict(use_sliding_window=settings["sliding_window"] is not None)


def read_olmo2(c: Hf) -> Model:
    norm = Norm("rms", eps=c.eps("rms_norm_eps"))
    return read(c, attention=dict(qk_norm=norm, qk_norm_over="all"), block=dict(norm_at=("res",)))


def write_olmo2(m: Model) -> dict[str, Any]:
    settings = write(m)
    del settings["mlp_bias"], settings["head_dim"]
    return settings


def scale_embeddings(m: Model) -> Model:
    return replace(m, embed=replace(m.embed, scale=float(m.width) ** 0.5))


TANH = "gelu_pytorch_tanh"


def read_gemma(c: Hf) -> Model:
    """Released files have "gelu" for the tanh form. transformers before 5 reads `hidden_activation`, which must agree."""
    if c("hidden_act") == "gelu":
        c.values["hidden_act"] = TANH
    m = scale_embeddings(read(c, norm=dict(unit_offset=True)))
    same_activation(c, "hidden_activation", c("hidden_act"))
    return m


def write_gemma(m: Model) -> dict[str, Any]:
    settings = write(m)
    del settings["mlp_bias"]
    return settings | dict(hidden_activation=settings["hidden_act"])


def read_gemma2(c: Hf) -> Model:
    """Released files have `hidden_act` too, but no version of their code reads it."""
    attention = dict(softcap=c.number_or_none("attn_logit_softcapping"), scale=c.number("query_pre_attn_scalar") ** -0.5)
    c("hidden_act", None)
    m = scale_embeddings(
        read(c, act="hidden_activation", attention=attention, norm=dict(unit_offset=True), block=dict(norm_at=("in", "res")))
    )
    assert m.head
    m = replace(m, head=replace(m.head, softcap=c.number_or_none("final_logit_softcapping")))
    return typed_windows(c, m, c.count_or_none("sliding_window"), lambda i: i % 2 == 0)


def write_gemma2(m: Model) -> dict[str, Any]:
    a, settings = attention_of(block_of(m)), write_gemma(m) | layer_types(m)
    scalar = (a.scale or a.size(m.width) ** -0.5) ** -2
    caps = dict(attn_logit_softcapping=a.softcap, final_logit_softcapping=m.head.softcap if m.head else None)
    # Their code builds the windowed mask even if no layer uses it, and fails on null.
    settings["sliding_window"] = settings["sliding_window"] or GEMMA2["sliding_window"]
    return settings | caps | dict(query_pre_attn_scalar=round(scalar))


# Our gated MLP is act(x up) * (x gate); theirs is act(x gate) * (x up).
FFN = dict(ffn__up="mlp.gate_proj", ffn__gate="mlp.up_proj", ffn__down="mlp.down_proj")
TRUNK = {"embed/tokens": "model.embed_tokens", "decoder/final_norm": "model.norm", "head/out": "lm_head"}


def names(**norms: str) -> Callable[[Model], Names]:
    return lambda m: TRUNK | layers("decoder", "model.layers.{}.", **projections(), **{**FFN, **norms})


EXPERTS = {
    f"ffn__{ours}": f"block_sparse_moe.experts.{{expert}}.{x}" for ours, x in dict(up="w1", gate="w3", down="w2").items()
}
EXPERTS |= dict(ffn__router="block_sparse_moe.gate")
PRE = dict(attention_in_norm="input_layernorm", ffn_in_norm="post_attention_layernorm")
QK_NORM = dict(attention__query_norm="self_attn.q_norm", attention__key_norm="self_attn.k_norm")
RES = dict(attention_res_norm="post_attention_layernorm", ffn_res_norm="post_feedforward_layernorm")
BOTH = dict(attention_in_norm="input_layernorm", ffn_in_norm="pre_feedforward_layernorm", **RES)


# Defaults of their config classes (transformers 5.24, `configuration_<family>.py`); tests/parity/test_config.py checks them.
LLAMA = dict(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=None,
    head_dim=None,
    hidden_act="silu",
    max_position_embeddings=2048,
    rms_norm_eps=1e-6,
    tie_word_embeddings=False,
    rope_parameters=None,
    attention_bias=False,
    mlp_bias=False,
)
ARCEE = LLAMA | dict(
    hidden_size=2560, intermediate_size=18_432, hidden_act="relu2", max_position_embeddings=4096, rms_norm_eps=1e-5
)
MISTRAL = {k: v for k, v in LLAMA.items() if k not in ("attention_bias", "mlp_bias")} | dict(
    intermediate_size=14_336, num_key_value_heads=8, max_position_embeddings=131_072, sliding_window=4096
)
MIXTRAL = MISTRAL | dict(rms_norm_eps=1e-5, sliding_window=None, num_local_experts=8, num_experts_per_tok=2)
OLMO2 = {k: v for k, v in LLAMA.items() if k not in ("head_dim", "mlp_bias")} | dict(vocab_size=50_304, rms_norm_eps=1e-5)
QWEN3 = {k: v for k, v in LLAMA.items() if k != "mlp_bias"} | dict(
    vocab_size=151_936,
    intermediate_size=22_016,
    num_key_value_heads=32,
    head_dim=128,
    max_position_embeddings=32_768,
    use_sliding_window=False,
    sliding_window=4096,
    max_window_layers=28,
    layer_types=None,
)
GEMMA = {k: v for k, v in LLAMA.items() if k != "mlp_bias"} | dict(
    vocab_size=256_000,
    hidden_size=3072,
    intermediate_size=24_576,
    num_hidden_layers=28,
    num_attention_heads=16,
    num_key_value_heads=16,
    head_dim=256,
    hidden_act=TANH,
    max_position_embeddings=8192,
    tie_word_embeddings=True,
    use_bidirectional_attention=None,
)
GEMMA2 = {k: v for k, v in GEMMA.items() if k != "hidden_act"} | dict(
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    hidden_activation=TANH,
    query_pre_attn_scalar=256,
    sliding_window=4096,
    layer_types=None,
    final_logit_softcapping=30.0,
    attn_logit_softcapping=50.0,
)


def family(read: Any, write: Any, name: str, defaults: dict[str, Any], **norms: str) -> Family:
    tied = {"lm_head.weight": TRUNK["embed/tokens"] + ".weight"}
    return Family(read, write, names(**norms), architecture(name), "model.", tied, defaults=defaults)


FAMILIES = {
    "llama": family(read, write, "Llama", LLAMA, **PRE),
    "mixtral": replace(
        family(read_mixtral, write_mixtral, "Mixtral", MIXTRAL, **PRE, **EXPERTS), aliases={"num_experts": "num_local_experts"}
    ),
    "mistral": family(read_mistral, write_mistral, "Mistral", MISTRAL, **PRE),
    "qwen3": family(read_qwen3, write_qwen3, "Qwen3", QWEN3, **PRE, **QK_NORM),
    "olmo2": family(read_olmo2, write_olmo2, "Olmo2", OLMO2, **RES, **QK_NORM),
    "arcee": family(read_arcee, write, "Arcee", ARCEE, **PRE, ffn__up="mlp.up_proj"),
    "gemma": family(read_gemma, write_gemma, "Gemma", GEMMA, **PRE),
    "gemma2": family(read_gemma2, write_gemma2, "Gemma2", GEMMA2, **BOTH),
}
