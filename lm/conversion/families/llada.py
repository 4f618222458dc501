"""LLaDA (arXiv 2502.09992): LLaMA's blocks in an encoder, trained by masked diffusion.

Its config keys and tensor names are those of the code that is published beside the weights; transformers has no class of it.
"""

from typing import Any

from lm.config import Attention, Block, Head, Mlp, Model, Norm, Rope, Stack
from lm.conversion.families.llama import block_of, mlp_of
from lm.conversion.settings import Hf
from lm.conversion.tables import Family, attention_of, layers
from lm.errors import UserError


def read(c: Hf) -> Model:
    heads, width = c.count("n_heads"), c.count("d_model")
    kv_heads = c.count_or_none("n_kv_heads") or (1 if c("multi_query_attention") else heads)
    hidden = c.count_or_none("mlp_hidden_size") or c.count("mlp_ratio") * width
    c("mlp_ratio")
    rows, words = c.count_or_none("embedding_size"), c.count("vocab_size")
    if rows is not None and rows < words:
        raise UserError(f"config.json: embedding_size={rows} is below vocab_size={words}")
    _only_as_released(c)
    layer = Block(
        Attention(heads, kv_heads),
        Mlp(hidden, "silu", gated=True),
        Norm("rms", eps=c.eps("rms_norm_eps")),
    )
    stack = Stack(c.parts("n_layers"), {"L": layer}, position=Rope(c.number("rope_theta")))
    return Model(rows or words, width, encoder=stack, head=Head(tied=c.flag("weight_tying")))


def _only_as_released(c: Hf) -> None:
    """UserError if a switch of their code, which comes from OLMo's, is not as in the released models."""
    for name, value in RELEASED.items():
        c.only(name, value)
    c.only("bias_for_layer_norm", False, None)
    for name in SILENT:
        c(name, None)


def write(m: Model) -> dict[str, Any]:
    block, stack = block_of(m), m.encoder
    assert stack and isinstance(stack.position, Rope) and m.head
    return RELEASED | dict(
        vocab_size=m.vocab_size,
        embedding_size=m.vocab_size,
        d_model=m.width,
        n_heads=attention_of(block).num_heads,
        n_kv_heads=attention_of(block).kv_heads,
        n_layers=stack.num_layers,
        mlp_hidden_size=mlp_of(m).hidden,
        rms_norm_eps=block.norm.eps,
        rope_theta=stack.position.theta,
        weight_tying=m.head.tied,
        bias_for_layer_norm=False,
    )


RELEASED: dict[str, Any] = dict(
    activation_type="silu",
    alibi=False,
    attention_layer_norm=False,
    block_group_size=1,
    block_type="llama",
    include_bias=False,
    include_qkv_bias=False,
    input_emb_norm=False,
    layer_norm_type="rms",
    layer_norm_with_affine=True,
    rope=True,
    scale_logits=False,
)
SILENT = (  # how it is computed or was initialised, or what the switches above leave without effect
    "alibi_bias_max",
    "attention_layer_norm_with_affine",
    "flash_attention",
    "init_cutoff_factor",
    "init_device",
    "init_fn",
    "precision",
    "rope_full_precision",
)
# Of their config class, which has another architecture by default: a file that lacks a switch is refused.
DEFAULTS = dict(
    n_kv_heads=None,
    multi_query_attention=None,
    mlp_ratio=4,
    mlp_hidden_size=None,
    embedding_size=50_304,
    activation_type="swiglu",
    block_type="sequential",
    layer_norm_type="default",
    rope=False,
    rope_theta=10_000.0,
    rms_norm_eps=1e-5,
    bias_for_layer_norm=None,
    weight_tying=True,
)
NAMES = {
    "embed/tokens": "model.transformer.wte",
    "encoder/final_norm": "model.transformer.ln_f",
    "head/out": "model.transformer.ff_out",
} | layers(
    "encoder",
    "model.transformer.blocks.{}.",
    attention__query="q_proj",
    attention__key="k_proj",
    attention__value="v_proj",
    attention__out="attn_out",
    attention_in_norm="attn_norm",
    ffn__up="ff_proj",  # our gated MLP is act(x up) * (x gate)
    ffn__gate="up_proj",
    ffn__down="ff_out",
    ffn_in_norm="ff_norm",
)
FAMILIES = {
    "llada": Family(
        read,
        write,
        lambda model: NAMES,
        lambda model: "LLaDAModelLM",
        "model.",
        {"model.transformer.ff_out.weight": "model.transformer.wte.weight"},
        defaults=DEFAULTS,
    )
}
