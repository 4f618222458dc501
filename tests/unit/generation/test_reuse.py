"""A slot's cache is gone on from: the same texts, and fewer tokens that are read."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from lm.config import Alibi, Learned, Sampling
from lm.generation.engine import Engine, Request
from lm.generation.padding import buckets
from tests.engines import V, greedy, made, prompts, random_model, tokens, written
from tests.fakes import small_model

GREEDY = Sampling(temperature=0.0)
WARM = Sampling(temperature=0.9, top_k=12, repetition=1.2, frequency=0.3, seed=5)
LENGTH = 96


def of(position, **changes):
    config = small_model("decoder")
    return random_model(replace(config, decoder=replace(config.decoder, position=position, **changes)))


@pytest.fixture(scope="module")
def decoder():
    return made()


def conversation(engine, sampling=GREEDY, turns=4, new=9):
    """What is written in each of several turns, of which each is read behind all that was said before."""
    rng, text, said = np.random.default_rng(1), prompts(12)[0].tolist(), []
    for _ in range(turns):
        (found,) = written(engine, Request(np.array(text, np.int32), new, sampling))
        said.append(tokens(found)[0])
        text += said[-1][:-1] + rng.integers(3, V, 6).tolist()  # the end of an answer is written in another way
    return said


@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "filtered"])
@pytest.mark.parametrize("model", ["rope", "learned", "alibi"])
def test_a_conversation_goes_on_from_what_was_read(decoder, model, sampling):
    model = decoder if model == "rope" else of(Learned(LENGTH - 1) if model == "learned" else Alibi())
    anew, again = (Engine(*model, slots=1, length=LENGTH, steps=4, reuse=reuse) for reuse in (False, True))
    assert conversation(anew, sampling) == conversation(again, sampling)
    assert anew.prefilled == 12 + 26 + 40 + 54
    assert again.prefilled == 12 + 3 * (6 + 0)  # the last token of an answer is not said again, and so is not shared


def test_a_text_that_was_cancelled_or_looked_up_is_gone_on_from(decoder):
    for settings in ({}, {"guesses": 3}):
        engine = Engine(*decoder, slots=1, length=LENGTH, steps=2, reuse=True, **settings)
        begun = Request(prompts(20)[0], 60, GREEDY)
        engine.submit(begun)
        said = [w.token for _ in range(5) for w in engine.step()]
        engine.cancel(begun)
        text = [*begun.prompt, *said, 7]
        before = engine.prefilled
        (found,) = written(engine, Request(np.array(text, np.int32), 12, GREEDY))
        assert tokens(found)[0] == greedy(*decoder, text, 12) and engine.prefilled - before == 1


def test_the_slot_that_holds_most_is_taken(decoder):
    """Also by requests of several samples, whose prompt is read once."""
    engine = Engine(*decoder, slots=3, length=LENGTH, steps=4, reuse=True)
    texts = prompts(30, 33, 36)
    said = [tokens(found)[0] for found in written(engine, *(Request(p, 8, GREEDY) for p in texts))]
    before = engine.prefilled
    longer = [np.array([*p, *some, 9], np.int32) for p, some in zip(texts, said, strict=True)]
    asked = [Request(longer[2], 5, GREEDY), Request(longer[0], 5, WARM, samples=2), Request(longer[1], 5, GREEDY)]
    found = written(engine, *asked)
    alone = [written(Engine(*decoder, slots=1, length=LENGTH), replace(request))[0] for request in asked]
    assert [tokens(some) for some in found] == [tokens(some) for some in alone]
    # The third finds its slot taken by the second sample of the second.
    assert engine.prefilled - before == 1 + 1 + len(longer[1])


def test_a_text_that_fills_its_slot_is_gone_on_from(decoder):
    """Free slots pass through the model too, while another one writes: in the last place, where nothing is held."""
    for model in (decoder, of(Learned(39))):
        engine = Engine(*model, slots=2, length=40, steps=3, reuse=True)
        short, long = Request(prompts(28)[0], 12, GREEDY), Request(prompts(3)[0], 30, GREEDY)
        full, _ = written(engine, short, long)
        text = np.array([*short.prompt, *tokens(full)[0]][:39], np.int32)
        before = engine.prefilled
        (found,) = written(engine, Request(text, 1, GREEDY))
        assert tokens(found)[0] == greedy(*model, text, 1) and engine.prefilled - before <= 16


def test_a_beginning_that_saves_no_bucket_is_read_anew(decoder):
    engine = Engine(*decoder, slots=1, length=LENGTH, reuse=True)
    one, other = prompts(31, 31, seed=4)
    other[:3] = one[:3]
    written(engine, Request(one, 5, GREEDY))
    (found,) = written(engine, Request(other, 5, GREEDY))
    assert engine.prefilled == 62 and tokens(found)[0] == greedy(*decoder, other, 5)


@pytest.mark.parametrize("what", ["window", "int8", "prefix", "draft", "encoder_decoder"])
def test_what_cannot_go_on_reads_everything_again(decoder, what):
    settings, given = {}, {}
    if what == "window":
        block = small_model("decoder").decoder.blocks["L"]
        model = of(None, blocks={"L": replace(block, attention=replace(block.attention, window=6))})
    else:
        model = made("encoder_decoder") if what == "encoder_decoder" else decoder
        settings = {"int8": {"kind": "int8"}, "prefix": {"prefix": True}, "draft": {"guesses": 2, "draft": decoder}}.get(
            what, {}
        )
    if what == "encoder_decoder":
        settings, given = {"source": 16}, {"encoder": prompts(9)[0]}
    said = []
    for reuse in (False, True):
        engine = Engine(*model, slots=1, length=64, reuse=reuse, **settings)
        said.append([tokens(written(engine, Request(p, 6, GREEDY, **given))[0])[0] for p in prompts(20, 20)[:1] * 2])
        assert engine.prefilled == 40
    assert said[0] == said[1]


def test_nothing_is_compiled_once_it_is_warm():
    engine = Engine(*made(width=40), slots=2, length=70, steps=3, reuse=True)
    engine.warm()
    before = engine.compilations
    assert before == 2 * len(buckets(69)) + 3 + 1 + (len(buckets(69)) - 1) + 1  # and a prompt of any rest is put in alike
    assert conversation(engine, turns=3, new=5) and engine.prefilled and engine.compilations == before


def test_slots_are_where_the_parameters_are():
    """Or the second prompt would compile what puts it into its slot anew."""
    model, params = made(width=56)
    engine = Engine(model, jax.device_put(params, jax.devices()[0]), slots=2, length=30)
    written(engine, *(Request(p, 3) for p in prompts(4, 5)))
    assert engine.compilations == 3
