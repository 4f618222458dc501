"""What a model is given to read when it is asked for a span, and which tokens are scored."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from lm import config
from lm.errors import UserError
from lm.objectives import DECLARATIONS, Declaration, span_prompts
from lm.objectives.prompts import KINDS, examples, word_ends
from tests.fakes import Backwards
from tests.unit.objectives.asking import (
    ASKED,
    BOS,
    EOS,
    GENERATOR,
    MASK,
    NAMES,
    S0,
    SPAN,
    SPAN_PROMPTS,
    SUITS,
    WORDS,
    equal,
    vocabulary,
)


def asked(architecture, objective, kind, span=SPAN, v=WORDS):
    return examples(SPAN_PROMPTS[architecture, objective][kind], kind, span, v)


@pytest.mark.parametrize("architecture,objective,kind", ASKED, ids=NAMES)
def test_every_target_token_is_counted_once(architecture, objective, kind):
    rows = asked(architecture, objective, kind)
    for row in rows:
        read = (row.decoder or row.encoder).tokens
        assert (row.weights == 1).all() and len(row.where) == len(row.targets) == len(row.weights)
        if row.decoder is not None and objective is not config.Teacherless:  # a place predicts the token behind it
            equal(read[row.where[1:]], row.targets[:-1].tolist())
    counted = np.concatenate([row.targets for row in rows]).tolist()
    assert counted == (
        [8, 5, 6, 8] if SPAN_PROMPTS[architecture, objective][kind].note.startswith("log p(target, right") else [8, 5]
    )


def test_what_a_decoder_of_spans_reads():
    (row,) = asked("decoder", config.SpanCorruption, "infill")
    equal(row.decoder.tokens, [5, 7, 6, S0, 6, 8, EOS, S0, 8])
    equal(row.decoder.prefix, [1, 1, 1, 1, 1, 1, 1, 0, 0])
    equal(row.where, [7, 8])
    (row,) = asked("decoder", config.SpanCorruption, "suffix")
    equal(row.decoder.tokens, [5, 7, 6, S0, EOS, S0, 8])
    first, second = asked("encoder_decoder", config.SpanCorruption, "pll")
    equal(first.encoder.tokens, [5, 7, 6, S0, 5, 6, 8, EOS])
    equal(first.decoder.tokens, [BOS, S0])
    equal(second.encoder.tokens, [5, 7, 6, 8, S0, 6, 8, EOS])
    equal(second.targets, [5])


def test_what_others_read():
    (row,) = asked("decoder", config.Prefix, "suffix")
    equal(row.decoder.tokens, [5, 7, 6, 8])
    equal(row.decoder.prefix, [1, 1, 1, 0])
    (row,) = asked("encoder_decoder", config.Prefix, "infill")
    equal(row.encoder.tokens, [5, 7, 6])
    equal(row.decoder.tokens, [BOS, 8, 5, 6])
    (row,) = asked("encoder_decoder", config.Masked, "infill")
    equal(row.encoder.tokens, [5, 7, 6, MASK, MASK, 6, 8, EOS])
    equal(row.decoder.tokens, [BOS, 5, 7, 6, 8])
    equal(row.where, [3, 4])
    rows = asked("encoder", config.Masked, "suffix")
    equal([row.encoder.tokens for row in rows], [[5, 7, 6, MASK, MASK], [5, 7, 6, 8, MASK]])
    equal([row.where for row in rows], [[3], [4]])


def test_what_new_objectives_read():
    (row,) = asked("decoder", config.FillInMiddle, "infill")
    equal(row.decoder.tokens, [S0, 5, 7, 6, 9, 6, 8, 10, 8])  # marks of prefix, suffix, middle: the last three sentinels
    equal(row.where, [7, 8])
    (row,) = asked("encoder_decoder", config.Denoise, "infill")
    equal(row.encoder.tokens, [5, 7, 6, MASK, 6, 8, EOS])
    equal(row.decoder.tokens, [BOS, 5, 7, 6, 8])
    (row,) = asked("encoder_decoder", config.Mass, "infill")
    equal(row.encoder.tokens, [5, 7, 6, MASK, MASK, 6, 8, EOS])
    equal(row.decoder.tokens, [MASK, 8])
    equal(row.decoder.positions, [3, 4])


def test_a_model_of_pairs_reads_bos_and_eos_around_the_text():
    rows = asked("encoder", config.NextSentence, "infill")
    equal([row.encoder.tokens for row in rows], [[BOS, 5, 7, 6, MASK, MASK, 6, 8, EOS], [BOS, 5, 7, 6, 8, MASK, 6, 8, EOS]])
    equal(rows[0].encoder.positions, [*range(9)])
    equal([row.where for row in rows], [[4], [5]])
    equal([row.targets for row in rows], [[8], [5]])
    (first, _) = asked("encoder", config.NextSentence, "pll")
    equal(first.encoder.tokens, [BOS, 5, 7, 6, MASK, 5, 6, 8, EOS])


def test_a_mixture_is_asked_as_the_part_that_can_best():
    spans = config.Part(config.SpanCorruption(), mode="R")
    mixture = config.Mixture({"a": config.Part(config.Prefix()), "b": spans})
    known = span_prompts("decoder", mixture)
    assert known["suffix"].note.startswith("as part 'a'") and known["infill"].note.startswith("as part 'b'")
    assert known["infill"].normalised and set(known) == set(KINDS)
    v = SimpleNamespace(**vars(WORDS) | dict(sentinel_ids=(S0, 11, 12, 13, 14)))
    (plain,), (row,) = asked("decoder", config.SpanCorruption, "infill", v=v), examples(known["infill"], "infill", SPAN, v)
    equal(row.decoder.tokens, [11, *plain.decoder.tokens])  # the mode stands before the three marks of the middle
    equal(row.decoder.positions, [*range(10)])
    equal(row.decoder.prefix, [True, *plain.decoder.prefix])
    equal(row.where, (plain.where + 1).tolist())
    masked = config.Mixture({"a": config.Part(config.Masked(), mode="M")})
    first = examples(span_prompts("encoder", masked)["infill"], "infill", SPAN, v)[0]
    equal(first.encoder.tokens, [11, 5, 7, 6, MASK, MASK, 6, 8])
    equal(first.where, [4])
    stretch = config.Mixture({"a": config.Part(config.Mass(), mode="M")})
    (row,) = examples(span_prompts("encoder_decoder", stretch)["suffix"], "suffix", SPAN, v)
    equal(row.encoder.tokens, [11, 5, 7, 6, MASK, MASK, EOS])
    equal(row.decoder.tokens, [MASK, 8])
    equal(row.decoder.positions, [4, 5])  # where the masks stand
    equal(row.where, [0, 1])


def test_a_decoder_that_reads_left_to_right_is_asked_so():
    (row,) = examples(span_prompts("decoder", config.SpanCorruption(prefix=False))["infill"], "infill", SPAN, WORDS)
    assert row.decoder.prefix is None


def test_later_tokens_of_the_word_are_hidden_with_it():
    """Tokens 5 and 6 go on with a word, 7 and 8 start one; a target that starts inside counts that as a word."""
    v = vocabulary([True, True, True, True, True, False, False, True, True])
    equal(word_ends(v.boundaries(np.array([8, 5, 6, 7, 7, 5]))), [3, 3, 3, 4, 6, 6])
    equal(word_ends(v.boundaries(np.array([5, 6, 7]))), [2, 2, 3])
    span = replace(SPAN, target=np.array([8, 5, 7, 6], np.int32))
    hidden = [[8, 5, 7, 6], [8, 5, 7, 6], [8, 5, 7, 6], [8, 5, 7, 6]]
    for i, gone in enumerate([(0, 1), (1,), (2, 3), (3,)]):
        for j in gone:
            hidden[i][j] = MASK
    rows = asked("encoder", config.Masked, "pll", span, v)
    equal([row.encoder.tokens[3:7] for row in rows], hidden)
    equal([row.targets[0] for row in rows], [8, 5, 7, 6])
    both = asked("encoder_decoder", config.Masked, "pll", span, v)
    equal([row.encoder.tokens[3:7] for row in both], hidden)
    assert [row.decoder.tokens[4:].tolist() for row in both] == [[], [8], [8, 5], [8, 5, 7]]
    words = asked("encoder_decoder", config.SpanCorruption, "pll", span, v)
    equal([row.targets for row in words], [[8, 5], [7, 6]])
    equal(words[0].encoder.tokens, [5, 7, 6, S0, 7, 6, 6, 8, EOS])


def test_every_objective_has_its_ways():
    # One sees all tokens of a text, or none, and another never a mask: no span can be hidden from them. One has no words.
    none = {("encoder_decoder", o) for o in (config.Deshuffle, config.Variational)} | {("encoder", config.ReplacedTokens)}
    none |= {(a, config.Contrastive) for a in ("encoder", "decoder")}
    assert set(SUITS) - set(SPAN_PROMPTS) - none == {(a, config.Mixture) for a in ("encoder", "decoder", "encoder_decoder")}
    assert set(SPAN_PROMPTS) <= set(SUITS)
    for (_, objective), known in SPAN_PROMPTS.items():
        left = (config.BlockDiffusion, config.Teacherless)  # left to right, or all at once
        least = {"suffix"} if objective in left else {"suffix", "infill"}
        assert least <= set(known) <= set(KINDS)


def test_a_new_objective_is_refused_by_name_or_asked_as_its_entry_says(monkeypatch):
    with pytest.raises(UserError, match="no way to score spans under a model of 'backwards' .decoder."):
        span_prompts("decoder", Backwards())
    for reads in (True, False):
        suit = replace(SUITS["decoder", config.Prefix], reads_prefix=reads)
        monkeypatch.setitem(DECLARATIONS, Backwards, Declaration(Backwards, {"decoder": suit}))
        (row,) = examples(span_prompts("decoder", Backwards())["suffix"], "suffix", SPAN, WORDS)
        assert (row.decoder.prefix is not None) == reads


def test_refusals():
    with pytest.raises(UserError, match="'causal' .encoder.; known: masked"):
        span_prompts("encoder", config.Causal())
    for predict in ("replaced", "replaced_chosen", "masked", "all"):
        with pytest.raises(UserError, match="never saw a mask token"):
            span_prompts("encoder", config.ReplacedTokens(GENERATOR, predict=predict))
    with pytest.raises(UserError, match="no part of this mixture"):
        span_prompts("encoder_decoder", config.Mixture({"a": config.Part(config.Deshuffle())}))
