"""GPT-J."""

import math
from typing import Any

from lm.config import Attention, Block, Head, Mlp, Model, Norm, Rope, Stack
from lm.conversion.families.gpt import ALIASES
from lm.conversion.families.llama import block_of, mlp_of
from lm.conversion.settings import Hf
from lm.conversion.tables import Family, Names, activation, architecture, attention_of, layers, projections, their_activation
from lm.errors import UserError


def read(c: Hf) -> Model:
    width, heads, rotary = c.count("n_embd"), c.count("n_head"), c.count("rotary_dim")
    c.only("rotary", True), c("n_positions")  # the length of a table of sines, which is computed
    hidden = c.count_or_none("n_inner") or 4 * width
    block = Block(
        Attention(heads),
        Mlp(hidden, activation(c, "activation_function"), bias=True),
        Norm(eps=c.eps("layer_norm_epsilon")),
        parallel="shared",
    )
    rope = Rope(fraction=fraction_of(rotary, max(width // heads, 1)), interleaved=True)
    stack = Stack(c.parts("n_layer"), {"L": block}, position=rope)
    return Model(c.count("vocab_size"), width, decoder=stack, head=Head(tied=c.flag("tie_word_embeddings"), bias=True))


def fraction_of(rotary: int, head_dim: int) -> float:
    """Returns the fraction with `int(head_dim * fraction) == rotary`; for the quotient itself it can be one less."""
    if rotary > head_dim:
        raise UserError(f"config.json: rotary_dim={rotary} is larger than a head's {head_dim} dimensions")
    fraction = rotary / head_dim
    return fraction if int(head_dim * fraction) == rotary else math.nextafter(fraction, 2.0)


def write(m: Model) -> dict[str, Any]:
    block, stack = block_of(m), m.decoder
    assert stack and isinstance(stack.position, Rope)
    return dict(
        vocab_size=m.vocab_size,
        n_embd=m.width,
        n_layer=stack.num_layers,
        n_head=attention_of(block).num_heads,
        n_inner=mlp_of(m).hidden,
        rotary_dim=int(attention_of(block).size(m.width) * stack.position.fraction),
        activation_function=their_activation(mlp_of(m).activation, "gelu_new"),
        layer_norm_epsilon=block.norm.eps,
        tie_word_embeddings=bool(m.head and m.head.tied),
    )


def names(m: Model) -> Names:
    return {
        "embed/tokens": "transformer.wte",
        "decoder/final_norm": "transformer.ln_f",
        "head/out": "lm_head",
        "head": "lm_head",
    } | layers(
        "decoder",
        "transformer.h.{}.",
        **projections("attn.{}_proj", out="out"),
        ffn__up="mlp.fc_in",
        ffn__down="mlp.fc_out",
        block_in_norm="ln_1",
    )


# Defaults of their config class (transformers 5.24, `configuration_gptj.py`); tests/parity/test_config.py checks them.
GPTJ = dict(
    vocab_size=50_400,
    n_positions=2048,
    n_embd=4096,
    n_layer=28,
    n_head=16,
    rotary_dim=64,
    n_inner=None,
    activation_function="gelu_new",
    layer_norm_epsilon=1e-5,
    tie_word_embeddings=False,
)
TIED = {"lm_head.weight": "transformer.wte.weight"}
FAMILIES = {"gptj": Family(read, write, names, architecture("GPTJ"), "transformer.", TIED, defaults=GPTJ, aliases=ALIASES)}
