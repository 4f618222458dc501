"""The pictures of OpenMoji as another font draws them, Noto Color Emoji: the same things, shaded and without black outlines, so
that models which learnt from OpenMoji are tested on a style that they have not seen."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from lm.data.corpus import openmoji
from lm.errors import UserError

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
_POINTS, _SIDE = 109, 144  # the only size of its bitmaps, and pixels to the side of a white square that they fit in


def draw(images: Sequence[str], size: int) -> np.ndarray:
    """Pictures such as "openmoji:1F34E" on white, as Noto has them: uint8 [N, size, size, 3]. UserError without the font, or
    for a character that it lacks."""
    from PIL import Image, ImageDraw, ImageFont

    if not FONT.exists():
        raise UserError(f"no font at {FONT}: apt-get install fonts-noto-color-emoji")
    font = ImageFont.truetype(FONT, _POINTS, layout_engine=ImageFont.Layout.BASIC)

    def drawn(character: str) -> np.ndarray:
        picture = Image.new("RGB", (_SIDE, _SIDE), "white")
        ImageDraw.Draw(picture).text((_SIDE / 2, _SIDE / 2), character, font=font, embedded_color=True, anchor="mm")
        return np.asarray(picture.resize((size, size), Image.Resampling.LANCZOS))

    lacking = drawn("\U0010fffe")  # no font has this one
    out = np.empty((len(images), size, size, 3), np.uint8)
    for i, image in enumerate(images):
        out[i] = drawn(chr(int(image.removeprefix(openmoji.PREFIX), 16)))
        if (out[i] == lacking).all():
            raise UserError(f"{FONT} has no picture of {image}: a later version of the font may")
    return out
