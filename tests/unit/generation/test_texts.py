"""Text as it streams: complete characters, no part of a stop string, the same in all as decoding at once."""

import numpy as np
import pytest

from lm import config
from lm.data import tokenizer as tokenizers
from lm.generation.texts import Streamed

TEXT = "The cat, naïve — 🐈 sat. Stop here: END of it. " * 3


@pytest.fixture(scope="module")
def tokenizer():
    """Bytes for all characters that are not in its small vocabulary."""
    return tokenizers.train(["the cat sat on a mat " * 20, "stop here end of it " * 20], config.Tokenizer(vocab_size=400))


def streamed(tokenizer, text, size, **settings):
    prompt, rest = np.split(tokenizer.encode(text), [6])
    of = Streamed(tokenizer, prompt, **settings)
    parts = [of.add(rest[i : i + size]) for i in range(0, len(rest), size)] + [of.end()]
    return of, tokenizer.decode(prompt), parts


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_parts_join_to_the_text_without_half_characters(tokenizer, size):
    _, before, parts = streamed(tokenizer, TEXT, size)
    assert before + "".join(parts) == tokenizer.decode(tokenizer.encode(TEXT)) and "🐈" in "".join(parts)
    assert not any("\ufffd" in part for part in parts)


@pytest.mark.parametrize("size", [1, 2, 1000])
@pytest.mark.parametrize("stop", [["END"], ["here: END", "ENDLESS", "of"], [". Stop here: END of it!", "END"]])
def test_nothing_of_a_stop_string_is_given_out(tokenizer, size, stop):
    of, before, parts = streamed(tokenizer, TEXT, size, stop=stop)
    whole = tokenizer.decode(tokenizer.encode(TEXT))[len(before) :]
    first = min((whole.find(s), s) for s in stop if s in whole)
    assert "".join(parts) == whole[: first[0]] and of.stopped == first[1]
    assert of.add(tokenizer.encode("more")) == of.end() == ""


def test_what_only_began_like_a_stop_string_comes_at_the_end(tokenizer):
    of, before, parts = streamed(tokenizer, TEXT, 1, stop=[TEXT[-8:] + "never"])
    assert before + "".join(parts) == tokenizer.decode(tokenizer.encode(TEXT)) and of.stopped is None
    assert parts[-1] == tokenizer.decode(tokenizer.encode(TEXT))[-len(parts[-1]) :] != ""


def test_bytes_that_never_become_a_character_come_at_the_end(tokenizer):
    half = tokenizer.encode("🐈")[:-1]
    of = Streamed(tokenizer, tokenizer.encode("a"))
    assert of.add(half).strip() == "" and "\ufffd" in of.end()
