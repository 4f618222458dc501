"""Families with recurrent layers: RecurrentGemma (Griffin's layers, arXiv 2404.07839) and Mamba-2 (arXiv 2405.21060)."""

import math
from typing import Any

import ml_dtypes

from lm.config import Attention, Block, Embed, GatedLinear, Head, Mamba2, Mlp, Model, Norm, Rope, Stack
from lm.conversion.families.llama import FFN, block_of, mlp_of, read_rope, write_rope
from lm.conversion.settings import Hf
from lm.conversion.tables import Family, Names, architecture, attention_of, fused, layers, projections, same_activation
from lm.errors import UserError

TANH = "gelu_pytorch_tanh"
KINDS = {"recurrent": "R", "attention": "A"}  # of their layers -> our letters


def read_recurrent_gemma(c: Hf) -> Model:
    width, heads, bias = c.count("hidden_size"), c.count("num_attention_heads"), c.flag("attention_bias")
    same_activation(c, "hidden_activation", TANH)
    for name in ("w_init_variance_scale", "final_w_init_variance_scale"):  # of initial values
        c(name, None)
    kinds = c("block_types")
    if not isinstance(kinds, list | tuple) or not kinds or not set(map(str, kinds)) <= set(KINDS):
        raise UserError(f"config.json: block_types must be a list of {' and '.join(KINDS)}, not {kinds!r}")
    attention = Attention(
        heads,
        c.count_or_none("num_key_value_heads") or heads,
        c.count("head_dim", width // heads),
        bias=bias,
        out_bias=True,
        window=c.count("attention_window_size"),
    )
    ffn = Mlp(max(c.count("intermediate_size") // 2, 1), "gelu_tanh", gated=True, bias=True)
    norm = Norm("rms", eps=c.eps("rms_norm_eps"), unit_offset=True)
    recurrent = GatedLinear(c.count_or_none("lru_width") or width, heads, c.count("conv1d_width"), bias=True)
    blocks = {"R": Block(None, ffn, norm, mixer=recurrent), "A": Block(attention, ffn, norm)}
    pattern = "".join(KINDS[kind] for kind in kinds)
    count = c.parts("num_hidden_layers")
    letters = (pattern * count)[:count]
    c.agrees("layers_block_type", ["linear_attention" if x == "R" else "sliding_attention" for x in letters])
    return Model(
        c.count("vocab_size"),
        width,
        decoder=Stack(count, blocks, pattern, position=read_rope(c, fraction=0.5)),
        embed=Embed(scale=float(ml_dtypes.bfloat16(width**0.5))),  # their code rounds it, whatever the weights' dtype
        head=Head(tied=c.flag("tie_word_embeddings"), softcap=c.number("logits_soft_cap")),
    )


def write_recurrent_gemma(m: Model) -> dict[str, Any]:
    stack, ffn = m.decoder, mlp_of(m)
    assert stack and isinstance(stack.position, Rope) and m.head
    by_letter = [stack.blocks[letter] for letter in stack.pattern]
    mixer = next((b.mixer for b in by_letter if isinstance(b.mixer, GatedLinear)), GatedLinear())  # of another family: any
    attention = next((attention_of(b) for b in by_letter if b.mixer is None), None)
    attention = attention or Attention(mixer.num_heads, window=2048, out_bias=True)
    return dict(
        vocab_size=m.vocab_size,
        hidden_size=m.width,
        num_hidden_layers=stack.num_layers,
        intermediate_size=2 * ffn.hidden,
        num_attention_heads=attention.num_heads,
        num_key_value_heads=attention.kv_heads,
        head_dim=attention.size(m.width),
        attention_bias=attention.bias,
        attention_window_size=attention.window,
        lru_width=mixer.size(m.width),
        conv1d_width=mixer.conv,
        block_types=["attention" if b.mixer is None else "recurrent" for b in by_letter],
        hidden_activation=TANH,
        rms_norm_eps=block_of(m).norm.eps,
        logits_soft_cap=m.head.softcap,
        tie_word_embeddings=m.head.tied,
        **write_rope(stack.position),
    )


def read_mamba2(c: Hf) -> Model:
    width, heads, head_dim = c.count("hidden_size"), c.count("num_heads"), c.count("head_dim")
    if c.count("expand") * width != heads * head_dim:
        raise UserError(f"config.json: {heads} heads of {head_dim} are not expand={c('expand')} times hidden_size={width}")
    c.only("use_bias", False)
    c.only("use_conv_bias", True)
    same_activation(c, "hidden_act", "silu")
    limit = c("time_step_limit")
    if not isinstance(limit, list | tuple) or [*limit] not in ([0, math.inf], [0, {"__float__": "Infinity"}]):
        raise UserError(f"config.json: time_step_limit={limit!r} is not implemented, only steps of any size")
    for name in ("min", "max", "floor", "rank"):  # of initial values
        c(f"time_step_{name}", None)
    for name in ("residual_in_fp32", "rescale_prenorm_residual"):  # of half precision, and of initial values
        c(name, None)
    eps = c.eps("layer_norm_epsilon")
    sizes = (c.count("state_size"), c.count("n_groups"), c.count("conv_kernel"), c.count("chunk_size"))
    block = Block(norm=Norm("rms", eps=eps), mixer=Mamba2(heads * head_dim, head_dim, *sizes, eps=eps))
    return Model(
        c.count("vocab_size"),
        width,
        decoder=Stack(c.parts("num_hidden_layers"), {"L": block}),
        embed=Embed(),
        head=Head(tied=c.flag("tie_word_embeddings")),
    )


def write_mamba2(m: Model) -> dict[str, Any]:
    stack, mixer = m.decoder, block_of(m).mixer
    assert stack and isinstance(mixer, Mamba2) and mixer.size(m.width) % m.width == 0
    return dict(
        vocab_size=m.vocab_size,
        hidden_size=m.width,
        num_hidden_layers=stack.num_layers,
        num_heads=mixer.num_heads(m.width),
        head_dim=mixer.head_dim,
        state_size=mixer.state,
        n_groups=mixer.groups,
        expand=mixer.size(m.width) // m.width,
        conv_kernel=mixer.conv,
        chunk_size=mixer.chunk,
        layer_norm_epsilon=mixer.eps,
        use_bias=False,
        use_conv_bias=True,
        tie_word_embeddings=bool(m.head and m.head.tied),
    )


GRIFFIN = dict(
    mixer_in_norm="temporal_pre_norm",
    attention_in_norm="temporal_pre_norm",
    ffn_in_norm="channel_pre_norm",
    mixer__forward__gate="temporal_block.linear_y",
    mixer__forward__up="temporal_block.linear_x",
    mixer__forward__out="temporal_block.linear_out",
    mixer__forward__conv="temporal_block.conv_1d",
    mixer__forward__decay="temporal_block.rg_lru.recurrent_param",
    mixer__forward__decay_gate__bias="temporal_block.rg_lru.recurrent_gate_bias",
    mixer__forward__decay_gate__blocks__kernel="temporal_block.rg_lru.recurrent_gate_weight",
    mixer__forward__input_gate__bias="temporal_block.rg_lru.input_gate_bias",
    mixer__forward__input_gate__blocks__kernel="temporal_block.rg_lru.input_gate_weight",
    **projections("temporal_block.{}_proj"),
    **{ours: theirs.replace("mlp.", "mlp_block.") for ours, theirs in FFN.items()},
)
MAMBA2_LAYER = dict(
    mixer_in_norm="norm",
    mixer__forward__out="mixer.out_proj",
    mixer__forward__decay="mixer.A_log",
    mixer__forward__skip="mixer.D",
    mixer__forward__step_bias="mixer.dt_bias",
    mixer__forward__scale="mixer.norm.weight",
    **fused("mixer.in_proj", *(f"mixer__forward__{name}" for name in ("gate", "up", "b", "c", "step"))),
    **fused("mixer.conv1d", *(f"mixer__forward__{name}_conv" for name in ("up", "b", "c"))),
)


def griffin_names(m: Model) -> Names:
    trunk = {"embed/tokens": "model.embed_tokens", "decoder/final_norm": "model.final_norm", "head/out": "lm_head"}
    return trunk | layers("decoder", "model.layers.{}.", **GRIFFIN)


def mamba2_names(m: Model) -> Names:
    trunk = {"embed/tokens": "backbone.embeddings", "decoder/final_norm": "backbone.norm_f", "head/out": "lm_head"}
    return trunk | layers("decoder", "backbone.layers.{}.", **MAMBA2_LAYER)


# Defaults of their config classes (transformers 5.24, `configuration_<family>.py`); tests/parity/test_config.py checks them.
RECURRENT_GEMMA = dict(
    vocab_size=256_000,
    hidden_size=2560,
    intermediate_size=7680,
    num_hidden_layers=26,
    num_attention_heads=10,
    num_key_value_heads=None,
    lru_width=None,
    attention_window_size=2048,
    conv1d_width=4,
    logits_soft_cap=30.0,
    rms_norm_eps=1e-6,
    hidden_activation=TANH,
    rope_parameters=None,
    block_types=("recurrent", "recurrent", "attention"),
    attention_bias=False,
    w_init_variance_scale=0.01,
    tie_word_embeddings=True,
)
MAMBA2 = dict(
    vocab_size=32_768,
    hidden_size=4096,
    num_hidden_layers=64,
    num_heads=128,
    head_dim=64,
    state_size=128,
    n_groups=8,
    expand=2,
    conv_kernel=4,
    chunk_size=256,
    layer_norm_epsilon=1e-5,
    hidden_act="silu",
    use_bias=False,
    use_conv_bias=True,
    residual_in_fp32=True,
    time_step_rank="auto",
    time_step_min=0.001,
    time_step_max=0.1,
    time_step_floor=1e-4,
    time_step_limit=(0.0, math.inf),
    rescale_prenorm_residual=False,
    tie_word_embeddings=False,
)
FAMILIES = {
    "recurrent_gemma": Family(
        read_recurrent_gemma,
        write_recurrent_gemma,
        griffin_names,
        architecture("RecurrentGemma"),
        "model.",
        {"lm_head.weight": "model.embed_tokens.weight"},
        defaults=RECURRENT_GEMMA,
        aliases={"sliding_window": "attention_window_size", "layer_types": "layers_block_type"},
    ),
    "mamba2": Family(
        read_mamba2,
        write_mamba2,
        mamba2_names,
        architecture("Mamba2"),
        "backbone.",
        {"lm_head.weight": "backbone.embeddings.weight"},
        defaults=MAMBA2,
    ),
}
