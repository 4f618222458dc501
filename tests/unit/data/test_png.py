"""PNG files against Pillow's reader."""

import base64
import io

import numpy as np
import pytest

from lm.data.png import base64_png, png, sheet


@pytest.mark.parametrize("shape", [(5, 7, 3), (64, 64, 3), (1, 1, 3), (9, 4)])
def test_pillow_reads_the_same_pixels(shape):
    image = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
    read = image.open(io.BytesIO(png(pixels)))
    assert read.size == (shape[1], shape[0]) and np.array_equal(np.asarray(read), pixels)
    assert base64.b64decode(base64_png(pixels)) == png(pixels)


def test_what_is_no_picture_is_refused():
    with pytest.raises(ValueError, match=r"float32 \[2, 2, 3\]"):
        png(np.zeros((2, 2, 3), np.float32))
    with pytest.raises(ValueError, match=r"uint8 \[2, 2, 4\]"):
        png(np.zeros((2, 2, 4), np.uint8))


def test_a_sheet_has_each_picture_in_its_place():
    pictures = np.arange(5 * 2 * 3 * 3).reshape(5, 2, 3, 3).astype(np.uint8)
    made = sheet(pictures, 3, gap=1)
    assert made.shape == (2 * 3 + 1, 3 * 4 + 1, 3)
    assert np.array_equal(made[1:3, 1:4], pictures[0]) and np.array_equal(made[4:6, 5:8], pictures[4])
