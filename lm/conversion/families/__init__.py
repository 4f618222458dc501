"""One small map for each family that transformers has, by the `model_type` of its config.json."""

from lm.conversion.families import bert, gpt, llama, neox, opt, t5
from lm.conversion.tables import Family

FAMILIES: dict[str, Family] = llama.FAMILIES | gpt.FAMILIES | neox.FAMILIES | opt.FAMILIES | bert.FAMILIES | t5.FAMILIES
