"""Whisper: logits and bytes of a tiny random model of transformers, there and back; frames by their feature extractor."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

from safetensors.numpy import load_file  # noqa: E402

from lm import conversion  # noqa: E402
from lm.data import sound  # noqa: E402
from lm.types import Example, vector_stream  # noqa: E402
from tests.parity.tiny import both, stream  # noqa: E402

V, HEARD, SAID = 61, 12, 7
CONFIG = dict(vocab_size=V, d_model=32, num_mel_bins=80, max_source_positions=HEARD, max_target_positions=16)
CONFIG |= dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1, attn_implementation="eager")
CONFIG |= {f"{s}_{k}": v for s in ("encoder", "decoder") for k, v in (("layers", 2), ("attention_heads", 4), ("ffn_dim", 48))}


def make():
    return hf.WhisperForConditionalGeneration(hf.WhisperConfig(**CONFIG))


def test_logits_of_speech_equal_theirs(tmp_path):
    theirs, (ours, params) = both(make, tmp_path)
    rng = np.random.default_rng(0)
    frames = sound.log_mel(rng.normal(0, 0.1, (2 * HEARD) * sound.HOP).astype(np.float32))
    frames = np.stack([frames, rng.normal(size=frames.shape).astype(np.float32)])
    tokens = rng.integers(3, V, (2, SAID)).astype(np.int32)
    example = Example(vector_stream(frames, HEARD), stream(tokens, np.ones_like(tokens)), None, None)
    with torch.no_grad():
        given = dict(input_features=torch.tensor(frames).mT, decoder_input_ids=torch.tensor(tokens).long())
        wanted = theirs(**given).logits.numpy()
    np.testing.assert_allclose(ours.apply({"params": params}, example), wanted, rtol=2e-5, atol=2e-5)


def test_a_model_goes_there_and_back_to_the_byte(tmp_path):
    _, (ours, params) = both(make, tmp_path / "theirs")
    also = {name: value for name, value in CONFIG.items() if name.endswith("token_id")}
    conversion.write(ours.config, params, tmp_path / "back", family="whisper", also=also)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("theirs", "back"))
    assert before.keys() == after.keys()
    for name, x in before.items():
        np.testing.assert_array_equal(after[name], x)
    again = hf.WhisperForConditionalGeneration.from_pretrained(tmp_path / "back")
    assert again.config.num_mel_bins == 80 and again.config.max_source_positions == HEARD


def test_frames_equal_those_of_their_feature_extractor():
    """Thirty seconds, of which three are sound: a tone, noise, and silence."""
    rng = np.random.default_rng(0)
    tone = 0.3 * np.sin(np.arange(sound.RATE) * 0.1)
    samples = np.concatenate([tone, rng.normal(0, 0.1, sound.RATE), np.zeros(sound.RATE)]).astype(np.float32)
    theirs = hf.WhisperFeatureExtractor()
    wanted = theirs(samples, sampling_rate=sound.RATE, return_tensors="np").input_features[0].T
    padded = np.pad(samples, (0, 27 * sound.RATE))
    found = sound.log_mel(padded)
    assert found.shape == wanted.shape == (30 * sound.FRAMES, sound.BANDS)
    np.testing.assert_allclose(found, wanted, atol=1e-4)  # by torch in float32, which rounds off quiet bands beside the tone
    in_numpy = theirs._np_extract_fbank_features(padded[None], device="cpu")[0].T  # in float64, as ours
    np.testing.assert_allclose(found, in_numpy, atol=2e-6)
    np.testing.assert_allclose(sound.filters(), theirs.mel_filters, atol=1e-8)


def test_a_wider_bank_of_filters_equals_theirs():
    theirs = hf.WhisperFeatureExtractor(feature_size=128)
    np.testing.assert_allclose(sound.filters(128), theirs.mel_filters, atol=1e-8)
