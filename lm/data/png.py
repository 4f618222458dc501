"""Pictures as PNG files, written without a library (ISO/IEC 15948)."""

import base64
import struct
import zlib

import numpy as np

SIGNATURE = b"\x89PNG\r\n\x1a\n"
RGB, GREY = 2, 0  # colour types (section 11.2.2)


def png(pixels: np.ndarray) -> bytes:
    """The file of a picture, uint8 [H, W, 3] or grey [H, W]."""
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise ValueError(f"a picture is uint8 [H, W, 3] or [H, W], and this is {pixels.dtype} {list(pixels.shape)}")
    height, width = pixels.shape[:2]
    colour = RGB if pixels.ndim == 3 else GREY
    lines = np.zeros((height, 1 + pixels[0].size), np.uint8)  # each line begins with the number of its filter, 0: none
    lines[:, 1:] = pixels.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 9)), (b"IEND", b""))
    return SIGNATURE + b"".join(_chunk(name, data) for name, data in parts)


def _chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def base64_png(pixels: np.ndarray) -> str:
    """The file of a picture as text, which a page embeds."""
    return base64.b64encode(png(pixels)).decode("ascii")


def sheet(pictures: np.ndarray, columns: int, gap: int = 2) -> np.ndarray:
    """Pictures uint8 [N, H, W, 3] in rows of `columns`, on grey: uint8 [H', W', 3]."""
    count, height, width, channels = pictures.shape
    rows = -(-count // columns)
    out = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, channels), 200, np.uint8)
    for i, picture in enumerate(pictures):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        out[top : top + height, left : left + width] = picture
    return out
