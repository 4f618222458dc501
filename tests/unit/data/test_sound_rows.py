"""Rows of speech: their arrays, what they depend on, and what has no room."""

import dataclasses

import numpy as np
import pytest

from lm import config
from lm.data.corpus.prepare import prepare
from lm.data.sound_rows import SpeechRows, needed, stream_of
from lm.errors import UserError
from lm.recipes.transcribe import Transcription
from tests import speech


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    run = speech.run("encoder", tmp_path_factory.mktemp("cache"))
    return run, prepare(run.data, progress=False)


def rows_of(prepared, architecture="encoder", **changes) -> dict[str, SpeechRows]:
    run, data = prepared
    run = dataclasses.replace(run, model=speech.model(architecture), **changes)
    return Transcription().rows(run, data)


def test_a_sentence_is_in_one_split(prepared):
    rows = rows_of(prepared)
    of = {split: {r.text for r in prepared[1].records("said", split)} for split in rows}
    assert len(of["train"]) + len(of["holdout"]) == 6 and not of["train"] & of["holdout"]
    assert {split: 2 * len(texts) for split, texts in of.items()} == {split: one.count for split, one in rows.items()}


def test_a_row_under_ctc(prepared):
    rows, tokenizer = rows_of(prepared)["holdout"], prepared[1].tokenizer
    batch = rows.rows(np.arange(rows.count + 1))
    frames, ids = rows.frames["said"].of(1), rows.stores["said"].document(1)
    heard, size = batch.example.encoder, len(ids) - 2
    np.testing.assert_array_equal(heard.vectors[1, : len(frames)], frames)
    assert not heard.vectors[1, len(frames) :].any() and heard.vectors.shape[1:] == (160, 80)
    assert heard.segments[1].sum() == -(-len(frames) // 4) and heard.segments.shape[1] == 40
    np.testing.assert_array_equal(batch.labels[1, :size], ids[1:-1])
    assert batch.weights[1].sum() == size and batch.labels.shape[1] == 24
    assert tokenizer.decode(batch.labels[1, :size]) == prepared[1].records("said", "holdout")[1].text
    assert not batch.weights[-1].any() and not heard.segments[-1].any(), "past the last: blank"
    assert batch.tokens_asked() == batch.weights.sum() and batch.tokens_read() == heard.segments.sum()


def test_a_row_of_an_encoder_decoder(prepared):
    rows, tokenizer = rows_of(prepared, "encoder_decoder")["holdout"], prepared[1].tokenizer
    example, ids = rows.rows(np.arange(2)), rows.stores["said"].document(0)
    size = len(ids) - 1
    assert ids[0] == tokenizer.bos_id and ids[-1] == tokenizer.eos_id
    np.testing.assert_array_equal(example.decoder.tokens[0, :size], ids[:-1])
    np.testing.assert_array_equal(example.targets[0, :size], ids[1:])
    assert example.weights[0].sum() == example.decoder.segments[0].sum() == size
    np.testing.assert_array_equal(example.decoder.positions[0, :size], np.arange(size))


def test_row_i_is_a_function_of_seed_and_i(prepared):
    once, again = (rows_of(prepared)["train"] for _ in range(2))
    index = np.array([0, 5, 17, 40])
    a, b = once.rows(index), again.rows(index[::-1])
    np.testing.assert_array_equal(a.example.encoder.vectors, b.example.encoder.vectors[::-1])
    np.testing.assert_array_equal(a.labels, b.labels[::-1])
    other = rows_of(prepared, train=dataclasses.replace(prepared[0].train, seed=1))["train"].rows(index)
    assert (other.example.encoder.vectors != a.example.encoder.vectors).any()


def test_an_epoch_has_each_utterance_once_and_hides_a_stretch(prepared):
    rows = rows_of(prepared)["train"]
    count = rows.count
    for epoch in (0, 1):
        found = rows.utterances(np.arange(epoch * count, (epoch + 1) * count))
        assert sorted(number for _, number in found) == list(range(count))
    plain = rows_of(prepared, recipe=config.Transcribe(answer=24))["train"].rows(np.arange(count))
    hidden = rows.rows(np.arange(count)).example.encoder.vectors
    changed = hidden != plain.example.encoder.vectors
    assert changed.any() and not hidden[changed].any(), "what is hidden is 0"
    assert changed.all(axis=1).sum(axis=1).max() <= 8 or changed.any(axis=2).sum(axis=1).max() <= 160


def test_what_has_no_room_is_refused_or_counted(prepared):
    run, _ = prepared
    small = config.Transcribe(answer=8)
    with pytest.raises(UserError, match=r"utterances of source 'said' have no room in a row: .*on_long=skip"):
        rows_of(prepared, recipe=small)
    skipping = dataclasses.replace(run, recipe=small, data=dataclasses.replace(run.data, on_long="skip"))
    rows = Transcription()._rows(skipping, prepared[1], "train")
    assert 0 < rows.count < rows.stores["said"].num_documents
    assert rows.left_out(np.arange(3)) == pytest.approx(1 - rows.count / rows.stores["said"].num_documents)


def test_ctc_needs_a_vector_for_each_token(prepared):
    """With a vector for each 320 ms there are fewer than tokens."""
    coarse = dataclasses.replace(
        speech.model("encoder"),
        encoder=dataclasses.replace(speech.model("encoder").encoder, stem=config.Frames(160, strides=(2, 2, 8))),
    )
    with pytest.raises(UserError, match="or more tokens than vectors"):
        Transcription().rows(dataclasses.replace(prepared[0], model=coarse), prepared[1])


def test_recordings_alone_as_a_stream():
    frames = [np.ones((7, 80), np.float32), np.ones((0, 80), np.float32)]
    stream = stream_of(frames, config.Frames(16, strides=(2, 2)))
    assert stream.vectors.shape == (2, 16, 80) and stream.vectors.sum() == 7 * 80
    np.testing.assert_array_equal(stream.segments, [[1, 1, 0, 0], [0, 0, 0, 0]])


def test_vectors_that_labels_need():
    assert [needed(np.array(labels)) for labels in ([], [4], [4, 5], [4, 4], [4, 4, 4])] == [0, 1, 2, 3, 5]
