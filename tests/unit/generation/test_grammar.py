"""Texts that follow a grammar, on a model of random parameters, which knows nothing of it."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from lm import config
from lm.config import Sampling
from lm.data import tokenizer as tokenizers
from lm.errors import UserError
from lm.generation.engine import Engine, Request
from tests.engines import prompts, random_model, tokens, written
from tests.fakes import WordTokenizer, small_model

pytest.importorskip("llguidance")
from lm.generation.grammar import Grammars  # noqa: E402

TEXT = ["the cat sat on the mat, and the dog sat on the log: 12 34 56 78 90."] * 20
SCHEMA = {
    "type": "object",
    "properties": {"name": {"enum": ["cat", "dog"]}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizers.train(TEXT, config.Tokenizer(vocab_size=400))


@pytest.fixture(scope="module")
def model(tokenizer):
    return random_model(small_model("decoder", vocab_size=tokenizer.vocab_size + 3))  # a table that was padded


@pytest.fixture(scope="module")
def grammars(tokenizer, model):
    return Grammars(tokenizer, vocab_size=model[0].config.vocab_size, eos=[tokenizer.eos_id])


@pytest.fixture(scope="module")
def engine(tokenizer, model):
    return Engine(*model, slots=3, length=64, steps=4, eos=[tokenizer.eos_id])


def texts(tokenizer, samples):
    """The text of each sample, all of which came to their end."""
    out = []
    for ids in tokens(samples).values():
        assert ids[-1] == tokenizer.eos_id
        out.append(tokenizer.decode(ids))
    return out


def test_every_sample_follows_a_regular_expression(tokenizer, grammars, engine):
    asked = Request(prompts(5)[0], 40, Sampling(seed=5), samples=8, constraint=grammars.regex("[0-9]{2,4}-(cat|dog)s?"))
    found = texts(tokenizer, written(engine, asked)[0])
    assert all(re.fullmatch("[0-9]{2,4}-(cat|dog)s?", text) for text in found) and len(set(found)) > 4


@pytest.mark.parametrize("given", [Sampling(seed=5), Sampling(temperature=0.0), Sampling(top_k=2, frequency=1.0, seed=1)])
def test_every_sample_is_json_of_the_schema(tokenizer, grammars, engine, given):
    asked = Request(prompts(5)[0], 50, given, samples=4, constraint=grammars.json_schema(SCHEMA))
    for text in texts(tokenizer, written(engine, asked)[0]):
        value = json.loads(text)
        assert value.keys() == {"name", "age"} and value["name"] in ("cat", "dog") and 0 <= value["age"] <= 99


def test_the_draw_is_from_what_is_left_of_the_models_distribution(tokenizer, grammars, engine):
    """Tokens that spell a 3 or a 7, as a piece or as a byte, are drawn as if the others had no probability."""
    left = [i for i, piece in enumerate(tokenizer.piece_bytes) if piece in (b"3", b"7")]
    bias = {t: -200.0 for t in range(engine.vocab_size) if t not in left}
    asked = Request(prompts(5)[0], 1, Sampling(seed=2), samples=200)
    of = lambda request: [some[0] for some in written(engine, request)[0].values()]
    biased, found = of(replace(asked, bias=bias)), of(replace(asked, constraint=grammars.regex("3|7")))
    assert [w.token for w in found] == [w.token for w in biased] and len({w.token for w in found}) == len(left) == 4
    shares = [w.drawn_log_prob for w in found]
    np.testing.assert_allclose(shares, [w.drawn_log_prob for w in biased], atol=1e-5)
    assert all(w.log_prob < w.drawn_log_prob for w in found)  # of the model's own distribution, and of the draw's


def test_neighbours_without_a_grammar_write_what_they_write_alone(grammars, engine):
    free = Request(prompts(7)[0], 20, Sampling(seed=9))
    alone = tokens(written(engine, free)[0])
    asked = Request(prompts(5)[0], 30, Sampling(seed=5), samples=3, constraint=grammars.json_object())
    among, _ = written(engine, replace(free), asked)
    assert tokens(among) == alone


def test_a_text_that_follows_a_grammar_gets_a_token_each_step(grammars, engine):
    engine.submit(Request(prompts(5)[0], 30, Sampling(seed=5), constraint=grammars.regex("[0-9]{12}")))
    sizes = []
    while engine.busy or engine.waiting:
        sizes.append(len(engine.step()))
    assert set(sizes) == {1} and len(sizes) == 13


def test_a_grammar_and_guesses_go_together(tokenizer, model, grammars):
    draft = random_model(small_model("decoder", vocab_size=model[0].config.vocab_size, width=16))
    for guesser in (None, draft):
        engine = Engine(*model, slots=2, length=64, eos=[tokenizer.eos_id], guesses=2, draft=guesser)
        free = Request(prompts(6)[0], 20, Sampling(seed=4))
        asked = Request(prompts(5)[0], 40, Sampling(seed=5), samples=2, constraint=grammars.regex("(cat|dog){2,3}"))
        alone, among = written(engine, replace(free))[0], written(engine, asked, free)
        assert all(re.fullmatch("(cat|dog){2,3}", text) for text in texts(tokenizer, among[0]))
        assert tokens(among[1]) == tokens(alone)


def test_nothing_compiles_for_a_grammar_once_it_is_warm(tokenizer, grammars):
    engine = Engine(*random_model(small_model("decoder", vocab_size=403, width=48)), slots=2, length=64, eos=[tokenizer.eos_id])
    engine.warm(grammars.json_object())
    before = engine.compilations
    written(engine, Request(prompts(5)[0], 40, constraint=grammars.regex("[0-9]{5}")), Request(prompts(9)[0], 9))
    assert engine.compilations == before


@pytest.mark.parametrize("size", [416, 417])
def test_bits_are_words_of_32_tokens(tokenizer, size):
    walk = Grammars(tokenizer, vocab_size=size, eos=[tokenizer.eos_id]).regex("[0-9]").begin()
    assert walk.allowed().shape == (-(-size // 32),)
    assert {i for i in range(size) if walk.allowed()[i // 32] >> (i % 32) & 1} == {
        i for i, piece in enumerate(tokenizer.piece_bytes) if piece.decode(errors="replace").isdigit()
    }


def test_what_is_no_grammar_is_refused(grammars):
    with pytest.raises(UserError, match=r"the regular expression '\[0-9' cannot be used"):
        grammars.regex("[0-9")
    with pytest.raises(UserError, match="the JSON schema cannot be used"):
        grammars.json_schema({"type": "nonsense"})
    with pytest.raises(UserError, match="the grammar cannot be used"):
        grammars.lark("start: missing")
    with pytest.raises(UserError, match="whose pieces are the bytes of a text"):
        words = WordTokenizer()
        words.piece_bytes = [b"w"] * 26
        words.encode = lambda text: np.array([3, 4])
        Grammars(words, vocab_size=26, eos=[2])
