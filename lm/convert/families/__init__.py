"""One small map for each family that transformers has, by the `model_type` of its config.json."""

from lm.convert.families import bert, gpt, llama, neox, opt, t5
from lm.convert.tables import Family

FAMILIES: dict[str, Family] = llama.FAMILIES | gpt.FAMILIES | neox.FAMILIES | opt.FAMILIES | bert.FAMILIES | t5.FAMILIES
