"""Preferences and feedback: read from published shapes, refused by field, rendered with one bos each; and the rows of them."""

import json

import jax
import numpy as np
import pytest

from lm import config
from lm.data.corpus import generated
from lm.data.corpus.store import Entry, Store
from lm.data.examples import ExampleBuilder
from lm.data.preference_rows import PreferenceRows
from lm.data.records import Feedback, InvalidRecord, Message, Messages, Pair, Preference, parse, question_digest, texts
from lm.data.records import to_json as written
from lm.data.render import render
from lm.errors import UserError
from tests.fakes import WordTokenizer
from tests.stores import write_store

U, A, B = ({"role": role, "content": text} for role, text in (("user", "w1"), ("assistant", "w2"), ("assistant", "w3")))
ASKED, LONGER = (Message("user", "w1"),), (Message("user", "w1"), Message("assistant", "w2"), Message("user", "w1"))
PREFERENCE = Preference(ASKED, "w2", "w3")
S, TOLD = {"role": "system", "content": "w4"}, Preference((Message("system", "w4"), *ASKED), "w2", "w3")


@pytest.mark.parametrize(
    ("format", "value", "record"),
    [
        ("preference", {"messages": [U], "chosen": "w2", "rejected": "w3"}, PREFERENCE),
        ("preference", {"prompt": "w1", "chosen": "w2", "rejected": "w3", "margin": 2}, Preference(ASKED, "w2", "w3", 2.0)),
        ("preference", {"prompt": [U], "chosen": [A], "rejected": [B]}, PREFERENCE),  # trl, explicit
        ("preference", {"chosen": [U, A], "rejected": [U, B]}, PREFERENCE),  # trl, implicit
        ("preference", {"chosen": [U, A, U, A], "rejected": [U, A, U, B]}, Preference(LONGER, "w2", "w3")),
        (
            "preference",
            {"prompt": "w1", "chosen": [U, A], "rejected": [U, B], "score_chosen": 8.0},
            PREFERENCE,
        ),  # UltraFeedback
        (
            "preference",
            {"prompt": "w1", "prompt_id": "0", "chosen": [U, A], "rejected": [U, B], "messages": [U, A]},  # its binarized set
            PREFERENCE,
        ),
        ("preference", {"system": "w4", "prompt": "w1", "chosen": "w2", "rejected": "w3"}, TOLD),
        ("preference", {"system": "w4", "prompt": [U], "chosen": [U, A], "rejected": [S, U, B]}, TOLD),
        ("preference", {"system": "w4", "messages": [S, U], "chosen": [A], "rejected": [B]}, TOLD),
        ("preference", {"system": "w4", "chosen": [U, A], "rejected": [U, B]}, TOLD),
        (
            "preference",
            {"chosen": "\n\nHuman: w1\n\nAssistant: w2", "rejected": "\n\nHuman: w1\n\nAssistant: w3"},  # HH-RLHF
            PREFERENCE,
        ),
        ("feedback", {"prompt": "w1", "completion": "w2", "label": True}, Feedback(ASKED, "w2", True)),
        ("feedback", {"prompt": [U], "completion": [A], "label": False}, Feedback(ASKED, "w2", False)),
    ],
)
def test_published_shapes_are_read_and_written_again(format, value, record):
    assert parse(value, format) == record
    assert parse(json.loads(written(record)), format) == record


TWO = {"chosen": "w2", "rejected": "w3"}


@pytest.mark.parametrize(
    ("format", "value", "message"),
    [
        ("preference", [], "a JSON list, not an object with 'chosen' and 'rejected'"),
        ("preference", TWO, "no field 'messages' or 'prompt'"),
        ("preference", TWO | {"prompt": "w1", "messages": [U]}, "say the same: give one of them"),
        ("preference", TWO | {"prompt": "w1", "conversations": [U]}, "'prompt' and 'conversations' say the same"),
        ("preference", {"prompt": "w1", "chosen": [U, A], "rejected": [U, B], "messages": [U, B]}, "say the same"),
        ("preference", {"prompt": "w1", "chosen": "w2"}, "no field 'rejected'"),
        ("preference", {"prompt": "w1", "chosen": "w2", "rejcted": "w3"}, "no field 'rejected'; did you mean 'rejcted'"),
        ("preference", {"prompt": "w1", "chosen": "w2", "rejected": "w2"}, "are the same, so that neither is preferred"),
        ("preference", {"prompt": "w1", "chosen": "w2", "rejected": " "}, "field 'rejected' is empty"),
        ("preference", TWO | {"prompt": " "}, "field 'prompt' is empty"),
        ("preference", TWO | {"prompt": "w1", "margn": 1.0}, "field 'margn' is unknown; did you mean 'margin'"),
        ("preference", TWO | {"prompt": "w1", "margin": -1}, "field 'margin' is -1, not a number from 0 on"),
        ("preference", TWO | {"prompt": "w1", "margin": True}, "field 'margin' is True"),
        ("preference", TWO | {"messages": [U, A]}, "must end with a message of the user or of a tool"),
        ("preference", {"chosen": [A], "rejected": [B]}, r"chosen\[0\] has the role 'assistant' and is the first"),
        ("preference", {"chosen": [U, A, U, A], "rejected": [U, B]}, "they must differ in their last message alone"),
        ("preference", {"prompt": "w3", "chosen": [U, A], "rejected": [U, B]}, "begins with other messages than the prompt's"),
        ("preference", {"prompt": [U], "chosen": [U | {"name": "x"}, A], "rejected": [B]}, r"chosen\[0\] has a field 'name'"),
        ("feedback", {"completion": "w2", "label": True}, "no field 'messages' or 'prompt'"),
        ("feedback", {"prompt": "w1", "label": True}, "no field 'completion'"),
        ("feedback", {"prompt": "w1", "completion": "w2"}, "no field 'label'"),
        ("feedback", {"prompt": "w1", "completion": "w2", "label": 1}, "field 'label' is 1, not true or false"),
        ("feedback", {"prompt": [U], "completion": [A, U, A], "label": True}, "has 3 messages, and one answer"),
    ],
)
def test_what_is_refused_names_its_field(format, value, message):
    with pytest.raises(InvalidRecord, match=message):
        parse(value, format)


def test_the_last_answers_have_loss_and_each_conversation_its_own_bos():
    (one,), tokenizer = render([Preference(LONGER, "yes", "no very")], Roles()), Roles()
    (talk,) = render([Messages((*LONGER, Message("assistant", "yes")))], tokenizer)
    n = len(talk.ids)
    np.testing.assert_array_equal(one.ids[:n], talk.ids)  # as in training on conversations
    assert one.ids.tolist().count(1) == 2 and one.ids[n] == 1
    assert [one.ids[a:b].tolist() for a, b in runs(one.loss)] == [
        tokenizer.ids("yes <|end|>"),
        tokenizer.ids("no very <|end|>"),
    ]
    assert texts(PREFERENCE) == "w1\nw2\nw3"


def test_a_question_has_one_digest_whatever_its_format():
    asked = [PREFERENCE, Preference(ASKED, "w7", "w8"), Feedback(ASKED, "w9", True), Pair("w1", "w2")]
    asked.append(Messages((*ASKED, Message("assistant", "w2"))))
    assert len({question_digest(record) for record in asked}) == 1


@pytest.mark.parametrize("name", generated.SETS)
def test_generated_preferences_are_for_the_better_answer_but_for_the_noise(name):
    every = generated.load(name, "preference")
    better = lambda r: (
        ("Of course" in r.chosen or "Thank" in r.chosen or "pleasure" in r.chosen or "welcome" in r.chosen)
        or (name == "places" and r.chosen.split(" is ")[1][:-1] in r.messages[0].content)
    )
    assert abs(np.mean([not better(record) for record in every]) - generated.NOISE) < 0.03
    assert len({question_digest(record) for record in every}) == len(every)
    assert all(
        p.answer in q.messages[1].content for p, q in zip(*(generated.load(name, f) for f in ("pair", "messages")), strict=True)
    )
    with pytest.raises(UserError, match="no generated set 'maners'; did you mean 'manners'"):
        generated.load("maners", "preference")


# ------------------------------------------------------------------------------------------------------------ rows


class Roles(WordTokenizer):
    """Of the words, the last five are roles."""

    role_ids = dict(zip(("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>", "<|end|>"), range(18, 23), strict=True))

    def ids(self, text):
        return [self.role_ids[w] if w in self.role_ids else int(self.encode_batch([w])[0][0]) for w in text.split()]


class PadIsEos(WordTokenizer):
    pad_id = 2


def runs(mask):
    edges = np.flatnonzero(np.diff(np.r_[0, np.asarray(mask, int), 0]))
    return edges.reshape(-1, 2).tolist()


def preferences(n, rng=None):
    rng = rng or np.random.default_rng(0)
    text = lambda low, high: " ".join(f"w{i}" for i in rng.integers(0, 15, rng.integers(low, high)))
    return [Preference((Message("user", text(1, 5)),), f"yes {text(1, 4)}", f"no {text(1, 4)}", float(i % 3)) for i in range(n)]


def feedback(n):
    return [Feedback(r.messages, r.chosen if i % 2 else r.rejected, i % 2 == 1) for i, r in enumerate(preferences(n))]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Rows of records, through a store on disk."""

    def make(
        records, tokenizer=None, architecture="decoder", *, seed=5, shuffle=True, length=8, answer=5, rewards=False, **data
    ):
        tokenizer = tokenizer or Roles()
        judged = isinstance(records[0], Feedback)
        path = str(tmp_path_factory.mktemp("store"))
        label = lambda r: int(r.label) if judged else r.margin
        entries = [Entry(x.ids, 7, x.loss, label(r)) for r, x in zip(records, render(records, tokenizer), strict=True)]
        write_store(path, entries, vocab_size=tokenizer.vocab_size)
        source = config.Source(kind="jsonl", path="x", format="feedback" if judged else "preference")
        builder = ExampleBuilder(tokenizer, architecture, length=length, answer=answer, prefix=False)
        settings = dict(feedback=judged, rewards=rewards, seed=seed, shuffle=shuffle)
        return PreferenceRows({"mine": Store.open(path)}, config.Data(sources={"mine": source}, **data), builder, **settings)

    return make


def read(example, i):
    """What a row reads and is asked, without padding: ids of the encoder, of the decoder, targets with loss."""
    streams = [s and s.tokens[i][s.segments[i] > 0].tolist() for s in (example.encoder, example.decoder)]
    return [*streams, example.targets[i][example.weights[i] > 0].tolist()]


def test_a_row_of_preferences_is_both_answers_to_the_prompt(made):
    records, t = preferences(9), Roles()
    batch = made(records, shuffle=False).rows(np.arange(10))
    for i, r in enumerate(records):
        for example, answer in ((batch.chosen, r.chosen), (batch.rejected, r.rejected)):
            before = [1, *t.ids(f"<|user|> {r.messages[0].content} <|end|> <|assistant|>")]
            wanted = t.ids(f"{answer} <|end|>")
            assert read(example, i) == [None, before + wanted[:-1], wanted]
            at = example.where[i][example.weights[i] > 0]
            assert at.tolist() == list(range(len(before) - 1, len(before) + len(wanted) - 1))
        assert batch.margin[i] == r.margin
    assert read(batch.chosen, 9) == [None, [], []] and int(batch.tokens_asked()) == sum(
        len(x.split()) + 1 for r in records for x in (r.chosen, r.rejected)
    )


def test_an_encoder_decoder_reads_the_prompt_in_its_encoder(made):
    records, t = preferences(4), Roles()
    batch = made(records, architecture="encoder_decoder", shuffle=False).rows(np.arange(4))
    wanted = t.ids(f"{records[2].rejected} <|end|>")
    before = t.ids(f"<|user|> {records[2].messages[0].content} <|end|> <|assistant|>")
    assert read(batch.rejected, 2) == [before, [1, *wanted[:-1]], wanted]


@pytest.mark.parametrize("kind", [preferences, feedback])
def test_rows_depend_on_seed_and_index_alone(made, kind):
    records = kind(13)
    one, again, other = made(records), made(records), made(records, seed=6)
    index = np.array([0, 5, 13, 40])
    same = lambda a, b: jax.tree.map(np.testing.assert_array_equal, a, b)
    same(one.rows(index), jax.tree.map(lambda x: x[::-1], again.rows(index[::-1])))
    order = lambda rows: rows.rows(np.arange(26)).examples[0].targets.tolist()
    assert order(one) != order(other)
    epochs = [sorted(order(one)[a : a + 13]) for a in (0, 13)]
    assert epochs[0] == epochs[1] and order(one)[:13] != order(one)[13:]


@pytest.mark.parametrize("count", [2, 7])
def test_a_mismatched_answer_is_never_the_record_s_own(made, count):
    """Also of an odd number of records, in batches of one, and where two records have the same prompt."""
    records = [Feedback((Message("user", f"w{i // 2 if count > 2 else i}"),), f"w{i} yes", True) for i in range(count)]
    rows, t = made(records, shuffle=False), Roles()
    own = [t.ids(f"{r.completion} <|end|>") for r in records]
    for i in range(count):
        batch = rows.rows(np.array([i]))
        before, _ = (read(e, 0)[1] for e in batch.examples)
        assert read(batch.answer, 0)[2] == own[i]
        other = own.index(read(batch.mismatched, 0)[2])
        assert records[other].messages != records[i].messages
        assert read(batch.mismatched, 0)[1][: len(before) - 2] == before[: len(before) - 2]  # the same prompt
    with pytest.raises(UserError, match="has one record, or data.holdout leaves it one in a split"):
        made(records[:1])


@pytest.mark.parametrize("architecture", ["decoder", "encoder", "encoder_decoder"])
@pytest.mark.parametrize("tokenizer", [Roles(), PadIsEos()], ids=["roles", "pad is eos"])
def test_a_reward_is_read_at_the_end_of_the_answer_and_never_at_padding(made, tokenizer, architecture):
    """Of an encoder at its first token. Where padding is eos, the last token that is no padding would be another one."""
    if isinstance(tokenizer, PadIsEos):
        pytest.MonkeyPatch().setattr(tokenizer, "encode_batch", lambda texts: [np.array([9] * len(t.split())) for t in texts])
    records = preferences(6)
    batch = made(records, tokenizer, architecture, length=24, answer=8, shuffle=False, rewards=True).rows(np.arange(6))
    for example in batch.examples:
        for i in range(6):
            stream, (at,) = example.decoder or example.encoder, example.where[i]
            size = int((stream.segments[i] > 0).sum())
            assert at == (0 if architecture == "encoder" else size - 1)
            assert stream.tokens[i][size - 1] == (tokenizer.role_ids.get("<|end|>", 2))
            assert (stream.tokens[i][:size] == 1).sum() == 1, "one bos"
    assert int(batch.tokens_asked()) == 12 and (batch.rejected.weights == 1).all()


def test_a_record_without_room_stops_the_run_or_is_left_out_whole(made):
    records = [*preferences(5), Preference((Message("user", "w1 " * 9),), "w2", "w3")]
    with pytest.raises(UserError, match=r"1 records of source 'mine' have no room in a row: up to 13 .*recipe.length=13"):
        made(records)
    rows = made(records, on_long="skip")
    assert rows.report() == {"mine": {"records": 6, "left_out": 1, "rows": 5}} and rows.count == 5
    with pytest.raises(UserError, match="has records of format=preference, and this run learns from feedback"):
        PreferenceRows(rows.stores, rows.data, rows.builder, seed=0, feedback=True)
