"""Speech that espeak-ng makes: a recording that is described and not stored.

    espeak-ng:en-us+f2?speed=160&pitch=50&noise=20&seed=7

is a voice of espeak-ng (`espeak-ng --voices`, and its variants), words a minute, pitch from 0 to 99, and white noise so many
decibels below the speech, drawn with this seed. The same description with the same release of espeak-ng gives the same samples.
"""

import shutil
import subprocess
from dataclasses import dataclass, fields
from functools import cache
from urllib.parse import parse_qsl

import numpy as np

from lm.data import sound
from lm.errors import UserError

SCHEME = "espeak-ng:"
MISSING = "espeak-ng, which makes this speech, is not installed: apt-get install espeak-ng, or give recordings of your own"


@dataclass(frozen=True)
class Voice:
    """How a text is spoken."""

    name: str
    speed: int = 175  # words a minute
    pitch: int = 50
    noise: int = 100  # decibels below the speech; 100 is not heard
    seed: int = 0  # of the noise

    def __str__(self) -> str:
        settings = "&".join(f"{f.name}={getattr(self, f.name)}" for f in fields(self)[1:])
        return f"{SCHEME}{self.name}?{settings}"

    @classmethod
    def parse(cls, text: str) -> "Voice":
        """The voice in a description; UserError where it is none."""
        name, _, settings = text.removeprefix(SCHEME).partition("?")
        try:
            return cls(name, **{key: int(value) for key, value in parse_qsl(settings, strict_parsing=bool(settings))})
        except (ValueError, TypeError):
            raise UserError(f"audio={text[:80]!r} describes no voice: write it like {cls('en-us+f2')}") from None


@cache
def version() -> str:
    """The release of espeak-ng, such as "1.51". UserError where it is missing."""
    if shutil.which("espeak-ng") is None:
        raise UserError(MISSING)
    return subprocess.run(["espeak-ng", "--version"], capture_output=True, encoding="utf-8", check=True).stdout.split()[3]


def speak(text: str, voice: Voice) -> np.ndarray:
    """The waveform of a text, float32 [samples] at `sound.RATE`. UserError where espeak-ng is missing, or has no such voice."""
    version()
    how = ["-v", voice.name, "-s", str(voice.speed), "-p", str(voice.pitch), "--stdin", "--stdout"]
    made = subprocess.run(["espeak-ng", *how], input=text.encode(), capture_output=True)
    if made.returncode or not made.stdout.startswith(b"RIFF"):
        said = made.stderr.decode(errors="replace").strip()[-120:]
        raise UserError(f"espeak-ng says nothing as {voice.name!r} ({said or 'no sound'}); see espeak-ng --voices")
    clean = sound.decode(_sized(made.stdout), str(voice))
    return sound.noisy(clean, voice.noise, np.random.default_rng(voice.seed)) if voice.noise < 100 else clean


def _sized(data: bytes) -> bytes:
    """A WAV file that was written to a pipe, with its real sizes in place of the largest ones."""
    at = data.index(b"data")
    size = len(data) - at - 8
    return data[:4] + (len(data) - 8).to_bytes(4, "little") + data[8 : at + 4] + size.to_bytes(4, "little") + data[at + 8 :]
