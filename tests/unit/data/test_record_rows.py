"""Rows of records: a function of (seed, index), each record once an epoch; packed records do not see each other."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from lm import config
from lm.data.corpus.store import Store
from lm.data.examples import ExampleBuilder, answer_room
from lm.data.record_rows import RecordRows
from lm.data.records import Labelled, Message, Messages, Pair
from lm.data.render import render
from lm.data.rows import pack, permute, stack
from lm.errors import UserError
from lm.losses.cross_entropy import token_losses
from lm.models.transformer import Transformer
from tests.fakes import WORDS, WordTokenizer, small_model, small_params

ARCHITECTURES = ("encoder", "decoder", "encoder_decoder")


class Roles(WordTokenizer):
    """Of the words, the last five are roles."""

    role_ids = dict(zip(("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"), range(18, 23), strict=True))


TOKENIZER = Roles()


def store(records, classes=()):
    """As prepared, in memory."""
    rendered = render(records, TOKENIZER)
    offsets = np.cumsum([0, *(len(r.ids) for r in rendered)])
    labels = np.array([classes.index(r.label) for r in records]) if classes else None
    ids, loss = (np.concatenate([getattr(r, name) for r in rendered]) for name in ("ids", "loss"))
    return Store("", offsets, np.full(len(records), 7), ids.astype(np.uint16), loss.astype(np.uint8), labels)


def words(rng, low, high):
    return " ".join(f"w{i}" for i in rng.integers(0, 15, rng.integers(low, high)))


def labelled(n, seed=0, low=1, high=6):
    rng = np.random.default_rng(seed)
    return [Labelled(words(rng, low, high), ("no", "yes")[i % 2]) for i in range(n)]


def pairs(n, seed=0, low=1, high=6):
    rng = np.random.default_rng(seed)
    return [Pair(words(rng, low, high), words(rng, 1, 3)) for _ in range(n)]


def talks(n, seed=0, turns=3):
    rng = np.random.default_rng(seed)
    one = lambda: [Message(role, words(rng, 1, 4)) for _ in range(rng.integers(1, turns + 1)) for role in ("user", "assistant")]
    return [Messages(tuple(one())) for _ in range(n)]


MAKERS = {"labelled": labelled, "pair": pairs, "messages": talks}


def rows(how="text", architecture="decoder", prefix=False, length=8, answer=4, seed=5, shuffle=True, weights=None, **given):
    """Of `given`: sources by format, and settings of the data."""
    records = {k: v for k, v in given.items() if k in MAKERS}
    settings = {k: v for k, v in given.items() if k not in MAKERS}
    sources = {
        name: config.Source(kind="jsonl", path="x", format=name, weight=(weights or {}).get(name, 1.0)) for name in records
    }
    data = config.Data(sources=sources, **settings)
    stores = {name: store(some, ("no", "yes") if name == "labelled" else ()) for name, some in records.items()}
    builder = ExampleBuilder(TOKENIZER, architecture, length=length, answer=answer, prefix=prefix)
    return RecordRows(stores, data, builder, how=how, seed=seed, shuffle=shuffle)


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def streams(example):
    return [s for s in (example.encoder, example.decoder) if s is not None]


# ------------------------------------------------------------------------------------------------------- which row

CASES = [(h, a, f) for a in ARCHITECTURES for h in ("head", "text") for f in MAKERS]
CASES = [(h, a, f) for h, a, f in CASES if (a != "encoder" or h == "head") and (h == "text" or f == "labelled")]


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("how,architecture,format", CASES)
def test_rows_depend_on_seed_and_index_alone(how, architecture, format, packing):
    make = lambda seed=5: rows(
        how, architecture, seed=seed, length=16, answer=6, packing=packing, on_long="skip", **{format: MAKERS[format](40)}
    )
    one = make()
    index = np.array([0, 7, one.count + 3, 9 * one.count + 1])
    whole = one.rows(index)
    same(whole, jax.tree.map(lambda x: x[::-1], make().rows(index[::-1])))
    for i, number in enumerate(index):
        same(jax.tree.map(lambda x, i=i: x[i : i + 1], whole), make().rows(np.array([number])))
    first = np.arange(20)
    assert any((a != b).any() for a, b in zip(*(jax.tree.leaves(r.rows(first)) for r in (one, make(6))), strict=True))


def test_the_order_of_an_epoch_is_a_permutation_of_the_seed_and_the_epoch():
    """The order that fine-tuning has had from the start, so that its numbers stay."""
    records = [Labelled(f"w{i}", "no") for i in range(15)]
    one = rows(labelled=records, seed=3)
    for epoch in range(3):
        tokens = one.rows(np.arange(15) + 15 * epoch).decoder.tokens[:, 1]
        expected = permute(np.arange(15), 15, (3, epoch))
        np.testing.assert_array_equal(tokens, [WORDS.index(f"w{i}") for i in expected])


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("how,architecture,format", CASES)
def test_an_epoch_has_every_answer_once(how, architecture, format, packing):
    records = MAKERS[format](50)
    one = rows(
        how, architecture, length=24, answer=16, packing=packing, encoder_length=64, decoder_length=64, **{format: records}
    )
    epochs = [one.rows(np.arange(one.count) + e * one.count) for e in range(2)]
    for batch in epochs:
        targets = batch.targets[batch.weights > 0]
        if how == "head":
            expected = [i % 2 for i in range(50)]
        else:
            expected = np.concatenate([r.ids[r.loss] for r in render(records, TOKENIZER)])
        np.testing.assert_array_equal(np.sort(targets), np.sort(expected))
    assert (streams(epochs[0])[0].tokens != streams(epochs[1])[0].tokens).any()
    report = one.report()[format]
    assert report["records"] == 50 and report["answers_left_out"] == 0 == report["texts_shortened"]
    assert report["rows"] == one.count and (one.count < 30) == packing


def test_sources_are_mixed_by_weight():
    one = rows(labelled=labelled(30), pair=[Pair("w14", "w14")], weights={"labelled": 3.0, "pair": 1.0})
    tokens = one.rows(np.arange(400)).decoder.tokens
    assert (tokens[:, 1:4] == [WORDS.index("w14"), 2, WORDS.index("w14")]).all(axis=1).sum() == 100
    with pytest.raises(UserError, match="are 0"):
        rows(labelled=labelled(30), weights={"labelled": 0.0})


def test_held_out_rows_are_the_records_in_order_whatever_is_packed():
    records = {"labelled": labelled(5), "pair": pairs(4, seed=1)}
    plain, packed = (rows(shuffle=False, packing=packing, **records) for packing in (False, True))
    assert plain.count == 9
    batch = plain.rows(np.arange(12))
    same(batch, packed.rows(np.arange(12)))
    assert (batch.weights.sum(axis=1) > 0).tolist() == [True] * 9 + [False] * 3
    assert plain.records(np.arange(9)) == [("labelled", i) for i in range(5)] + [("pair", i) for i in range(4)]
    rendered = render([*records["labelled"], *records["pair"]], TOKENIZER)
    for one, (encoder, decoder) in zip(rendered, plain.prompts(range(9)), strict=True):
        assert encoder is None and decoder.tolist() == one.ids[~one.loss].tolist()


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_prompts_are_what_the_rows_have_before_their_answers(architecture):
    for format, maker in MAKERS.items():
        one = rows(architecture=architecture, shuffle=False, length=24, answer=16, **{format: maker(6)})
        batch = one.rows(np.arange(one.count))
        for i, (encoder, decoder) in enumerate(one.prompts(np.arange(one.count))):
            np.testing.assert_array_equal(batch.decoder.tokens[i, : len(decoder)], decoder)
            first = int(np.argmax(batch.weights[i])) if batch.where is None else int(batch.where[i, 0])
            assert first == len(decoder) - 1  # the answer's first token is predicted from the prompt's last
            if encoder is not None:
                np.testing.assert_array_equal(batch.encoder.tokens[i, : len(encoder)], encoder)


# ------------------------------------------------------------------------------------------------------ conversations

BOS, EOS, USER, ASSISTANT, END = 1, 2, 19, 20, 22
W = lambda *numbers: [WORDS.index(f"w{i}") for i in numbers]
TALK = Messages(tuple(Message(role, f"w{i}") for i, role in enumerate(("user", "assistant") * 2)))


@pytest.mark.parametrize("prefix", [False, True])
def test_a_decoder_learns_all_answers_of_a_conversation_in_one_row(prefix):
    row = rows(messages=[TALK], length=12, answer=8, prefix=prefix).rows(np.array([0]))
    w0, w1, w2, w3 = W(0, 1, 2, 3)
    tokens = [BOS, USER, w0, END, ASSISTANT, w1, END, USER, w2, END, ASSISTANT, w3, END]
    assert row.decoder.tokens[0, :12].tolist() == tokens[:-1] and row.targets[0, :12].tolist() == tokens[1:]
    assert row.weights[0].tolist() == [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, *[0] * 7]
    assert row.where is None and row.encoder is None
    assert row.decoder.prefix is None if not prefix else row.decoder.prefix[0].tolist() == [True] * 5 + [False] * 14


def test_an_encoder_decoder_learns_each_answer_from_what_was_said_before():
    one = rows(architecture="encoder_decoder", messages=[TALK], length=10, answer=4, shuffle=False)
    batch = one.rows(np.arange(2))
    w0, w1, w2, w3 = W(0, 1, 2, 3)
    assert batch.encoder.tokens.tolist() == [
        [USER, w0, END, ASSISTANT, 0, 0, 0, 0, 0, 0],
        [USER, w0, END, ASSISTANT, w1, END, USER, w2, END, ASSISTANT],
    ]
    assert batch.decoder.tokens[:, :2].tolist() == [[BOS, w1], [BOS, w3]]
    assert batch.targets[:, :2].tolist() == [[w1, END], [w3, END]]
    assert batch.weights.tolist() == [[1, 1, 0, 0]] * 2 and one.count == 2


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_the_last_answer_of_a_conversation_alone(architecture):
    """`how=answer`: what a policy is asked; earlier answers are read, and need no room of an answer."""
    long = Messages((*TALK.messages[:1], Message("assistant", "w1 w1 w1 w1"), *TALK.messages[2:]))
    of = dict(architecture=architecture, length=14, answer=3, shuffle=False, how="answer")
    one = rows(messages=[TALK, long], pair=pairs(3), **of)
    assert one.count == 5 and [number for _, number in one.records(np.arange(5))] == [0, 1, 0, 1, 2]
    batch, prompts = one.rows(np.arange(5)), one.prompts(np.arange(5))
    w0, w1, w2, w3 = W(0, 1, 2, 3)
    before = [USER, w0, END, ASSISTANT, w1, END, USER, w2, END, ASSISTANT]
    encoder, decoder = prompts[0]
    assert (decoder.tolist(), encoder) == ([BOS, *before], None) if encoder is None else encoder.tolist() == before
    assert batch.targets[0, :2].tolist() == [w3, END] and batch.weights.sum(axis=1).max() <= 3
    for i, (encoder, decoder) in enumerate(prompts):
        np.testing.assert_array_equal(batch.decoder.tokens[i, : len(decoder)], decoder)
        if encoder is not None:
            np.testing.assert_array_equal(batch.encoder.tokens[i, : len(encoder)], encoder)
    with pytest.raises(UserError, match="are read before them, and recipe.length is 9"):
        rows(messages=[TALK], **of | dict(length=9))


# ------------------------------------------------------------------------------------------------------ what is long


@pytest.mark.parametrize("packing", [False, True])
@pytest.mark.parametrize("how,architecture", [("head", "encoder"), ("text", "decoder"), ("text", "encoder_decoder")])
def test_a_long_text_keeps_both_ends_and_its_answer(how, architecture, packing):
    long = " ".join(f"w{i}" for i in range(15))
    one = rows(how, architecture, length=6, answer=3, labelled=[Labelled(long, "yes"), Labelled("w1", "no")], packing=packing)
    assert one.left_out(np.arange(one.count)) == pytest.approx(11 / (19 + 5))  # of 15 words 4 are read
    batch = one.rows(np.arange(one.count))
    (seen,) = [r for r in streams(batch)[0].tokens if W(0)[0] in r]
    assert [i for i in seen.tolist() if i in W(*range(15))] in (W(0, 1, 13, 14), [*W(1), *W(0, 1, 13, 14)], W(0, 1, 13, 14, 1))
    assert batch.weights.sum() == (2 if how == "head" else 4)
    assert one.report()["labelled"] == {
        "records": 2,
        "answers": 2,
        "texts_shortened": 1,
        "answers_left_out": 0,
        "rows": one.count,
    }


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_an_answer_without_room_is_an_error_or_left_out_and_counted(architecture):
    records = [Pair("w1", "w1"), Pair("w2", "w2 w2 w2 w2 w2"), Pair("w3", "w3")]
    make = lambda how: rows(architecture=architecture, length=6, answer=3, pair=records, on_long=how, shuffle=False)
    with pytest.raises(UserError, match=r"1 answers .* up to 6 tokens with their end, and recipe.answer is 3; .*on_long=skip"):
        make("fail")
    one = make("skip")
    assert one.count == 2 and one.records([0, 1]) == [("pair", 0), ("pair", 2)]
    assert one.report()["pair"]["answers_left_out"] == 1
    batch = one.rows(np.arange(2))
    assert sorted(batch.targets[batch.weights > 0].tolist()) == sorted([*W(1, 3), EOS, EOS])


def test_a_conversation_without_room_keeps_its_first_answers():
    """The row ends with an answer's end, never within an answer or with a question."""
    make = lambda how, **more: rows(length=5, answer=4, messages=[TALK], on_long=how, shuffle=False, **more)
    with pytest.raises(UserError, match=r"1 answers .* up to 13 tokens, and the row 9; raise --config.recipe.length"):
        make("fail")
    with pytest.raises(UserError, match=r"1 answers .* up to 11 tokens are read before them, and recipe.length is 9; raise"):
        rows(architecture="encoder_decoder", length=9, answer=4, messages=[TALK])
    row = make("skip").rows(np.array([0]))
    assert row.decoder.tokens[0].tolist() == [BOS, USER, *W(0), END, ASSISTANT, *W(1), 0, 0]
    assert row.targets[0][row.weights[0] > 0].tolist() == [*W(1), END]
    assert make("skip").left_out(np.array([0])) == pytest.approx(6 / 13)
    with pytest.raises(UserError, match="no answer of source 'messages' has room"):
        rows(length=3, answer=2, messages=[TALK], on_long="skip")


# ----------------------------------------------------------------------------------------------------------- packing


PACKED = [
    ("head", "encoder", "labelled", False),
    ("head", "decoder", "labelled", True),
    ("text", "decoder", "pair", False),
    ("text", "decoder", "messages", True),
    ("text", "encoder_decoder", "messages", False),
]


@pytest.mark.parametrize("how,architecture,format,prefix", PACKED)
def test_packed_is_unpacked_for_a_models_loss(how, architecture, format, prefix):
    """Each target's loss is the same, to rounding, whether its record has a row to itself or shares one."""
    settings = dict(length=32, answer=6, packing=True, decoder_length=48, encoder_length=48, **{format: MAKERS[format](16)})
    one = rows(how, architecture, prefix=prefix, **settings)
    packed = one.rows(np.arange(one.count))
    alone = stack([pack([e], one.lengths) for e in one._examples(format, np.arange(len(one.items[format].record)))])
    assert (streams(packed)[0].segments.max(axis=1) > 1).all() and streams(alone)[0].segments.max() == 1
    model = small_model(architecture, outputs=2 if how == "head" else None)
    params = jax.tree.map(lambda x: 3 * x, small_params(model))
    loss_of = lambda p, batch: token_losses(Transformer(model).apply({"params": p}, batch), batch.targets)
    batch = jax.tree.map(lambda *xs: np.concatenate(xs), packed, alone)
    loss, counted = np.asarray(jax.jit(loss_of)(params, batch)), batch.weights > 0
    n = one.count
    first, second = (np.sort(loss[part][counted[part]]) for part in (slice(n), slice(n, None)))
    np.testing.assert_allclose(first, second, rtol=0, atol=3e-5)
    assert np.ptp(first) > 0.1


def test_packed_rows_are_nearly_full_and_have_whole_records():
    one = rows(labelled=labelled(400, high=12), length=16, packing=True, decoder_length=64)
    batch = one.rows(np.arange(one.count))
    assert (batch.decoder.segments > 0).mean() > 0.9
    starts = batch.decoder.tokens == BOS
    assert starts.sum() == 400 and (batch.decoder.positions[starts] == 0).all()
    assert (batch.weights.sum(axis=1) == 2 * starts.sum(axis=1)).all()


def test_a_packed_row_has_room_for_the_longest_record():
    with pytest.raises(UserError, match="data.decoder_length=10 has no room for one record, which takes up to 11 tokens"):
        rows(labelled=labelled(4), packing=True, decoder_length=10)


# ---------------------------------------------------------------------------------------------------------- refusals


def test_what_makes_no_sense_is_refused():
    with pytest.raises(UserError, match="source 'pair' has no classes that a head could tell apart"):
        rows("head", pair=pairs(3))
    with pytest.raises(UserError, match="an encoder gives no text"):
        rows("text", "encoder", pair=pairs(3))
    data = config.Data(sources={"a": config.Source(kind="jsonl", path="x")})
    builder = ExampleBuilder(TOKENIZER, "decoder", length=8, answer=4, prefix=False)
    with pytest.raises(UserError, match="source 'a' has texts, and a fine-tuning takes records"):
        RecordRows({"a": SimpleNamespace()}, data, builder, how="text", seed=0)


def test_classes_of_the_same_tokens_cannot_be_told_apart():
    class Folding(WordTokenizer):
        def encode_batch(self, texts, *, threads=None):
            return super().encode_batch([t.lower() for t in texts])

    assert answer_room(WordTokenizer(), ("yes", "very no")) == 3
    with pytest.raises(UserError, match="labels 'yes' and 'Yes' are the same tokens"):
        answer_room(Folding(), ("yes", "no", "Yes"))


def test_a_share_of_a_store_keeps_loss_and_labels():
    whole = store(labelled(20), ("no", "yes"))
    part = whole.share(0.5)
    assert part.num_documents == 10 and len(part.labels) == 10 and len(part.answers()) == 10
    assert dataclasses.replace(part, path="x").loss(np.arange(10))[0].sum() == 2


def test_answers_with_a_word_that_the_tokenizer_does_not_know_are_counted(monkeypatch):
    r = rows(pair=[Pair("w2 w1", "w3"), Pair("w2", "w1"), Pair("w4", "w3 w1")], shuffle=False)
    monkeypatch.setattr(TOKENIZER, "unk_id", int(TOKENIZER.encode_batch(["w1"])[0][0]), raising=False)
    assert r.unknown() == {"pair": 2}  # an unknown word in a question is none of an answer
