"""LLaMA and its kin: Mistral, Mixtral, Qwen3, OLMo 2, Gemma, Gemma 2. SmolLM2, Orca and Code Llama are `llama`."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from lm.config import Attention, Block, Embed, Head, Mlp, Model, Moe, Norm, Rope, Stack
from lm.convert.tables import Family, Hf, Names, activation, layers, projections, their_activation


def read_rope(c: Hf, theta: float = 10_000.0) -> Rope:
    """Of both generations of their config: `rope_theta` and `rope_scaling`, or all in `rope_parameters`."""
    given = dict(c("rope_parameters", None) or c("rope_scaling", None) or {})
    theta = float(given.pop("rope_theta", c("rope_theta", theta)))
    fraction = float(given.pop("partial_rotary_factor", c("partial_rotary_factor", 1.0)))
    kind = given.pop("rope_type", given.pop("type", "default"))
    plain = Hf(given, ())
    rope = Rope(theta, fraction)
    if kind == "linear":
        rope = replace(rope, factor=float(plain("factor")))
    elif kind == "llama3":
        low, high = float(plain("low_freq_factor")), float(plain("high_freq_factor"))
        original = plain("original_max_position_embeddings")
        rope = replace(
            rope, factor=float(plain("factor")), low_freq_factor=low, high_freq_factor=high, original_length=original
        )
    else:
        Hf({"rope_type": kind}, ()).only("rope_type", "default")
    plain.check_all_used()
    return rope


def write_rope(rope: Rope) -> dict[str, Any]:
    given: dict[str, Any] = dict(rope_theta=rope.theta, rope_type="default")
    if rope.fraction != 1.0:
        given |= dict(partial_rotary_factor=rope.fraction)
    if rope.original_length is not None:
        given |= dict(rope_type="llama3", factor=rope.factor, original_max_position_embeddings=rope.original_length)
        given |= dict(low_freq_factor=rope.low_freq_factor, high_freq_factor=rope.high_freq_factor)
    elif rope.factor != 1.0:
        given |= dict(rope_type="linear", factor=rope.factor)
    return dict(rope_parameters=given)


def block_of(m: Model) -> Block:
    """The first layer's block."""
    stack = m.decoder or m.encoder
    assert stack
    return stack.blocks[stack.letters()[0]]


def mlp_of(m: Model) -> Mlp:
    """The first layer's feed-forward, which must be a plain one."""
    ffn = block_of(m).ffn
    assert isinstance(ffn, Mlp), "a mixture of experts"
    return ffn


def sizes(m: Model) -> dict[str, Any]:
    """What almost every decoder of theirs calls alike."""
    stack, block = m.decoder or m.encoder, block_of(m)
    assert stack
    return dict(
        vocab_size=m.vocab_size,
        hidden_size=m.width,
        num_hidden_layers=stack.num_layers,
        num_attention_heads=block.attention.num_heads,
        intermediate_size=mlp_of(m).hidden,
        tie_word_embeddings=bool(m.head and m.head.tied),
    )


def read(c: Hf, **of: Any) -> Model:
    """`of`: what sets a family apart. `attention`, `block`, `norm`: fields; `theta`, `tied`, `act`: its defaults."""
    heads = c("num_attention_heads")
    attention = Attention(
        heads,
        c("num_key_value_heads", heads),
        c("head_dim", None),
        bias=c("attention_bias", False),
        out_bias=c("attention_bias", False),
        **of.get("attention", {}),
    )
    ffn = Mlp(c("intermediate_size"), activation(c, of.get("act", "hidden_act"), "silu"), gated=True, bias=c("mlp_bias", False))
    c("max_position_embeddings", None)
    norm = Norm("rms", eps=c("rms_norm_eps", 1e-6), **of.get("norm", {}))
    block = Block(attention, ffn, norm, **of.get("block", {}))
    return Model(
        c("vocab_size"),
        c("hidden_size"),
        decoder=Stack(c("num_hidden_layers"), {"L": block}, position=read_rope(c, of.get("theta", 10_000.0))),
        embed=Embed(),
        head=Head(tied=c("tie_word_embeddings", of.get("tied", False))),
    )


def write(m: Model) -> dict[str, Any]:
    block = block_of(m)
    a, ffn, stack = block.attention, mlp_of(m), m.decoder
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
    """The model with a window in the layers of which `windowed(i)` is true."""
    assert m.decoder
    block = m.decoder.blocks["L"]
    local = replace(block, attention=replace(block.attention, window=window))
    letters = "".join("W" if window and windowed(i) else "L" for i in range(m.decoder.num_layers))
    return replace(m, decoder=replace(m.decoder, blocks={"L": block, "W": local}, pattern=letters))


def layer_types(m: Model) -> dict[str, Any]:
    """Their list of which layers have a window, and the window."""
    assert m.decoder
    of = [m.decoder.blocks[letter].attention.window for letter in m.decoder.letters()]
    types = ["sliding_attention" if w else "full_attention" for w in of]
    return dict(layer_types=types, sliding_window=next((w for w in of if w), None))


def read_mistral(c: Hf) -> Model:
    return windows(read(c), c("sliding_window", 4096), lambda i: True)


def write_mistral(m: Model) -> dict[str, Any]:
    given = write(m)
    del given["attention_bias"], given["mlp_bias"]
    return given | dict(sliding_window=block_of(m).attention.window)


def read_mixtral(c: Hf) -> Model:
    """Weights of the losses of their router are the training run's business, as dropout is."""
    c("router_aux_loss_coef", None), c.only("router_jitter_noise", 0.0)
    m = windows(read(c, theta=1_000_000.0), c("sliding_window", None), lambda i: True)
    assert m.decoder
    experts, chosen = c("num_local_experts", 8), c("num_experts_per_tok", 2)
    of = {k: replace(b, ffn=Moe(experts, chosen, b.ffn)) for k, b in m.decoder.blocks.items() if isinstance(b.ffn, Mlp)}
    return replace(m, decoder=replace(m.decoder, blocks=of))


def write_mixtral(m: Model) -> dict[str, Any]:
    assert m.decoder
    moe = block_of(m).ffn
    assert isinstance(moe, Moe)
    dense = {k: replace(b, ffn=moe.expert) for k, b in m.decoder.blocks.items()}
    given = write_mistral(replace(m, decoder=replace(m.decoder, blocks=dense)))
    return given | dict(num_local_experts=moe.num_experts, num_experts_per_tok=moe.top_k)


def read_qwen3(c: Hf) -> Model:
    norm = Norm("rms", eps=c("rms_norm_eps", 1e-6))
    window, first = c("sliding_window", None), c("max_window_layers", 28)
    used = c("use_sliding_window", False)
    model = read(c, attention=dict(qk_norm=norm))
    types = c("layer_types", None)
    return windows(model, window if used else None, lambda i: types[i] == "sliding_attention" if types else i >= first)


def write_qwen3(m: Model) -> dict[str, Any]:
    given = write(m) | layer_types(m)
    del given["mlp_bias"]
    return given | dict(use_sliding_window=given["sliding_window"] is not None)


def read_olmo2(c: Hf) -> Model:
    norm = Norm("rms", eps=c("rms_norm_eps", 1e-5))
    return read(c, attention=dict(qk_norm=norm, qk_norm_over="all"), block=dict(norm_at=("res",)), theta=500_000.0)


def write_olmo2(m: Model) -> dict[str, Any]:
    given = write(m)
    del given["mlp_bias"], given["head_dim"]
    return given


def gemma_parts(m: Model) -> Model:
    return replace(m, embed=replace(m.embed, scale=float(m.width) ** 0.5))


def read_gemma(c: Hf) -> Model:
    # Released files say "gelu" and mean tanh; what counts is `hidden_activation`, and "gelu_pytorch_tanh" without it.
    c("hidden_act", None)
    act = {} if c("hidden_activation", None) else {"hidden_activation": "gelu_pytorch_tanh"}
    c.values = {**c.values, **act}
    return gemma_parts(read(c, act="hidden_activation", norm=dict(unit_offset=True), tied=True))


def write_gemma(m: Model) -> dict[str, Any]:
    given = write(m)
    act = given.pop("hidden_act")
    del given["mlp_bias"]
    return given | dict(hidden_activation=act, hidden_act=act)


def read_gemma2(c: Hf) -> Model:
    attention = dict(softcap=c("attn_logit_softcapping", None), scale=float(c("query_pre_attn_scalar")) ** -0.5)
    offset, at = dict(unit_offset=True), dict(norm_at=("in", "res"))
    c("hidden_act", None), c("use_bidirectional_attention", None)
    m = gemma_parts(read(c, act="hidden_activation", attention=attention, norm=offset, block=at, tied=True))
    m = replace(m, head=Head(tied=m.head is not None and m.head.tied, softcap=c("final_logit_softcapping", None)))
    types = c("layer_types", None)
    return windows(m, c("sliding_window", 4096), lambda i: types[i] == "sliding_attention" if types else i % 2 == 0)


def write_gemma2(m: Model) -> dict[str, Any]:
    a, head = block_of(m).attention, m.head
    assert head
    scalar = (a.scale or a.size(m.width) ** -0.5) ** -2
    caps = dict(attn_logit_softcapping=a.softcap, final_logit_softcapping=head.softcap)
    return write_gemma(m) | layer_types(m) | caps | dict(query_pre_attn_scalar=round(scalar))


# Our gated product is act(x up) * (x gate); LLaMA calls the first its gate.
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


def family(read: Callable[[Hf], Model], write: Callable[[Model], dict[str, Any]], name: str, **norms: str) -> Family:
    return Family(
        read,
        write,
        names(**norms),
        lambda m: f"{name}ForCausalLM",
        copies={"lm_head.weight": TRUNK["embed/tokens"] + ".weight"},
    )


FAMILIES = {
    "llama": family(read, write, "Llama", **PRE),
    "mixtral": family(read_mixtral, write_mixtral, "Mixtral", **PRE, **EXPERTS),
    "mistral": family(read_mistral, write_mistral, "Mistral", **PRE),
    "qwen3": family(read_qwen3, write_qwen3, "Qwen3", **PRE, **QK_NORM),
    "olmo2": family(read_olmo2, write_olmo2, "Olmo2", **RES, **QK_NORM),
    "gemma": family(read_gemma, write_gemma, "Gemma", **PRE),
    "gemma2": family(read_gemma2, write_gemma2, "Gemma2", **BOTH),
}
