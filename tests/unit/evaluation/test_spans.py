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

from lm import config
from lm.config import Attention, Block, Head, Mlp, Model, Stack
from lm.data.corpus.prepare import prepare
from lm.data.corpus.store import Store
from lm.data.tokenizer import HuggingFace
from lm.errors import UserError
from lm.evaluation.spans import digest, held_out_spans, masks_nearby, score
from lm.models.transformer import Transformer
from lm.objectives import span_prompts
from lm.objectives.prompts import Span, examples
from lm.objectives.streams import stream
from lm.types import CHARACTER, WORD, Example, TokenStream
from tests.fakes import random_params
from tests.unit.objectives.asking import ASKED, BOS, EOS, MASK, NAMES, SPAN, SPAN_PROMPTS, TEXT, WIDE, WORDS, V, vocabulary

EVERY = [replace(SPAN, target=np.array(t, np.int32)) for t in itertools.product(range(TEXT, V), repeat=2)]


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
    return module, random_params(module, Example(*streams, None, None), 0.5)


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
    assert (
        together.hits.sum() == pytest.approx(together.accuracy * together.tokens)
        and moved.hits.tolist()[::-1] == together.hits.tolist()
    )
    means = {name: values.mean() for name, values in together.values().items()}
    assert means == {"bits_per_byte": pytest.approx(together.bits_per_byte), "accuracy": pytest.approx(together.accuracy)}


@pytest.mark.parametrize(
    "architecture,objective,kind,table",
    [
        ("decoder", config.AnyOrder(), "infill", dict(ahead=16)),
        ("decoder", config.BlockDiffusion(2), "suffix", {}),
        ("encoder", config.MaskedDiffusion(time_steps=4), "infill", dict(types=4)),
        ("decoder", config.MaskedDiffusion(time_steps=4), "infill", dict(types=4)),
    ],
)
def test_streams_keep_what_else_the_objective_tells_them(architecture, objective, kind, table):
    """Types, blocks and the position to come reach the model: the nats are those of its logits on each row by itself."""
    module = model(architecture)[0]
    module = Transformer(replace(module.config, embed=replace(module.config.embed, **table)))
    asked = examples(span_prompts(architecture, objective)[kind], kind, SPAN, WORDS)
    rows = [jax.tree.map(lambda x: np.asarray(x)[None], row) for row in asked]
    params = random_params(module, rows[0], 0.5)
    total = 0.0
    for row in rows:
        logits = np.array(module.apply({"params": params}, row), float)[0]
        logits[:, [*range(TEXT), *range(V, WIDE)]] = -np.inf
        logp = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        total -= logp[np.arange(len(logp)), row.targets[0]].sum()
    assert score(module, params, objective, WORDS, [SPAN], kind=kind).nats == pytest.approx(total, rel=1e-5)


def test_a_suffix_is_far_from_what_few_masks_train():
    """Of 16 masks at the end, most have masks around them; a word by itself has none, which few masks train for."""
    long = replace(SPAN, left=np.full(64, 5, np.int32), target=np.full(16, 6, np.int32), right=np.full(32, 7, np.int32))
    told = {}
    for rate in (0.15, 0.4, 0.8):
        for kind in ("suffix", "pll"):
            told[rate, kind] = score(*model("encoder"), config.Masked(rate), WORDS, [long], kind=kind).far
    said = "far from training: 39% of the tokens near a scored one are masks, and 15% were in training"
    assert told[0.15, "suffix"] == said and not told[0.4, "suffix"] and not told[0.8, "suffix"]
    assert not told[0.15, "pll"] and not told[0.8, "pll"]
    assert not scored("decoder", config.Causal, [long], kind="suffix").far
    assert scored("encoder_decoder", config.Masked, [long], kind="suffix").far
    mixed = config.Mixture({"a": config.Part(config.Masked(0.15))})
    assert score(*model("encoder"), mixed, WORDS, [long], kind="suffix").far == said


def test_masks_nearby_are_counted_beside_the_scored_one():
    row = lambda tokens, where: Example(stream(np.array(tokens)), None, np.zeros(1), np.ones(1), np.array([where]))
    assert masks_nearby([row([5, 6, MASK, MASK, 8], 2)], MASK) == 1 / 4
    assert masks_nearby([row([MASK], 0)], MASK) == 0
    assert masks_nearby([row([MASK, *[5] * 8, MASK], 0), row([MASK, *[5] * 7, MASK], 0)], MASK) == (0 + 1 / 8) / 2


def test_refusals():
    with pytest.raises(UserError, match="'pll' is not defined for this model.*take 'suffix'"):
        scored("decoder", config.Causal, [SPAN], kind="pll")
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
    with pytest.raises(UserError, match=f"have {there} positions for 6.4.3 tokens, and {there + 1} are needed"):
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
