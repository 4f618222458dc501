"""Scores that compare: probabilities sum to one where they are said to, all get the same spans, no batch moves a value."""

import itertools
import json
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm import config
from lm.config import Attention, Block, Head, Mlp, Model, Stack
from lm.data.corpus.prepare import prepare
from lm.data.corpus.store import Store
from lm.data.tokenizer import HuggingFace
from lm.errors import UserError
from lm.evaluation.spans import digest, held_out_spans, score
from lm.models.transformer import Transformer
from lm.objectives import DECLARATIONS, Declaration, pairs, span_prompts
from lm.objectives.prompts import KINDS, Span, examples, word_ends
from lm.types import CHARACTER, WORD, Example, TokenStream

BOS, EOS, MASK, S0, TEXT, V = 1, 2, 3, 4, 5, 9  # texts are tokens 5 to 8
SENTINELS, WIDE = (S0, 9, 10), 11  # the model's vocabulary is wider than the tokenizer's
GENERATOR = Model(WIDE, 16, encoder=Stack(1, {"L": Block(Attention(2), Mlp(16))}))
# How each objective is asked, by architecture; a mixture as its parts are.
SUITS = {(a, o): DECLARATIONS[o].suits[a] for a, o in pairs()}
SPAN_PROMPTS = {key: suit.spans for key, suit in SUITS.items() if isinstance(suit.spans, dict) and suit.spans}
ASKED = [(*key, kind) for key, known in SPAN_PROMPTS.items() for kind in known]
NAMES = [f"{a}-{o.__name__}-{k}" for a, o, k in ASKED]


def vocabulary(word_start):
    return SimpleNamespace(
        vocab_size=V,
        bos_id=BOS,
        eos_id=EOS,
        mask_id=MASK,
        sentinel_ids=SENTINELS,
        reserved=TEXT,
        special=np.arange(V) < TEXT,
        boundaries=lambda tokens: np.where(np.array(word_start)[tokens], WORD, CHARACTER),
    )


WORDS = vocabulary([True] * V)  # every token a word
SPAN = Span(*(np.array(x, np.int32) for x in ([5, 7, 6], [8, 5], [6, 8])), num_bytes=4)
EVERY = [replace(SPAN, target=np.array(t, np.int32)) for t in itertools.product(range(TEXT, V), repeat=2)]


def equal(array, expected):
    assert np.asarray(array).tolist() == expected


@cache
def model(architecture, position=None):
    """A random model whose answers are far from even, and its parameters."""

    def stack(cross):
        return Stack(1, {"L": Block(Attention(2), Mlp(16), cross=cross)}, position=position or config.Rope())

    both = architecture == "encoder_decoder"
    stacks = {n: stack(both and n == "decoder") for n in ("encoder", "decoder") if n in architecture}
    module = Transformer(Model(WIDE, 16, head=Head(tied=False), **stacks))
    one = jnp.zeros((1, 4), jnp.int32)
    streams = [TokenStream(one, one, one) if n in architecture else None for n in ("encoder", "decoder")]
    shapes = nn.unbox(jax.eval_shape(module.init, jax.random.key(0), Example(*streams, None, None)))["params"]
    rng = np.random.default_rng(0)
    return module, jax.tree.map(lambda x: jnp.asarray(0.5 * rng.normal(size=x.shape), x.dtype), shapes)


def copying(params):
    """The same model made to repeat: each place predicts the tokens that it sees, in even shares."""
    eye = np.eye(16, dtype=np.float32)
    made = {"embedding": eye[:WIDE], "value": 2 * eye, "out": eye, "query": 0 * eye, "key": 0 * eye, "down": 0 * eye}

    def remade(path, x):
        names = [key.key for key in path]
        if names[0] == "head":
            return jnp.asarray(eye[:, :WIDE])
        known = next((made[n] for n in names[-2:] if n in made), None)
        return jnp.reshape(known, x.shape) if known is not None else jnp.full_like(x, names[-1] == "scale")

    return jax.tree_util.tree_map_with_path(remade, params)


def scored(architecture, objective, spans, *, kind, v=WORDS, **settings):
    return score(*model(architecture), objective(), v, spans, kind=kind, **settings)


# ---------------------------------------------------------------------------------------------------- probabilities


def total(result):
    """The sum of the probabilities of all targets of two tokens."""
    assert len(result.per_span) == (V - TEXT) ** 2 and result.per_span.std() > 0.1, "a model that answers all alike says little"
    return np.exp(-result.per_span).sum()


@pytest.mark.parametrize("architecture,objective,kind", ASKED, ids=NAMES)
def test_all_targets_together(architecture, objective, kind):
    """One where the table says so, and not where it says that it is not."""
    if kind == "pll":  # a repetition is counted for both of its tokens (arXiv 2305.10588 has it for one word's)
        module, params = model(architecture)
        result = score(module, copying(params), objective(), WORDS, EVERY, kind=kind)
    else:
        result = scored(architecture, objective, EVERY, kind=kind)
    assert result.normalised == SPAN_PROMPTS[architecture, objective][kind].normalised
    assert (abs(total(result) - 1) < 1e-4) if result.normalised else (abs(total(result) - 1) > 1e-2)


@pytest.mark.parametrize("architecture,objective", [k for k in SPAN_PROMPTS if "pll" in SPAN_PROMPTS[k]], ids=str)
def test_pll_of_one_word_is_a_probability(architecture, objective):
    """Left to right within a word it is a chain: what breaks the sum above are words that are hidden in turn."""
    result = scored(architecture, objective, EVERY, kind="pll", v=vocabulary([False] * V))
    assert abs(total(result) - 1) < 1e-4


def test_causal_joint_is_that_of_target_and_right():
    """What an infill of a causal model gives is the suffix score of target and right as one."""
    whole = replace(SPAN, target=np.concatenate([SPAN.target, SPAN.right]))
    a = scored("decoder", config.Causal, [SPAN], kind="infill")
    b = scored("decoder", config.Causal, [whole], kind="suffix")
    np.testing.assert_allclose(a.per_span, b.per_span, rtol=1e-6)
    assert a.tokens == 4 and not a.normalised and b.normalised


def test_causal_suffix_is_the_forward_pass():
    module, params = model("decoder")
    text = np.concatenate([SPAN.left, SPAN.target])[None]
    places = np.arange(5, dtype=np.int32)[None]
    stream = TokenStream(text, places, np.ones_like(text))
    forward = jax.jit(lambda p: module.apply({"params": p}, Example(None, stream, None, None)))
    logits = np.asarray(forward(params), np.float64)[0]
    logits[:, :TEXT] = logits[:, V:] = -np.inf  # given that it is text
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    result = scored("decoder", config.Causal, [SPAN], kind="suffix")
    expected = -(log_p[2, 8] + log_p[3, 5])
    assert abs(result.per_span[0] - expected) < 1e-5
    assert (result.tokens, result.bytes) == (2, 4) and result.kind == "suffix"
    assert abs(result.bits_per_byte - expected / np.log(2) / 4) < 1e-5
    assert result.accuracy == np.mean([log_p[2].argmax() == 8, log_p[3].argmax() == 5])


@pytest.mark.parametrize("architecture,objective,kind", ASKED, ids=NAMES)
def test_batches_and_padding_change_nothing(architecture, objective, kind):
    rng = np.random.default_rng(1)
    draw = lambda: rng.integers(5, V, rng.integers(1, 6)).astype(np.int32)
    spans = [Span(draw(), draw(), draw(), 3) for _ in range(7)]
    together = scored(architecture, objective, spans, kind=kind, batch_size=4)
    alone = scored(architecture, objective, spans[:1], kind=kind, batch_size=1)
    np.testing.assert_allclose(together.per_span[0], alone.nats, rtol=1e-5)
    moved = scored(architecture, objective, spans[::-1], kind=kind, batch_size=4)
    np.testing.assert_allclose(together.per_span, moved.per_span[::-1], rtol=1e-5)
    assert together.bytes == 21 and len(together.per_span) == 7
    assert together.nats == pytest.approx(together.per_span.sum())


# ------------------------------------------------------------------------------------------------- what is asked


def asked(architecture, objective, kind, span=SPAN, v=WORDS):
    return examples(SPAN_PROMPTS[architecture, objective][kind], kind, span, v)


@pytest.mark.parametrize("architecture,objective,kind", ASKED, ids=NAMES)
def test_every_target_token_is_counted_once(architecture, objective, kind):
    rows = asked(architecture, objective, kind)
    for row in rows:
        read = (row.decoder or row.encoder).tokens
        assert (row.weights == 1).all() and len(row.where) == len(row.targets) == len(row.weights)
        if row.decoder is not None:  # a place predicts the token behind it
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
    # One sees all tokens of a text, or none, and the other never a mask: no span can be hidden from them.
    none = {("encoder_decoder", config.Deshuffle), ("encoder", config.ReplacedTokens)}
    assert set(SUITS) - set(SPAN_PROMPTS) - none == {(a, config.Mixture) for a in ("encoder", "decoder", "encoder_decoder")}
    assert set(SPAN_PROMPTS) <= set(SUITS)
    assert all({"suffix", "infill"} <= set(known) <= set(KINDS) for known in SPAN_PROMPTS.values())


class Backwards:
    """An objective that no table knows."""


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
    with pytest.raises(UserError, match="'pll' cannot be had.*take 'suffix'"):
        scored("decoder", config.Causal, [SPAN], kind="pll")
    for predict in ("replaced", "replaced_chosen", "masked", "all"):
        with pytest.raises(UserError, match="never saw a mask token"):
            span_prompts("encoder", config.ReplacedTokens(GENERATOR, predict=predict))
    with pytest.raises(UserError, match="no part of this mixture"):
        span_prompts("encoder_decoder", config.Mixture({"a": config.Part(config.Deshuffle())}))
    with pytest.raises(UserError, match="no kind of score 'sufix'; did you mean 'suffix'"):
        scored("decoder", config.Causal, [SPAN], kind="sufix")
    with pytest.raises(UserError, match="takes 4 positions of the decoder, which has learned 3: shorten left, span or right"):
        score(*model("decoder", config.Learned(3)), config.Causal(), WORDS, [SPAN], kind="suffix")
    # Two places in the decoder, and its positions are those of the text.
    module, params = model("encoder_decoder")
    short = replace(module.config, decoder=replace(module.config.decoder, position=config.Learned(4)))
    with pytest.raises(UserError, match="takes 5 positions of the decoder, which has learned 4"):
        score(Transformer(short), params, config.Mass(), WORDS, [SPAN], kind="suffix")


# ------------------------------------------------------------------------------------------------------------ spans


def prepared(documents, starts=0.5):
    """A store of documents in memory, whose tokens are letters: `starts` of them begin a word."""
    rng = np.random.default_rng(2)
    word_start = rng.random(100) < starts
    word_start[:5] = True
    decode = lambda ids: "".join("\u00e9" if i % 2 else "a" for i in ids)
    boundaries = lambda tokens: np.where(word_start[tokens], WORD, CHARACTER)
    tokenizer = SimpleNamespace(special=np.arange(100) < 5, word_start=word_start, boundaries=boundaries, decode=decode)

    def store():
        rows = [np.concatenate([[BOS], rng.integers(5, 100, n), [EOS]]) for n in documents]
        offsets = np.cumsum([0, *map(len, rows)])
        return Store("", offsets, np.zeros(len(rows), np.int64), np.concatenate(rows).astype(np.uint16))

    return SimpleNamespace(holdout={"b": store(), "a": store()}, tokenizer=tokenizer)


SIZES = dict(left=6, span=4, right=3)


def test_spans_lie_in_one_document_at_word_boundaries():
    data = prepared([3, 40, 13, 200, 12])
    texts = [" ".join(map(str, s.document(i)[1:-1])) for s in data.holdout.values() for i in range(s.num_documents)]
    spans = held_out_spans(data, count=40, **SIZES)
    for span in spans:
        assert [len(p) for p in (span.left, span.target, span.right)] == [6, 4, 3]
        whole = " ".join(map(str, np.concatenate([span.left, span.target, span.right])))
        assert sum(whole in text for text in texts) == 1
        assert data.tokenizer.word_start[[span.target[0], span.right[0]]].all()
        assert span.num_bytes == 4 + (span.target % 2).sum()
    assert len({s.target.tobytes() + s.left.tobytes() for s in spans}) == 40


def test_all_places_that_will_do_are_found():
    """Asked for one too many, the error names how many there are; they are counted here place by place."""
    data = prepared([3, 40, 13, 200, 12])
    there = 0
    for store in data.holdout.values():
        for i in range(store.num_documents):
            text = store.document(i)[1:-1]
            for p in range(len(text) - 12):
                there += data.tokenizer.word_start[text[p + 6]] and data.tokenizer.word_start[text[p + 10]]
    assert len(held_out_spans(data, count=int(there), **SIZES)) == there
    with pytest.raises(UserError, match=f"have {there} places for 6.4.3 tokens, {there + 1} were asked for"):
        held_out_spans(data, count=int(there) + 1, **SIZES)


def test_spans_are_a_function_of_data_and_seed():
    data = prepared([60, 80])
    again = SimpleNamespace(holdout=dict(reversed(data.holdout.items())), tokenizer=data.tokenizer)
    spans = held_out_spans(data, count=9, **SIZES)
    assert digest(spans) == digest(held_out_spans(again, count=9, **SIZES))
    assert digest(spans) == digest(held_out_spans(data, count=20, **SIZES)[:9])
    assert digest(spans) != digest(held_out_spans(data, count=9, seed=1, **SIZES))


TEXTS = {  # with lengths of some words of theirs, in bytes
    "Hebrew": ("שלום עולם קטן ילד גדול והיה כאשר בית ספר ", 18),
    "Hindi": ("हिन्दी में लिखा हुआ वाक्य है। और एक बड़ा घर ", 19),
    "Chinese": ("你好，世界。这是一个句子！我们今天去学校，好不好？", 18),
    "mixed": ("Don't stop: café 漢字, 12 (x)!\n été  ", 18),
}


@pytest.mark.parametrize("language", TEXTS)
def test_spans_of_byte_level_pieces_are_whole_words_and_bytes(language):
    """A target begins and ends where characters do, and its bytes are those of its text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    raw = Tokenizer(models.BPE({p: i for i, p in enumerate(["<s>", "</s>", *alphabet])}, []))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    raw.add_special_tokens(["<s>", "</s>"])
    tokenizer, (text, size) = HuggingFace(raw.to_str().encode()), TEXTS[language]
    ids = np.concatenate([[0], tokenizer.encode(text * 9), [1]])
    store = Store("", np.array([0, len(ids)]), np.zeros(1, np.int64), ids.astype(np.uint16))
    found = held_out_spans(SimpleNamespace(holdout={"a": store}, tokenizer=tokenizer), count=5, left=9, span=size, right=5)
    for span in found:
        text = tokenizer.decode(span.target)
        assert "\ufffd" not in text and span.num_bytes == len(text.encode()) == size
        starts = tokenizer.boundaries(np.concatenate([span.left, span.target, span.right])) == WORD
        assert starts[9] and starts[9 + size]


def test_spans_hold_no_special_token():
    """What is unknown has no bytes, and no probability among the tokens of texts."""
    data = prepared([60])
    before = held_out_spans(data, count=4, **SIZES)
    assert not any(data.tokenizer.special[np.concatenate([s.left, s.target, s.right])].any() for s in before)
    data.tokenizer.special[before[0].target[0]] = True
    after = held_out_spans(data, count=4, **SIZES)
    assert not any(before[0].target[0] in np.concatenate([s.left, s.target, s.right]) for s in after)


def test_spans_that_cannot_be():
    data = prepared([60])
    with pytest.raises(UserError, match="right=0: each must be 1 or more"):
        held_out_spans(data, count=1, left=6, span=4, right=0)
    with pytest.raises(UserError, match="nothing was held out"):
        held_out_spans(SimpleNamespace(holdout={}, tokenizer=data.tokenizer), count=1, **SIZES)


def test_models_of_all_kinds_share_the_prepared_data(tmp_path):
    """The rows' lengths, by which architectures differ, are no part of it; and bytes are those of the text."""
    rng = np.random.default_rng(0)
    words = "the state of union and congress people war peace caf\u00e9 law year navy army bank road".split()
    texts = [" ".join(rng.choice(words, 60)) for _ in range(12)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    one = config.Data(
        sources={"a": config.Source(kind="jsonl", path=str(tmp_path / "a.jsonl"))},
        tokenizer=config.Tokenizer(vocab_size=400),
        holdout=0.3,
        cache=str(tmp_path / "cache"),
        encoder_length=32,
    )
    a, b = (prepare(d, progress=False) for d in (one, replace(one, encoder_length=None, decoder_length=64)))
    spans, others = (held_out_spans(p, count=12, **SIZES) for p in (a, b))
    assert digest(spans) == digest(others)
    held = [d.text for d in a.documents("a", "holdout")]
    for span in spans:
        text = a.tokenizer.decode(np.concatenate([span.left, span.target]))[-len(a.tokenizer.decode(span.target)) :]
        assert any(text in h for h in held) and span.num_bytes == len(text.encode())
