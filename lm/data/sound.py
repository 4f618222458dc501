"""Sound: waveforms read from files, and the log-mel frames that a model reads of them, as Whisper computes them (arXiv
2212.04356, section 2.2; `tests/unit/data/test_sound.py` checks the frames against transformers).

A waveform is float32 [samples] in -1..1 at RATE samples a second, one channel. Frames are float32 [frames, bands], FRAMES of
them a second.
"""

import importlib
import io
import wave
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.attached import Attached
from lm.errors import UserError

RATE = 16_000  # samples a second (Whisper, section 2.2)
RECORDING = Attached("recording", "audio")
WINDOW = 400  # samples of a frame: 25 ms
HOP = 160  # samples from one frame's start to the next: 10 ms
FRAMES = RATE // HOP  # a second
BANDS = 80  # of the mel scale
BREAK, STEP = 1000.0, np.log(6.4) / 27  # of Slaney's mel scale: Hz up to which it is linear; the logarithm of a mel above it


# ------------------------------------------------------------------------------------------------------------ waveforms


def read(path: str | Path) -> np.ndarray:
    """The waveform of a file: WAV of whole numbers by the standard library; all others (FLAC, OGG, MP3, ...) by soundfile."""
    return decode(RECORDING.bytes(Path(path)), str(path))


def decode(data: bytes, name: str) -> np.ndarray:
    """The waveform in the bytes of a file, mixed to one channel and resampled to RATE. `name` is for errors."""
    try:
        with wave.open(io.BytesIO(data)) as file:
            channels, width, rate = file.getnchannels(), file.getsampwidth(), file.getframerate()
            samples = _samples(file.readframes(file.getnframes()), width)
    except (wave.Error, EOFError):
        samples, rate = _by_soundfile(data, name)
        channels = samples.shape[1]
    return resampled(samples.reshape(-1, channels).mean(axis=1), rate)


def _samples(data: bytes, width: int) -> np.ndarray:
    """PCM of `width` bytes a sample, little-endian -> float32 in -1..1. Eight bits are unsigned, all others signed."""
    if width == 1:
        return (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    if width == 3:
        bytes_ = np.frombuffer(data, np.uint8).reshape(-1, 3)
        padded = np.concatenate([np.zeros((len(bytes_), 1), np.uint8), bytes_], axis=1)  # the low byte of 32 bits
        return np.ascontiguousarray(padded).view("<i4")[:, 0].astype(np.float32) / 2**31
    return np.frombuffer(data, f"<i{width}").astype(np.float32) / 2 ** (8 * width - 1)


def _by_soundfile(data: bytes, name: str) -> tuple[np.ndarray, int]:
    try:
        soundfile: Any = importlib.import_module("soundfile")
    except ImportError:
        raise UserError(
            f"{name} is no WAV file of whole numbers: convert it (ffmpeg -i IN OUT.wav), or pip install -e '.[sound]' for "
            "FLAC, OGG and others"
        ) from None
    try:
        return soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise UserError(f"{name} is no recording that can be read ({error}): give WAV, FLAC or OGG") from None


def resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    """A waveform at `rate` samples a second -> float32 at RATE, by a polyphase filter."""
    if rate == RATE:
        return np.asarray(samples, np.float32)
    from scipy.signal import resample_poly

    shared = int(np.gcd(rate, RATE))
    return resample_poly(samples, RATE // shared, rate // shared).astype(np.float32)


def noisy(samples: np.ndarray, decibels: float, rng: np.random.Generator) -> np.ndarray:
    """The waveform with white noise that is `decibels` below it in mean power."""
    power = float(np.mean(samples**2)) * 10 ** (-decibels / 10)
    return (samples + rng.normal(0.0, power**0.5, len(samples))).astype(np.float32)


# --------------------------------------------------------------------------------------------------------------- frames


def mel_of(hertz: np.ndarray) -> np.ndarray:
    """Slaney's mel scale (Auditory Toolbox, 1998): 3 mels for 200 Hz up to 1,000 Hz, logarithmic above."""
    hertz = np.asarray(hertz, float)
    return np.where(hertz < BREAK, hertz * 3 / 200, 15 + np.log(np.maximum(hertz, BREAK) / BREAK) / STEP)


def hertz_of(mel: np.ndarray) -> np.ndarray:
    """The inverse of `mel_of`."""
    mel = np.asarray(mel, float)
    return np.where(mel < 15, mel * 200 / 3, BREAK * np.exp(STEP * (np.maximum(mel, 15) - 15)))


@cache
def filters(bands: int = BANDS) -> np.ndarray:
    """float32 [WINDOW // 2 + 1, bands]: how much each frequency of a window counts in each band. Triangles between neighbouring
    centres, which are evenly spaced in mels from 0 to RATE / 2, each of area 1 in Hz."""
    centres = hertz_of(np.linspace(0.0, mel_of(np.array(RATE / 2)), bands + 2))
    frequencies = np.linspace(0.0, RATE / 2, WINDOW // 2 + 1)[:, None]
    rising = (frequencies - centres[:-2]) / np.diff(centres)[:-1]
    falling = (centres[2:] - frequencies) / np.diff(centres)[1:]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return (triangles * 2 / (centres[2:] - centres[:-2])).astype(np.float32)


def log_mel(samples: np.ndarray, bands: int = BANDS) -> np.ndarray:
    """A waveform -> its log-mel frames, float32 [samples // HOP, bands], about -1..1.

    Power spectra of Hann windows around each HOP-th sample, the waveform mirrored at its ends; the logarithm to base 10 of the
    bands' power, not below the loudest less 8, and then (x + 4) / 4. UserError for a waveform too short to be mirrored.
    """
    if len(samples) <= WINDOW // 2:
        raise UserError(f"a recording of {len(samples)} samples has no frame: give {WINDOW // 2 + 1} or more at {RATE:,} Hz")
    mirrored = np.pad(np.asarray(samples, np.float64), WINDOW // 2, mode="reflect")
    count = len(samples) // HOP
    windows = np.lib.stride_tricks.sliding_window_view(mirrored, WINDOW)[::HOP][:count]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(WINDOW) / WINDOW)
    power = np.abs(np.fft.rfft(windows * hann, axis=1)) ** 2
    levels = np.log10(np.maximum(power @ filters(bands).astype(np.float64), 1e-10))
    return ((np.maximum(levels, levels.max(initial=-10.0) - 8.0) + 4.0) / 4.0).astype(np.float32)
