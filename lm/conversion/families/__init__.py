"""All families, by the `model_type` of their config.json."""

from typing import Any

from lm.conversion.families import bert, gpt, gptj, llada, llama, neox, opt, recurrent, t5, vit, whisper
from lm.conversion.tables import Family
from lm.errors import UserError, nearest

FAMILIES: dict[str, Family] = (
    llama.FAMILIES
    | gpt.FAMILIES
    | gptj.FAMILIES
    | neox.FAMILIES
    | opt.FAMILIES
    | bert.FAMILIES
    | t5.FAMILIES
    | llada.FAMILIES
    | recurrent.FAMILIES
    | whisper.FAMILIES
    | vit.FAMILIES
)


def check_family(name: Any, place: str) -> None:
    """Raises UserError unless `name` is a known model_type; `place` says where the user gave it."""
    if not isinstance(name, str) or name not in FAMILIES:
        raise UserError(f"{place} {name!r} is not known{nearest(str(name), FAMILIES)}")
