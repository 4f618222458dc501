"""Guessing ahead: texts and their distribution are those without guesses."""

from collections import Counter
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from lm.config import Sampling
from lm.errors import UserError
from lm.generation import programs
from lm.generation.engine import Engine, Request
from tests.engines import V, logits_of, made, prompts, tokens, written

EOS = 2
GREEDY = Sampling(temperature=0.0)
WARM = Sampling(temperature=0.9, top_k=12, top_p=0.95, min_p=0.01, frequency=0.2, presence=0.1, repetition=1.1, seed=3)
OFTEN = {token: 4.0 for token in (5, 6, 7)}  # a bias, by which texts repeat themselves and looking up finds something


@pytest.fixture(scope="module")
def decoder():
    return made()


@pytest.mark.parametrize("given", [GREEDY, Sampling(seed=3), WARM], ids=["greedy", "plain", "filtered"])
@pytest.mark.parametrize("by", ["looking up", "itself", "another"])
def test_a_text_is_the_same_with_guesses_as_without(decoder, given, by):
    draft = {"looking up": None, "itself": decoder, "another": made(width=16)}[by]
    settings = dict(slots=3, length=40, steps=2, eos=[EOS])
    requests = [Request(p, 29, given, samples=2, bias=OFTEN) for p in prompts(6, 1, 11)]
    plain = written(Engine(*decoder, **settings), *requests)
    guessing = Engine(*decoder, guesses=3, draft=draft, **settings)
    ahead = written(guessing, *map(replace, requests))
    assert [tokens(some) for some in ahead] == [tokens(some) for some in plain]
    for one, other in zip(ahead, plain, strict=True):
        for k in one:
            of = lambda some: [(w.log_prob, w.drawn_log_prob) for w in some]
            np.testing.assert_allclose(of(one[k]), of(other[k]), atol=2e-4)
            assert [w.last for w in one[k]] == [False] * (len(one[k]) - 1) + [True]


@pytest.mark.parametrize("given", [GREEDY, Sampling(seed=3)], ids=["greedy", "plain"])
def test_the_model_as_its_own_draft_is_always_right(decoder, given):
    engine = Engine(*decoder, slots=1, length=60, steps=1, guesses=3, draft=decoder)
    engine.submit(Request(prompts(5)[0], 40, given))
    sizes = []
    while engine.busy or engine.waiting:
        sizes.append(len(engine.step()))
    assert sizes == [4] * 10


def test_looking_up_goes_on_from_the_latest_place_of_most_of_the_last_tokens():
    text = np.zeros((2, 13), np.int32)
    text[0, :11] = 1, 2, 3, 9, 8, 2, 3, 7, 1, 2, 3
    text[1, :6] = 5, 6, 5, 6, 5, 6
    found = programs.looked_up(jnp.asarray(text), jnp.array([11, 6]), 4)
    assert found.tolist() == [[9, 8, 2, 3], [5, 6, 5, 6]]  # "1 2 3" counts more than the later "2 3"; a repetition goes on


def test_what_repeats_takes_fewer_passes(decoder):
    always = {5: 60.0}
    engine = Engine(*decoder, slots=1, length=60, steps=1, guesses=3)
    engine.submit(Request(prompts(5)[0], 40, GREEDY, bias=always))
    sizes = []
    while engine.busy or engine.waiting:
        sizes.append(len(engine.step()))
    assert sum(sizes) == 40 and len(sizes) <= 12


@pytest.mark.parametrize("by", ["looking up", "another"])
def test_guesses_leave_the_distribution_as_it_is(decoder, by):
    """Samples of three tokens on a vocabulary of five against all 125 texts' probabilities, by a chi-squared test."""
    prompt, few, n = prompts(4)[0], range(5, 10), 1500
    bias = {t: -100.0 for t in range(V) if t not in few}
    draft = made(width=16) if by == "another" else None
    engine = Engine(*decoder, slots=4, length=16, steps=1, guesses=2, draft=draft)
    (samples,) = written(engine, Request(prompt, 3, Sampling(temperature=2.0, seed=11), samples=n, bias=bias))
    counts = Counter(map(tuple, tokens(samples).values()))

    def distribution(text):
        logits = logits_of(*decoder, [*prompt, *text])[-1] + np.array([bias.get(t, 0.0) for t in range(V)])
        return np.asarray(jax.nn.softmax(logits / 2.0), np.float64)

    expected = {}
    for a in few:
        for b in few:
            last = distribution((a, b))
            before = distribution(())[a] * distribution((a,))[b]
            expected |= {(a, b, c): n * before * last[c] for c in few}
    often = [k for k in expected if expected[k] >= 5]
    seen = [counts[k] for k in often]
    wanted = [expected[k] for k in often]
    assert len(often) > 20 and sum(counts.values()) == n and counts.keys() <= expected.keys()
    test = stats.chisquare([*seen, n - sum(seen)], [*wanted, n - sum(wanted)], sum_check=False)
    assert test.pvalue > 1e-3


def test_no_guess_is_read_behind_the_learned_positions(decoder):
    """A slot that ends with the last position: guesses beyond it would be NaN."""
    from lm.config import Learned
    from tests.engines import random_model
    from tests.fakes import small_model

    config = small_model("decoder")
    model = random_model(replace(config, decoder=replace(config.decoder, position=Learned(20))))
    request = Request(prompts(6)[0], 14, GREEDY)
    (plain,) = written(Engine(*model, slots=1, length=20), request)
    for draft in (None, model):
        engine = Engine(*model, slots=1, length=20, steps=1, guesses=3, draft=draft)
        for _ in range(2):  # the second text is written where the first one was
            (ahead,) = written(engine, replace(request))
            assert tokens(plain) == tokens(ahead) and np.isfinite([w.log_prob for w in ahead[0]]).all()
    engine.submit(replace(request))
    assert len(engine.step()) == 4  # the draft has no NaN either: it is right


def test_a_draft_of_other_tokens_is_refused(decoder):
    with pytest.raises(UserError, match="give one with the same tokenizer, and guesses=4"):
        Engine(*decoder, length=16, guesses=2, draft=made(vocab_size=30))


def test_nothing_compiles_once_it_is_warm():
    engine = Engine(*made(width=48), slots=2, length=40, steps=3, guesses=2, draft=made(width=16))
    engine.warm()
    before = engine.compilations
    written(engine, *(Request(p, 9, s, samples=3) for p in prompts(1, 16, 30) for s in (GREEDY, Sampling(), WARM)))
    assert engine.compilations == before
