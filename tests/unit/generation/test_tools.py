"""Tools: arithmetic without a way out, and answers in which calls are followed by outputs, each a request that goes on."""

import jax
import numpy as np
import pytest
from flax import linen as nn

from lm import config
from lm.generation.engine import Engine, Request
from lm.generation.tools import TOOLS, Calling, Tool, calculate, write
from lm.models.transformer import Transformer, abstract_params

V, EOS, NEW = 16, 0, 9


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("12+34", "46"),
        (" 1 2 + 3 4 ", "46"),
        ("(1,000 - 1) * 2", "1998"),
        ("7 / 2", "3.5"),
        ("6/2", "3"),
        ("0.1 + 0.2", "0.3"),
        ("007 // 2 + -1", "2"),
        ("2 ** 10 % 1000", "24"),
        ("1 . 5 * 2", "3"),
        ("2**-1", "0.5"),
        ("1/100000", "0.00001"),
        ("10**15/1", "1000000000000000"),
        ("-1/10**11", "0"),
        ("0*-1.0", "0"),
        ("1e5", "error"),
        ("1 / 0", "error"),
        ("", "error"),
        ("(1", "error"),
        ("9**9**9", "error"),
        ("(-8) ** 0.5", "error"),
        ("1 2", "12"),
        ("x + 1", "error"),
        ("__import__('os')", "error"),
        ("(" * 99 + "1", "error"),
        ("9" * 30, "error"),
        ("(1)(2)", "error"),
        ("+" * 99 + "1", "1"),
    ],
)
def test_the_calculator(text, value):
    assert calculate(text) == value


class Letters:
    """A tokenizer whose token i is the letter i of the alphabet; 15 stands for all others."""

    unk_id = 15

    def decode(self, ids):
        return "".join(chr(97 + i) for i in ids if i != EOS)

    def encode(self, text):
        return np.array([ord(c) - 97 if "a" <= c < "p" else 15 for c in text if c != " "], np.int32)


TOOL = Tool("([cd])", lambda text: {"c": "gh", "d": "i"}[text])
CALLING = Calling(Letters(), [TOOL], most=2)


@pytest.fixture(scope="module")
def engine():
    block = config.Block(config.Attention(2), config.Mlp(32))
    model = Transformer(config.Model(V, 16, decoder=config.Stack(1, {"L": block}, position=config.Rope())))
    leaves, tree = jax.tree.flatten(nn.unbox(abstract_params(model.config)))
    rng = np.random.default_rng(0)
    params = jax.tree.unflatten(tree, [rng.normal(0, 0.5, x.shape).astype(x.dtype) for x in leaves])
    return Engine(model, params, slots=4, length=16, steps=4, eos=(EOS,))


def asked(seeds, samples=4):
    return [Request(np.array([1, 2, 3 + s], np.int32), NEW, config.Sampling(seed=s), samples=samples) for s in seeds]


def plain(engine, request, sample):
    """The answer by hand: what is written for a prompt up to the first call, and then for the prompt with the output."""
    tokens, own, log_probs, calls, seed = [], [], [], 0, request.sampling.seed
    while True:
        prompt, left = np.concatenate([request.prompt, tokens]).astype(np.int32), NEW - len(tokens)
        samples = request.samples if not calls else 1
        (written,) = engine.write([Request(prompt, left, config.Sampling(seed=seed), samples=samples)])
        written = written[sample if not calls else 0]
        ids = [each.token for each in written]
        call = next((i for i, t in enumerate(ids) if t in (2, 3)), None) if calls < 2 else None
        n = len(ids) if call is None else call + 1
        tokens, own, log_probs = tokens + ids[:n], own + [True] * n, log_probs + [w.drawn_log_prob for w in written[:n]]
        output = [] if call is None else {2: [6, 7], 3: [8]}[ids[call]]
        if call is None or len(tokens) + len(output) >= NEW:
            return tokens, own, log_probs
        calls += 1
        tokens, own, log_probs = tokens + output, own + [False] * len(output), log_probs + [0.0] * len(output)
        seed = int(np.random.SeedSequence((request.sampling.seed, sample, calls)).generate_state(1)[0])


def test_an_answer_goes_on_from_outputs(engine):
    requests = asked(range(3))
    found = write(engine, requests, CALLING)
    for request, answers in zip(requests, found, strict=True):
        for answer in answers:
            tokens, own, log_probs = plain(engine, request, answer.sample)
            assert (answer.tokens, answer.own) == (tokens, own)
            np.testing.assert_allclose(answer.log_probs, log_probs, atol=1e-5)
            assert answer.own[-1] and len(answer.tokens) <= NEW and answer.calls <= 2
    every = [answer for answers in found for answer in answers]
    assert {answer.calls for answer in every} == {0, 1, 2}
    assert any(answer.tokens[-1] in (2, 3) and answer.calls < 2 for answer in every)  # no room for an output
    assert len({tuple(answer.tokens) for answer in every}) > 8


def test_an_answer_is_a_function_of_its_request(engine):
    requests = asked(range(3))
    alone = [write(engine, [request], CALLING)[0] for request in requests]
    together = write(engine, requests[::-1], CALLING)[::-1]
    for a, b in zip(alone, together, strict=True):
        assert [x.tokens for x in a] == [x.tokens for x in b] and [x.log_probs for x in a] == [x.log_probs for x in b]


def test_without_tools_it_is_what_the_engine_writes(engine):
    requests = asked(range(2))
    found, expected = write(engine, requests), engine.write(requests)
    for answers, samples in zip(found, expected, strict=True):
        assert [a.tokens for a in answers] == [[w.token for w in s] for s in samples]
        assert all(all(a.own) and a.calls == 0 for a in answers)


def test_an_output_that_a_vocabulary_of_words_lacks_is_read_by_character():
    class Words(Letters):
        def encode(self, text):
            return np.array([{"4": 5, "6": 6, "b": 7}.get(word, 15) for word in text.split()], np.int32)

    encoded = Calling(Words(), [], 1)._encoded
    assert encoded("46").tolist() == [5, 6] and encoded("b").tolist() == [7] and encoded("error").tolist() == [15]
    assert TOOLS["calculator"].run("1 + 1") == "2"
