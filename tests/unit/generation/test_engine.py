"""The engine: what a request gets is its own affair, whoever else is there; slots and programs are reused."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from scipy import stats

from lm import distributed
from lm.config import Learned, Moe, Sampling
from lm.errors import UserError
from lm.generation import sampling
from lm.generation.engine import Engine, Request
from lm.generation.padding import buckets
from lm.models.transformer import Transformer, independent_of_padding, stack_groups
from lm.types import Example, TokenStream
from tests.engines import V, greedy, logits_of, made, prompts, random_model, tokens, written
from tests.fakes import small_model

EOS = 2
WARM = Sampling(temperature=0.9, top_k=12, top_p=0.95, min_p=0.01, frequency=0.2, presence=0.1, repetition=1.1, seed=3)


@pytest.fixture(scope="module")
def decoder():
    return made()


@pytest.fixture(scope="module")
def engine(decoder):
    return Engine(*decoder, slots=3, length=40, steps=4, top=2, eos=[EOS])


@pytest.mark.parametrize("given", [Sampling(seed=3), WARM], ids=["plain", "filtered"])
def test_a_text_is_the_same_alone_and_among_others_in_any_slot(engine, given):
    one, *others = prompts(6, 3, 11, 5, 8)
    asked = Request(one, 20, given, samples=2, bias={5: 0.0})
    strangers = [Request(p, 5 + 4 * i, replace(given, seed=50 + i), bias={4: 1.0}) for i, p in enumerate(others)]
    (alone,) = written(engine, replace(asked))
    *_, among = written(engine, *strangers, replace(asked))
    first, *_ = written(engine, replace(asked), *strangers)
    values = lambda samples: [(w.token, w.log_prob, w.drawn_log_prob, w.top) for some in samples.values() for w in some]
    assert values(alone) == values(among) == values(first)  # to the bit
    assert tokens(alone)[0] != tokens(alone)[1]


def test_no_request_compiles_anything_once_it_is_warm():
    engine = Engine(*made(width=48), slots=2, length=40, steps=3)  # a model that no other test has: all is compiled here
    engine.warm()
    before = engine.compilations
    assert before == 2 * len(buckets(39)) + 3 + 1 and buckets(39) == [16, 32, 39]
    for sampler in (Sampling(), WARM, replace(WARM, top_k=3, typical_p=0.5), Sampling(temperature=0.0)):
        written(
            engine, *(Request(p, n, sampler, samples=3) for p, n in zip(prompts(1, 16, 17, 30), (1, 9, 2, 10), strict=True))
        )
    for slot in range(2):  # whichever is freed
        asked = [Request(p, 20) for p in prompts(3, 4)]
        for request in asked:
            engine.submit(request)
        engine.step()
        engine.cancel(asked[slot])
        assert {w.request for w in engine.run()} == {asked[1 - slot]}
    assert engine.compilations == before


def test_greedy_texts_are_the_likeliest_tokens(decoder):
    texts = prompts(3, 7, 1, 12, 5)
    wanted = [greedy(*decoder, text, 9) for text in texts]
    found = written(Engine(*decoder, slots=2, length=30, steps=5), *(Request(p, 9, Sampling(temperature=0.0)) for p in texts))
    assert [tokens(f)[0] for f in found] == wanted and len({tuple(row) for row in wanted}) > 2


def test_a_scanned_stack_writes_what_an_unrolled_one_does(decoder):
    model, params = decoder
    stack = replace(model.config.decoder, scan=True)
    scanned = Transformer(replace(model.config, decoder=stack)), stack_groups(params)
    texts = prompts(4, 9)
    ask = lambda of: [tokens(f) for f in written(Engine(*of, slots=2, length=30), *(Request(p, 9) for p in texts))]
    assert ask(decoder) == ask(scanned)


def test_an_encoder_decoder_reads_each_text_once():
    both = made("encoder_decoder")
    texts, start = prompts(4, 13, 7), np.array([1], np.int32)
    wanted = [greedy(*both, start, 8, encoder=text) for text in texts]
    engine = Engine(*both, slots=2, length=12, source=20)
    found = written(engine, *(Request(start, 8, Sampling(temperature=0.0), p) for p in texts))
    assert [tokens(f)[0] for f in found] == wanted
    with pytest.raises(UserError, match="the encoder would read 21 tokens, and a slot has room for 20: shorten the text"):
        engine.submit(Request(start, 8, encoder=prompts(21)[0]))
    with pytest.raises(UserError, match="an encoder-decoder, and no other model, is given what its encoder reads"):
        engine.submit(Request(start, 8))


def test_log_probabilities_are_the_models_and_those_of_the_draw(decoder):
    (prompt,) = prompts(6)
    (found,) = written(Engine(*decoder, slots=2, length=40, top=3), Request(prompt, 12, WARM))
    text = np.concatenate([prompt, [w.token for w in found[0]]])
    model, params = decoder
    stream = TokenStream(text[None], np.arange(len(text), dtype=np.int32)[None], np.ones_like(text)[None], None)
    logits = np.asarray(model.apply({"params": params}, Example(None, stream, None, None)))[0, len(prompt) - 1 : -1]
    own = jax.nn.log_softmax(logits)
    for i, w in enumerate(found[0]):
        assert w.log_prob == pytest.approx(float(own[i, w.token]), abs=1e-5)
        likeliest = np.argsort(-np.asarray(own[i]))[:3]
        assert [t for t, _ in w.top] == likeliest.tolist()
        read, counts = np.zeros((1, V), bool), np.zeros((1, V), np.int32)
        read[0, prompt] = True
        np.add.at(counts[0], text[len(prompt) : len(prompt) + i], 1)
        rows = sampling.settings([WARM], [0])
        drawn = jax.nn.log_softmax(sampling.filtered(sampling.penalised(logits[i : i + 1], rows, read, counts), rows))
        assert w.drawn_log_prob == pytest.approx(float(drawn[0, w.token]), abs=1e-5)


def test_draws_have_the_filtered_distribution():
    """5,000 samples of one request, by a chi-squared test."""
    logits = np.random.default_rng(0).normal(size=8).astype(np.float32)
    of = Sampling(temperature=0.8, top_p=0.9, seed=11)
    rows = sampling.settings([of] * 5000, list(range(5000)))
    left = np.asarray(sampling.filtered(np.tile(logits, (5000, 1)), rows))
    drawn = np.asarray(sampling.draw(left, rows, np.full(5000, 7, np.int32)))
    p = np.asarray(jax.nn.softmax(left[0]), np.float64)
    p = p / p.sum()
    assert 3 < (p > 0).sum() < 8 and not np.isin(drawn, np.flatnonzero(p == 0)).any()
    assert stats.chisquare(np.bincount(drawn, minlength=8)[p > 0], 5000 * p[p > 0]).pvalue > 1e-3


def test_a_text_ends_with_eos_or_its_last_token(engine):
    (ended,) = written(engine, Request(prompts(4)[0], 9, bias={EOS: 100.0}))
    assert [(w.token, w.last) for w in ended[0]] == [(EOS, True)]
    (full,) = written(engine, Request(prompts(4)[0], 9, bias={EOS: -100.0}))
    assert [w.last for w in full[0]] == [False] * 8 + [True]


def test_a_cancelled_text_frees_its_slot_and_disturbs_nobody(decoder):
    texts = [Request(p, 25, Sampling(seed=9), samples=2) for p in prompts(5, 6, 7)]
    engine = Engine(*decoder, slots=3, length=40, steps=2)
    alone = tokens(written(engine, replace(texts[1]))[0])
    for request in texts:
        engine.submit(request)
    got = {0: [], 1: []}
    for _ in range(3):
        for w in engine.step():
            if w.request is texts[1]:
                got[w.sample].append(w.token)
    engine.cancel(texts[0])
    engine.cancel(texts[2])
    assert engine.busy == 1 and engine.waiting == 1  # the second request's first sample; its second one waits
    for w in engine.run():
        assert w.request is texts[1]
        got[w.sample].append(w.token)
    assert got == alone and engine.busy == engine.waiting == 0


def test_forbidden_tokens_are_never_written(decoder):
    never = np.arange(V) < 20
    (found,) = written(Engine(*decoder, slots=1, length=60, forbidden=never), Request(prompts(3)[0], 50, Sampling(seed=1)))
    assert min(tokens(found)[0]) >= 20


def test_a_full_slot_leaves_nothing_behind():
    """The last token of a text that fills its slot stands in a place that may not have been learned."""
    config = small_model("decoder")
    model = random_model(replace(config, decoder=replace(config.decoder, position=Learned(15))))
    engine = Engine(*model, slots=1, length=16, steps=3)
    full, after = engine.write([Request(p, n, Sampling(temperature=0.0)) for p, n in zip(prompts(6, 4), (10, 5), strict=True)])
    for prompt, samples in zip(prompts(6, 4), (full, after), strict=True):
        assert [w.token for w in samples[0]] == greedy(*model, prompt, len(samples[0]))
        assert all(np.isfinite(w.log_prob) for w in samples[0])


def test_blank_places_are_not_seen():
    """A text that begins at a later position, as that of MASS does."""
    config = small_model("encoder_decoder")
    learned = {name: replace(getattr(config, name), position=Learned(30)) for name in ("encoder", "decoder")}
    model, params = random_model(replace(config, **learned))
    source, blank, begin = prompts(7)[0], 5, 4
    row = lambda ids, first=0: TokenStream(
        np.array([ids], np.int32), first + np.arange(len(ids), dtype=np.int32)[None], np.ones((1, len(ids)), np.int32), None
    )
    text = [begin]
    for _ in range(6):
        logits = model.apply({"params": params}, Example(row(source), row(text, blank), None, None))
        text.append(int(logits[0, -1].argmax()))
    engine = Engine(model, params, slots=1, length=20, source=16)
    asked = Request(np.array([0] * blank + [begin], np.int32), 6, Sampling(temperature=0.0), source, blank=blank)
    ((found,),) = engine.write([asked])
    assert [w.token for w in found] == text[1:] != greedy(model, params, [begin], 6, encoder=source)


def test_what_cannot_be_served_is_refused(engine, decoder):
    prompt = prompts(4)[0]
    for request, why in (
        (Request(prompt, 37), "4 tokens of prompt and 37 new ones are more than the 40 of a slot: shorten the prompt"),
        (Request(prompt[:0], 5), "a request needs a prompt of a token or more"),
        (Request(prompt, 0), "a new token or more"),
        (Request(prompt, 5, bias={V: 1.0}), "a bias is given for token 26, and the vocabulary ends at 25"),
    ):
        with pytest.raises(UserError, match=why):
            engine.submit(request)


def test_experts_drop_no_token_for_the_padding_of_a_prompt():
    """With a capacity an expert takes a share of a row: the length of the bucket would decide what a short prompt means."""
    config = small_model("decoder")
    block = config.decoder.blocks["L"]
    sparse = replace(block, ffn=Moe(4, 2, block.ffn, capacity=0.5))
    model, params = random_model(replace(config, decoder=replace(config.decoder, blocks={"L": sparse})))
    (prompt,) = prompts(12)
    found = [written(Engine(model, params, slots=n, length=m), Request(prompt, 6))[0] for n, m in ((1, 18), (3, 40))]
    assert tokens(found[0]) == tokens(found[1])
    logits = jax.nn.log_softmax(
        logits_of(Transformer(independent_of_padding(model.config)), params, [*prompt, *tokens(found[0])[0]])
    )
    own = [logits[len(prompt) - 1 + i, w.token] for i, w in enumerate(found[0][0])]
    np.testing.assert_allclose([w.log_prob for w in found[0][0]], own, atol=1e-4)


def test_the_host_works_while_the_device_computes(decoder, monkeypatch):
    engine, done = Engine(*decoder, slots=1, length=30, steps=2), []
    call = engine._call
    monkeypatch.setattr(engine, "_call", lambda name, *a, **b: done.append(name) or call(name, *a, **b))
    monkeypatch.setattr(distributed, "fetched", lambda x: done.append("awaited") or np.asarray(x))
    assert engine.step(lambda: done.append("meanwhile")) == [] == done  # nothing is there to compute
    engine.submit(Request(prompts(3)[0], 4))
    engine.step(lambda: done.append("meanwhile"))
    assert [*dict.fromkeys(done)] == ["prefill", "insert", "decode", "meanwhile", "awaited"]
    assert done.count("meanwhile") == 1
