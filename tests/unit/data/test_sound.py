"""Waveforms, frames, speech that espeak-ng makes, and the grammar; `tests/parity/test_whisper.py` has the frames of Whisper."""

import io
import json
import shutil
import wave
from pathlib import Path

import numpy as np
import pytest

from lm import config
from lm.data import sound, sound_espeak, sound_grammar
from lm.data.corpus import generated
from lm.data.records import Speech, parse, to_json
from lm.data.sound_frames import open_frames
from lm.errors import UserError

SPEECH = Path(__file__).parents[2] / "speech"  # 12 recordings of espeak-ng 1.51, 8 bits at 8 kHz


def wav(samples: np.ndarray, rate: int, width: int, channels: int = 1) -> bytes:
    """Samples in -1..1, [n] or [n, channels], as PCM."""
    low = {1: 128, 2: 0, 3: 0, 4: 0}[width]
    whole = np.round(samples * (2 ** (8 * width - 1) - 1)).astype(np.int64) + low
    raw = b"".join(int(x).to_bytes(width, "little", signed=width > 1) for x in whole.reshape(-1))
    out = io.BytesIO()
    with wave.open(out, "wb") as file:
        file.setnchannels(channels), file.setsampwidth(width), file.setframerate(rate)
        file.writeframes(raw)
    return out.getvalue()


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_whole_numbers_of_any_width_are_read(width):
    samples = np.sin(np.arange(400) / 7) * 0.9
    found = sound.decode(wav(samples, sound.RATE, width), "a.wav")
    assert found.dtype == np.float32 and found.shape == (400,)
    np.testing.assert_allclose(found, samples, atol=2.0 ** (2 - 8 * width))


def test_two_channels_are_mixed_and_other_rates_resampled():
    time = np.arange(8000) / 8000
    left, right = np.sin(2 * np.pi * 440 * time) * 0.5, np.zeros(8000)
    found = sound.decode(wav(np.stack([left, right], axis=1), 8000, 2, channels=2), "a.wav")
    assert found.shape == (sound.RATE,)
    wanted = np.sin(2 * np.pi * 440 * np.arange(sound.RATE) / sound.RATE) * 0.25
    np.testing.assert_allclose(found[800:-800], wanted[800:-800], atol=2e-3)


def test_flac_is_read_by_soundfile():
    soundfile = pytest.importorskip("soundfile")
    samples, out = (np.sin(np.arange(3200) / 9) * 0.7).astype(np.float32), io.BytesIO()
    soundfile.write(out, samples, sound.RATE, format="FLAC")
    np.testing.assert_allclose(sound.decode(out.getvalue(), "a.flac"), samples, atol=1e-4)


def test_noise_is_so_many_decibels_below_the_speech():
    clean = np.sin(np.arange(160_000) / 5).astype(np.float32)
    noise = sound.noisy(clean, 20, np.random.default_rng(0)) - clean
    assert 10 * np.log10(np.mean(clean**2) / np.mean(noise**2)) == pytest.approx(20, abs=0.1)


def test_a_tone_is_loudest_in_its_band():
    """Bands are triangles between centres, so that a tone at a centre is in that band most."""
    centres = sound.hertz_of(np.linspace(0, sound.mel_of(np.array(8000.0)), sound.BANDS + 2))[1:-1]
    for band in (10, 40, 70):
        tone = np.sin(2 * np.pi * centres[band] * np.arange(sound.RATE) / sound.RATE)
        frames = sound.log_mel(tone.astype(np.float32))
        assert frames.shape == (sound.FRAMES, sound.BANDS)
        assert abs(int(frames[50].argmax()) - band) <= 1


def test_mels_there_and_back():
    hertz = np.array([0.0, 200.0, 999.0, 1000.0, 4000.0, 8000.0])
    np.testing.assert_allclose(sound.hertz_of(sound.mel_of(hertz)), hertz, rtol=1e-12)
    assert sound.mel_of(np.array(1000.0)) == 15  # Slaney's scale


@pytest.mark.parametrize("missing", ["nowhere.wav", "."])
def test_a_recording_that_is_not_there_is_named(missing, tmp_path):
    with pytest.raises(UserError, match="cannot read the recording.*check the field 'audio'"):
        sound.read(tmp_path / missing)


def test_a_moment_of_sound_has_no_frame():
    with pytest.raises(UserError, match="a recording of 200 samples has no frame: give 201"):
        sound.log_mel(np.zeros(200, np.float32))


# ------------------------------------------------------------------------------------------------------------ the set


def test_a_voice_is_written_and_read():
    voice = sound_espeak.Voice("en-us+f2", 160, 40, 20, 7)
    assert str(voice) == "espeak-ng:en-us+f2?speed=160&pitch=40&noise=20&seed=7"
    assert sound_espeak.Voice.parse(str(voice)) == voice
    assert sound_espeak.Voice.parse("espeak-ng:en-us") == sound_espeak.Voice("en-us")
    for wrong in ("espeak-ng:en?speed=fast", "espeak-ng:en?loud=1", "espeak-ng:en?speed"):
        with pytest.raises(UserError, match="describes no voice"):
            sound_espeak.Voice.parse(wrong)


def test_without_espeak_one_line_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    sound_espeak.version.cache_clear()
    with pytest.raises(UserError, match=r"not installed: apt-get install espeak-ng, or give recordings of your own"):
        sound_espeak.speak("hello", sound_espeak.Voice("en-us"))


@pytest.mark.skipif(shutil.which("espeak-ng") is None, reason="espeak-ng is not installed")
def test_speech_is_a_function_of_its_description():
    sound_espeak.version.cache_clear()
    voice = sound_espeak.Voice("en-us+f2", 180, 50, 20, 3)
    once, again = (sound_espeak.speak("the sea", voice) for _ in range(2))
    np.testing.assert_array_equal(once, again)
    assert 0.3 < len(once) / sound.RATE < 2
    with pytest.raises(UserError, match="says nothing as 'nobody'"):
        sound_espeak.speak("the sea", sound_espeak.Voice("nobody"))


def test_sentences_of_one_split_are_in_no_other():
    some = {split: {sound_grammar.utterance(split, i).text for i in range(300)} for split in ("train", "valid", "test")}
    assert not some["train"] & some["test"] and not some["train"] & some["valid"] and not some["valid"] & some["test"]
    texts = {record.text for record in sound_grammar.load("spoken/text/500", "text")}
    assert not texts & (some["valid"] | some["test"])
    assert not any(set("{}|") & set(text) for text in texts)


def test_an_utterance_is_a_function_of_its_number():
    few, more = (generated.load(f"spoken/test/{n}", "speech") for n in (3, 5))
    assert more[:3] == few and len(set(more)) == 5
    assert len(generated.load("spoken/valid", "speech")) == sound_grammar.SPLITS["valid"]


@pytest.mark.parametrize(
    "name, format, said",
    [
        ("spoken/tset", "speech", "no generated set 'spoken/tset': give spoken/train, spoken/valid"),
        ("spoken/test", "text", "has format='speech', and the source has 'text'"),
        ("spoken/test/0", "speech", "says how many utterances in whole numbers"),
        ("manners", "speech", "has questions with answers, no speech"),
    ],
)
def test_other_names_and_formats_are_refused(name, format, said):
    with pytest.raises(UserError, match=said):
        generated.load(name, format)


def test_records_of_speech():
    record = Speech("a.wav", "hello")
    assert parse({"audio": "a.wav", "text": "hello", "speaker": 3}, "speech") == record
    assert parse(json.loads(to_json(record)), "speech") == record
    with pytest.raises(UserError, match="no field 'audio'"):
        parse({"text": "hello"}, "speech")
    with pytest.raises(UserError, match="format=speech of a.csv"):
        config.Source("csv", "a.csv", format="speech")


# ----------------------------------------------------------------------------------------------------- stored frames


def recordings() -> list[Speech]:
    lines = (SPEECH / "speech.jsonl").read_text("utf-8").splitlines()
    return [parse(json.loads(line), "speech") for line in lines]


def test_frames_are_made_once(tmp_path, monkeypatch):
    records = recordings()
    frames = open_frames(tmp_path, records, SPEECH, 80)
    assert len(frames.lengths) == len(records) and frames.lengths.min() > 30
    wanted = sound.log_mel(sound.read(SPEECH / records[3].audio))
    np.testing.assert_allclose(frames.of(3), wanted, atol=1e-3)  # kept as float16
    monkeypatch.setattr(sound, "log_mel", None)
    np.testing.assert_array_equal(open_frames(tmp_path, records, SPEECH, 80).of(3), frames.of(3))


def test_a_changed_recording_has_its_frames_made_anew(tmp_path):
    samples = np.sin(np.arange(4000) / 5).astype(np.float32)
    (tmp_path / "a.wav").write_bytes(wav(samples, sound.RATE, 2))
    before = open_frames(tmp_path, [Speech("a.wav", "hum")], tmp_path, 80)
    (tmp_path / "a.wav").write_bytes(wav(samples[:3200], sound.RATE, 2))
    after = open_frames(tmp_path, [Speech("a.wav", "hum")], tmp_path, 80)
    assert (before.lengths, after.lengths) == ([25], [20])


def test_a_broken_recording_is_named(tmp_path):
    (tmp_path / "a.wav").write_bytes(b"nothing")
    with pytest.raises(UserError, match="a.wav"):
        open_frames(tmp_path, [Speech("a.wav", "hum")], tmp_path, 80)
    with pytest.raises(UserError, match="recordings are read from local files"):
        open_frames(tmp_path, [Speech("gs://b/a.wav", "hum")], tmp_path, 80)
    assert not list((tmp_path / "frames").glob("partial-*"))
