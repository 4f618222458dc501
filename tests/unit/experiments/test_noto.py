"""Pictures of another font."""

from pathlib import Path

import numpy as np
import pytest

from experiments import noto
from lm.errors import UserError

pytest.importorskip("PIL")


def test_without_the_font_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setattr(noto, "FONT", Path("/nowhere/NotoColorEmoji.ttf"))
    with pytest.raises(UserError, match="no font at /nowhere/NotoColorEmoji.ttf: apt-get install fonts-noto-color-emoji"):
        noto.draw(["openmoji:1F34E"], 64)


@pytest.mark.skipif(not noto.FONT.exists(), reason="needs Debian's fonts-noto-color-emoji")
def test_things_have_their_colours_and_a_character_without_a_picture_is_refused():
    apple, frog = noto.draw(["openmoji:1F34E", "openmoji:1F438"], 32)
    for picture, channel in ((apple, 0), (frog, 1)):  # a red apple, a green frog, on white
        drawn = picture[(picture < 250).any(axis=-1)].mean(axis=0)
        assert drawn.argmax() == channel and (picture[0, 0] == 255).all()
    with pytest.raises(UserError, match="has no picture of openmoji:E000"):
        noto.draw(["openmoji:1F34E", "openmoji:E000"], 32)
    assert np.array_equal(noto.draw(["openmoji:1F34E"], 32)[0], apple)
