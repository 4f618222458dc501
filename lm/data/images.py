"""Pictures: read from files or drawn, made square, kept beside the prepared data, and cut into patches.

Axes: N pictures, S pixels to a side, C channels (3: red, green, blue), I patches of a picture.
"""

import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from lm import config
from lm.data.attached import Attached, folder_of
from lm.data.corpus import openmoji
from lm.data.corpus.prepare import Prepared
from lm.data.records import Captioned
from lm.errors import UserError

FORMAT = 1  # of the files of pixels; raise it to have all pictures read again
CHANNELS = 3
PICTURE = Attached("picture", "image")


@dataclass(frozen=True)
class Pictures:
    """The pictures of one split of a source, in the order of its token store."""

    pixels: np.ndarray  # uint8 [N, S, S, C], which may lie in a file
    records: Sequence[Captioned]


def patches(pixels: Any, size: int) -> Any:
    """[..., H, W, C] -> [..., I, size * size * C]: patches by rows from the top left, a patch by rows of pixels, each with its
    channels. NumPy or JAX."""
    *batch, height, width, channels = pixels.shape
    x = pixels.reshape(*batch, height // size, size, width // size, size, channels)
    return x.swapaxes(-4, -3).reshape(*batch, (height // size) * (width // size), size * size * channels)


def moved(pixels: np.ndarray, most: int, rng: np.random.Generator, **beyond: Any) -> np.ndarray:
    """The picture [S, S, C], moved by up to `most` pixels along each axis. `beyond`: what comes in, as `np.pad` takes it."""
    down, right = rng.integers(0, 2 * most + 1, 2)
    wide = np.pad(pixels, ((most, most), (most, most), (0, 0)), **beyond)
    return wide[down : down + len(pixels), right : right + len(pixels)]


def decoded(data: bytes, size: int, name: str) -> np.ndarray:
    """The picture in the bytes of a file, uint8 [size, size, 3]: on white where it is transparent, its shorter side scaled to
    `size` and the middle cut out, as CLIP does. `name` is for errors."""
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise UserError("pictures are read by Pillow: pip install 'lm[images]'") from None
    try:
        with Image.open(io.BytesIO(data)) as file:
            picture = ImageOps.exif_transpose(file).convert("RGBA")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"{name} is no picture that can be read ({error}): give PNG, JPEG or another that Pillow reads"
        ) from None
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    fitted = ImageOps.fit(white.convert("RGB"), (size, size), method=Image.Resampling.BICUBIC)
    return np.asarray(fitted, np.uint8)


def pictures(prepared: Prepared, source: config.Source, name: str, split: str, size: int, *, cache: str) -> Pictures:
    """The pictures of a split of the source `name`. They are read once, and then kept as an array beside the prepared data.

    Raises UserError for a record whose picture is missing or cannot be read, and where Pillow is missing.
    """
    records: Any = prepared.records(name, split)
    folder = prepared.beside / "pixels"
    folder.mkdir(parents=True, exist_ok=True)
    made = [FORMAT, size, [[record.image, *_identity(record.image, source)] for record in records]]
    mark = hashlib.sha256(json.dumps(made).encode()).hexdigest()[:16]
    file = folder / f"{name}.{split}.{size}.{mark}.npy"
    if not file.exists():
        with FileLock(f"{file}.lock"):
            if not file.exists():
                _write(file, records, source, size, cache)
    return Pictures(np.load(file, mmap_mode="r"), records)


def _write(file: Path, records: Sequence[Captioned], source: config.Source, size: int, cache: str) -> None:
    partial = file.with_suffix(".partial")
    out = np.lib.format.open_memmap(partial, "w+", np.uint8, (len(records), size, size, CHANNELS))
    for i, record in enumerate(records):
        out[i] = _read(record.image, source, size, cache)
    out.flush()
    partial.rename(file)


def _read(image: str, source: config.Source, size: int, cache: str) -> np.ndarray:
    if image.startswith(openmoji.PREFIX):
        return openmoji.draw([image], size, cache)[0]
    file = PICTURE.file(image, folder_of(source))
    return decoded(PICTURE.bytes(file), size, str(file))


def _identity(image: str, source: config.Source) -> list[int]:
    """What changes with a file's contents; [] of a picture that is drawn."""
    return [] if image.startswith(openmoji.PREFIX) else PICTURE.stamp(PICTURE.file(image, folder_of(source)))
