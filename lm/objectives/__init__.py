"""Objectives: what a model is trained to predict, as pure functions `(tokens, rng) -> Example` on the host.

Each module declares one: which architectures train under it and how, which are refused and what comes nearest, how its models
are asked. A new objective is a module like these and its name in the list below, and its config in `lm.config.objective`.
"""

from lm.objectives import (
    any_order,
    block_diffusion,
    causal,
    contrastive,
    denoise,
    deshuffle,
    fim,
    masked,
    masked_diffusion,
    mass,
    mixture,
    multi_token,
    next_sentence,
    prefix,
    replaced_tokens,
    spans,
    teacherless,
    variational,
)
from lm.objectives.declaration import (
    DECLARATIONS,
    Declaration,
    Lengths,
    Objective,
    Suit,
    build,
    factors,
    pairs,
    reads_prefix,
    span_prompts,
    spread,
    suited,
    text_prompt,
    usual,
)
from lm.objectives.vocabulary import Vocabulary, decoder_start, of_texts

__all__ = [
    "DECLARATIONS",
    "Declaration",
    "Lengths",
    "Objective",
    "Suit",
    "Vocabulary",
    "build",
    "decoder_start",
    "factors",
    "of_texts",
    "pairs",
    "reads_prefix",
    "span_prompts",
    "spread",
    "suited",
    "text_prompt",
    "usual",
]

for _module in (
    causal,
    multi_token,
    any_order,
    prefix,
    teacherless,
    spans,
    masked,
    masked_diffusion,
    block_diffusion,
    replaced_tokens,
    denoise,
    deshuffle,
    variational,
    mass,
    fim,
    next_sentence,
    contrastive,
    mixture,
):
    DECLARATIONS[_module.OBJECTIVE.config] = _module.OBJECTIVE
