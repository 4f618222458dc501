"""Words as vectors: of a table whose neighbours are known, and of a model that is read a row at a time."""

import math
import re

import jax
import numpy as np
import pytest

from lm import config
from lm.data import tokenizer as tokenizers
from lm.errors import UserError
from lm.generation import words
from lm.generation.vectors import Embedder
from lm.generation.words import Missing, Space
from lm.models.transformer import Transformer
from lm.types import Example, TokenStream
from tests.fakes import random_params, small_model

TEXT = "the ox and the cow ate the plant. Ox, cow; unplanted plants and the oxen of an ox. "


@pytest.fixture(scope="module")
def tokenizer():
    settings = config.Tokenizer(vocab_size=420)
    return tokenizers.train([TEXT * 20, "the ox and the cow and the plant " * 60], settings)


@pytest.fixture(scope="module")
def made(tokenizer):
    """An encoder, and the same that reads with an `Embedder`."""
    model = Transformer(small_model("encoder", vocab_size=420))
    stream = TokenStream(*[np.ones((1, 4), np.int32)] * 3)
    params = random_params(model, Example(stream, None, None, None), 0.3)
    return model, params, Embedder(model, params, tokenizer, None, length=24, batch_size=4)


def space(degrees, others):
    """Words and others as vectors of the plane, of different lengths, at these angles."""
    at = lambda some: np.array(
        [[n * math.cos(d / 180 * math.pi), n * math.sin(d / 180 * math.pi)] for n, d in enumerate(some, 1)]
    )
    vectors = at(degrees.values()), at(others.values()).reshape(-1, 2)
    return Space("a plane", list(degrees), vectors[0], list(others), vectors[1], ["1 token"] * len(degrees))


def test_neighbours_and_distances_of_known_vectors():
    found = space({"ox": 0, "cow": 60}, {"cow": 60, "Ox": 0, "plant": 180, "calf": 50, "bull": -10})
    (first, second), cosine = found.neighbours(3), lambda d: pytest.approx(math.cos(math.radians(d)), abs=1e-6)
    assert first == [("bull", cosine(10)), ("calf", cosine(50)), ("cow", cosine(60))]  # not itself, with a capital either
    assert second == [("calf", cosine(10)), ("Ox", cosine(60)), ("bull", cosine(70))]
    np.testing.assert_allclose(found.distances(), [[0, 0.5], [0.5, 0]], atol=1e-6)
    names, places, share = found.mapped(1)
    assert names == ["ox", "cow", "bull", "calf"] and places.shape == (4, 2) and share == pytest.approx(1)
    apart = np.linalg.norm(places[:, None] - places[None], axis=-1)
    np.testing.assert_allclose(apart[0], [0, 1, 2 * math.sin(math.radians(5)), 2 * math.sin(math.radians(25))], atol=1e-6)
    lines = list(found.lines(1))
    assert lines[0] == "a plane" and lines[1].split() == ["ox", "1", "token", "bull", "0.985"]
    assert lines[-1].split() == ["cow", "0.5000", "0.0000"]
    assert found.to_json(1)["words"][1] == {
        "word": "cow",
        "made_of": "1 token",
        "neighbours": [{"word": "calf", "cosine": 0.984808}],
    }
    assert space({"ox": 0}, {}).mapped(3)[1].tolist() == [[0.0, 0.0]]


def test_whole_words_stand_alone(tokenizer):
    found = words.whole_words(tokenizer)
    assert {"ox", "cow", "the", "plant"} <= set(found)
    assert all(word.isalpha() and tokenizer.encode(f" {word}").tolist()[-1] == i for word, i in found.items())
    alone = {tokenizer.piece(i) for i in found.values()}
    assert all(piece.startswith("\u2581") for piece in alone)  # no piece that stands inside words alone
    assert "oxcow" not in found and len(words.tokens_of(tokenizer, "oxcow")) > 1
    with pytest.raises(UserError, match="no tokens for ' '"):
        words.tokens_of(tokenizer, " ")


def test_token_vectors_are_rows_of_the_table(made, tokenizer):
    _, params, embedder = made
    table = np.asarray(params["embed"]["tokens"]["embedding"])
    found, known = words.of_tokens(embedder, ["ox", "oxcow"]), words.whole_words(tokenizer)
    ids = words.tokens_of(tokenizer, "oxcow")
    np.testing.assert_array_equal(found.vectors, [table[known["ox"]], table[ids].mean(axis=0)])
    np.testing.assert_array_equal(found.compared, table[list(known.values())])
    assert found.others == list(known) and found.counts == ["1 token", f"{len(ids)} tokens"]
    table = table / np.linalg.norm(table, axis=1, keepdims=True)
    exact = {word: float(table[known["ox"]] @ table[i]) for word, i in known.items() if word != "ox"}
    nearest = sorted(exact, key=lambda word: -exact[word])[:3]
    assert [(name, pytest.approx(exact[name], abs=1e-5)) for name in nearest] == found.neighbours(3)[0]


def hidden(model, params, ids):
    """float32 [n, D]: what the model makes of one row, which stands alone."""
    row = lambda x: np.asarray(x, np.int32)[None]
    stream = TokenStream(row(ids), row(np.arange(len(ids))), row(np.ones(len(ids))))
    return np.asarray(jax.jit(model.apply, static_argnames="method")({"params": params}, stream, method="encode"))[0]


def test_contextual_vectors_are_means_over_occurrences(made, tokenizer):
    """An occurrence is a whole word, also with a capital or at the beginning; words in longer ones are none."""
    model, params, embedder = made
    texts = ["the ox and the cow.", "Ox and oxen, unplanted", "cow", "oxen of the ox and an ox"]
    found = words.in_context(embedder, ["ox", "cow", "oxen"], texts, "lines.txt")
    assert found.counts == ["4 times", "2 times", "2 times"]
    sums = {word: [] for word in found.words}
    for text in texts:
        ids = tokenizer.encode(text)
        x = hidden(model, params, [tokenizer.bos_id, *ids, tokenizer.eos_id])[1:-1]
        ends = np.cumsum([len(tokenizer.piece_bytes[i]) for i in ids])
        for word, rows in sums.items():
            for match in re.finditer(rf"\b{word}\b", text, re.I):
                inside = (ends > match.start()) & (np.concatenate([[0], ends[:-1]]) < match.end())
                rows.append(x[inside].mean(axis=0))
    for word, vector in zip(found.words, found.vectors, strict=True):
        np.testing.assert_allclose(vector, np.mean(sums[word], axis=0), atol=1e-5)
    assert "the" in found.others and "plant" not in found.others


def test_a_long_text_is_read_in_parts_and_evenly(made, monkeypatch):
    _, _, embedder = made
    texts = ["the ox and the cow " * 40, "the plant"]
    found = words.in_context(embedder, ["cow", "ox"], texts, "lines.txt")
    assert found.counts == ["40 times", "40 times"]  # cut before words, so that none is lost
    monkeypatch.setattr(words, "WINDOWS", 4)
    some = words.in_context(embedder, ["cow", "ox"], texts, "lines.txt")
    assert 2 <= int(some.counts[0].split()[0]) < 40
    with pytest.raises(Missing, match="'plum' is no word of lines.txt: leave it out, or give --file=FILE"):
        words.in_context(embedder, ["ox", "plum"], texts, "lines.txt")


def test_without_texts_each_word_is_read_alone(made, tokenizer, monkeypatch):
    model, params, embedder = made
    monkeypatch.setattr(words, "COMPARED", 6)
    found = words.in_context(embedder, ["ox", "oxcow"], [], "")
    for word, vector in zip(found.words, found.vectors, strict=True):
        x = hidden(model, params, [tokenizer.bos_id, *words.tokens_of(tokenizer, word), tokenizer.eos_id])
        np.testing.assert_allclose(vector, x[1:-1].mean(axis=0), atol=1e-5)
    nearest = words.of_tokens(embedder, ["ox", "oxcow"]).neighbours(3)
    assert found.others == list(dict.fromkeys(name for near in nearest for name, _ in near))


def test_the_map_is_a_picture(tmp_path):
    pytest.importorskip("matplotlib")
    one = space({"ox": 0, "cow": 5, "$x$": 7}, {"calf": 6, "bull": -10, "\u82b1": 3})
    words.draw([one, one], tmp_path / "words.png", 3)
    assert (tmp_path / "words.png").read_bytes().startswith(b"\x89PNG") and (tmp_path / "words.png").stat().st_size > 10_000
