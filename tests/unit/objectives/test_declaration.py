"""Every pair of an architecture and an objective is declared or refused, and what is declared holds."""

from typing import get_args

import jax
import numpy as np
import pytest

from lm import config, objectives
from lm.errors import UserError
from tests.fakes import Backwards
from tests.unit.objectives.common import DATA, GENERATOR, RESERVED, V, rng, vocabulary

ARCHITECTURES = ("encoder", "decoder", "encoder_decoder")


REQUIRED: dict[type, dict] = {config.ReplacedTokens: dict(generator=GENERATOR)}


SUITS = {(a, o): objectives.DECLARATIONS[o].suits[a] for a, o in objectives.pairs()}
REFUSED = {(a, o): why for o, declared in objectives.DECLARATIONS.items() for a, why in declared.refused.items()}
PAIRS = [(a, o) for a in ARCHITECTURES for o in get_args(config.Objective)]


MIXTURES = {
    "decoder": (config.Causal(), config.FillInMiddle(), config.SpanCorruption()),
    "encoder": (config.Masked(), config.NextSentence()),
    "encoder_decoder": (config.Prefix(), config.SpanCorruption(), config.Denoise()),
}


def example(o, architecture):
    """An objective of this class; a mixture of what suits the architecture, its first part without a mode."""
    if o is not config.Mixture:
        return o(**REQUIRED.get(o, {}))
    return o({f"p{i}": config.Part(c, mode=f"m{i}" if i else None) for i, c in enumerate(MIXTURES[architecture])})


@pytest.mark.parametrize("pair", PAIRS, ids=lambda p: f"{p[0]}-{p[1].__name__}")
def test_every_pair_is_taken_or_refused(pair):
    assert (pair in SUITS) != (pair in REFUSED)
    architecture, objective = pair
    made = example(objective, architecture)
    if pair in SUITS:
        built = objectives.build(made, architecture, DATA, vocabulary())
        tokens = rng().integers(RESERVED, V, built.window).astype(np.int32)
        e = built.make(tokens, rng(), *([tokens[::-1]] if built.needs_other else []))
        for name in ("encoder", "decoder"):
            stream, length = getattr(e, name), getattr(built.lengths, name)
            assert (stream is None) == (length is None)
            assert stream is None or (len(stream.tokens) <= length and stream.tokens.dtype == np.int32)
        assert (e.where is None) == (built.lengths.predicted is None)
        assert e.weights.sum() > 0 and e.weights.dtype == np.float32
    else:
        with pytest.raises(UserError, match="does not suit") as error:
            objectives.build(made, architecture, DATA, vocabulary())
        assert REFUSED[pair] in str(error.value) and "; take '" in str(error.value)


def test_every_offer_is_taken():
    """What a refusal offers for the same architecture is in the table of what suits."""
    kinds = {config.kind_of(o): o for o in get_args(config.Objective)}
    for (architecture, _), reason in REFUSED.items():
        offered = reason.split("take '")[1].split("'")[0]
        assert (architecture, kinds[offered]) in SUITS


def test_no_table_has_a_pair_too_many():
    assert set(SUITS) | set(REFUSED) == set(PAIRS)


@pytest.mark.parametrize("pair", SUITS, ids=lambda p: f"{p[0]}-{p[1].__name__}")
def test_what_the_table_says_of_a_prefix_is_what_rows_have(pair):
    made = example(pair[1], pair[0])
    for c in (made, config.SpanCorruption(prefix=False)) if pair[1] is config.SpanCorruption else (made,):
        built = objectives.build(c, pair[0], DATA, vocabulary())
        assert objectives.reads_prefix(pair[0], c) == built.lengths.prefix


@pytest.mark.parametrize("pair", SUITS, ids=lambda p: f"{p[0]}-{p[1].__name__}")
def test_what_factors_asks_for_every_token_once(pair):
    """And nothing that does not: the loss is over the text's own tokens, each from those before it alone."""
    built = objectives.build(example(pair[1], pair[0]), pair[0], DATA, vocabulary())
    tokens = rng(2).integers(RESERVED, V, built.window).astype(np.int32)
    made = [built.make(tokens, rng(s), *([tokens] if built.needs_other else [])) for s in range(8)]
    whole = [
        e.encoder is None
        and e.decoder.prefix is None
        and e.weights.all()
        # An objective may also read other tokens than the text's, such as replaced ones.
        and e.decoder.tokens.tolist() == tokens[:-1].tolist()
        and e.targets.tolist() == tokens[1:].tolist()
        for e in made
    ]
    assert (objectives.factors(pair[0], example(pair[1], pair[0])) is True) == all(whole)


def test_a_new_objective_is_refused_by_name_until_it_says_what_it_is(monkeypatch):
    for ask in (
        lambda: objectives.build(Backwards(), "decoder", DATA, vocabulary()),
        lambda: objectives.reads_prefix("decoder", Backwards()),
    ):
        with pytest.raises(UserError, match="objective 'backwards' does not suit the decoder: lm.objectives declares"):
            ask()
    with pytest.raises(TypeError):
        objectives.Suit(lambda c, data, v: None)
    suit = objectives.Suit(objectives.causal.build_decoder, factors=False, reads_prefix=lambda c: isinstance(c, Backwards))
    monkeypatch.setitem(objectives.DECLARATIONS, Backwards, objectives.Declaration(Backwards, {"decoder": suit}))
    assert objectives.reads_prefix("decoder", Backwards()) and not objectives.suited("decoder", Backwards()).factors


@pytest.mark.parametrize(
    "objective,architecture,data,changes,words",
    [
        (config.Causal(), "decoder", config.Data(), {}, "data.decoder_length is None"),
        (config.Causal(), "decoder", config.Data(decoder_length=4), {}, "8 or more"),
        (config.Masked(), "encoder", DATA, dict(mask_id=None), "needs a mask token"),
        (config.SpanCorruption(mean_span=1.0, rate=0.4), "decoder", DATA, {}, "sentinels, the tokenizer has 12"),
        (config.SpanCorruption(), "encoder_decoder", config.Data(encoder_length=64, decoder_length=8), {}, "length=14"),
    ],
)
def test_what_cannot_be_is_refused(objective, architecture, data, changes, words):
    with pytest.raises(UserError, match=words):
        objectives.build(objective, architecture, data, vocabulary(**changes))


@pytest.mark.parametrize("pair", SUITS, ids=lambda p: f"{p[0]}-{p[1].__name__}")
def test_an_objective_that_draws_nothing_makes_the_same_of_any_generator(pair):
    architecture, o = pair
    built = objectives.build(example(o, architecture), architecture, DATA, vocabulary())
    if not built.draws:
        tokens = np.arange(RESERVED, RESERVED + 12)
        one, other = (built.make(tokens, rng(seed)) for seed in (1, 2))
        pairs = list(zip(*map(jax.tree.leaves, (one, other)), strict=True))
        assert len(pairs) >= 5 and all(np.array_equal(a, b) for a, b in pairs)
    assert built.draws == (o not in (config.Causal, config.MultiToken, config.Contrastive, config.Variational))
