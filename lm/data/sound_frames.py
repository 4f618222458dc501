"""The frames of a source's recordings, computed once and kept in the cache of prepared data:

    <cache>/frames/<digest>/frames.npy    float16 [frames of all recordings, bands]
                            offsets.npy   int64 [recordings + 1]: where each begins among them

The digest covers the recordings (a file's size and time of change, or the release of espeak-ng) and how frames are made.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lm.data import sound, sound_espeak
from lm.data.records import Speech
from lm.errors import UserError

VERSION = 1  # of how frames are made and kept


@dataclass(frozen=True)
class Frames:
    """The frames of recordings, by their numbers in the store of their texts."""

    frames: np.ndarray  # float16 [all frames, bands], mapped from its file
    offsets: np.ndarray  # int64 [recordings + 1]

    @property
    def lengths(self) -> np.ndarray:
        """int64 [recordings]: frames of each."""
        return np.diff(self.offsets)

    def of(self, number: int) -> np.ndarray:
        """float32 [frames, bands] of one recording."""
        return self.frames[self.offsets[number] : self.offsets[number + 1]].astype(np.float32)


def waveform(record: Speech, folder: Path | None) -> np.ndarray:
    """The waveform of a record's recording, float32 [samples] at `sound.RATE`."""
    if record.audio.startswith(sound_espeak.SCHEME):
        return sound_espeak.speak(record.text, sound_espeak.Voice.parse(record.audio))
    return sound.read(sound.RECORDING.file(record.audio, folder))


def open_frames(cache: Path, records: Sequence[Speech], folder: Path | None, bands: int) -> Frames:
    """The frames of these recordings, which are made first if they are not in the cache. UserError, which names it, for a
    recording that cannot be read."""
    about = {"version": VERSION, "bands": bands, "recordings": [_identity(record, folder) for record in records]}
    digest = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    home = cache / "frames" / digest
    if not home.exists():
        _make(home, records, folder, bands)
    return Frames(np.load(home / "frames.npy", mmap_mode="r"), np.load(home / "offsets.npy"))


def _identity(record: Speech, folder: Path | None) -> list[Any]:
    if record.audio.startswith(sound_espeak.SCHEME):
        return [record.audio, record.text, sound_espeak.version()]
    file = sound.RECORDING.file(record.audio, folder)
    return [str(file), *sound.RECORDING.stamp(file)]


def _make(home: Path, records: Sequence[Speech], folder: Path | None, bands: int) -> None:
    """Writes the files of `home`, which appears complete or not at all; of several processes at once the last one's stays."""
    home.parent.mkdir(parents=True, exist_ok=True)
    partial_home = Path(tempfile.mkdtemp(dir=home.parent, prefix="partial-"))
    try:
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            frames = list(pool.map(partial(_frames, folder=folder, bands=bands), records))
        np.save(partial_home / "frames.npy", np.concatenate([np.zeros((0, bands), np.float16), *frames]))
        np.save(partial_home / "offsets.npy", np.cumsum([0, *map(len, frames)]).astype(np.int64))
        try:
            partial_home.rename(home)
        except OSError:
            if not home.exists():  # otherwise another process has made the same
                raise
    finally:
        shutil.rmtree(partial_home, ignore_errors=True)


def _frames(record: Speech, folder: Path | None, bands: int) -> np.ndarray:
    try:
        return sound.log_mel(waveform(record, folder), bands).astype(np.float16)
    except UserError as error:
        raise UserError(f"{record.audio[:120]}: {error}" if record.audio[:40] not in str(error) else str(error)) from None
