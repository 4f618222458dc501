"""Multi-token prediction: the next token and some after it (arXiv 2404.19737; DeepSeek-V3, arXiv 2412.19437).

Rows are those of the causal objective. The further tokens are its targets, moved (`lm.recipes.multi_token`).
"""

from dataclasses import replace

from lm import config
from lm.objectives import causal
from lm.objectives.declaration import Declaration, Objective
from lm.objectives.vocabulary import Vocabulary

_CAUSAL = causal.OBJECTIVE


def build_decoder(c: config.MultiToken, data: config.Data, v: Vocabulary) -> Objective:
    """As for `causal`."""
    return causal.build_decoder(config.Causal(), data, v)


OBJECTIVE = Declaration(
    config.MultiToken,
    suits={"decoder": replace(_CAUSAL.suits["decoder"], build=build_decoder)},
    refused=_CAUSAL.refused,
    prompt=_CAUSAL.prompt,
    own_loss=True,
)
