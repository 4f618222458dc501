"""Records: each format read from JSON, whatever else is refused by its field, and which tokens have loss."""

import json

import numpy as np
import pytest

from lm.data.records import (
    Captioned,
    Feedback,
    InvalidRecord,
    Labelled,
    Message,
    Messages,
    Pair,
    Preference,
    Text,
    parse,
    question_digest,
    texts,
    to_json,
)
from lm.data.render import render
from lm.errors import UserError
from tests.fakes import WORDS, WordTokenizer

U, A = ({"role": role, "content": "w1"} for role in ("user", "assistant"))
SYSTEM, TOOL = ({"role": role, "content": "w2"} for role in ("system", "tool"))
HUMAN, GPT, OBSERVED = ({"from": who, "value": said} for who, said in (("human", "w1"), ("gpt", "w1"), ("observation", "w2")))
LAST = ("assistant", "w1")
TOLD = Messages((Message("system", "w2"), Message("user", "w1"), Message("assistant", "w1")))
GOOD = [
    ("text", {"text": "w1"}, Text("w1")),
    ("captioned", {"image": "a.png", "text": "w1"}, Captioned("a.png", "w1")),
    ("captioned", {"image": "a.png", "text": "w1", "label": "very  no"}, Captioned("a.png", "w1", "very no")),
    ("captioned", {"image": "a.png", "label": 3}, Captioned("a.png", "3", "3")),  # a class alone is its own caption
    ("labelled", {"text": "w1", "label": "yes", "id": 7}, Labelled("w1", "yes")),
    ("labelled", {"text": "w1", "label": 3}, Labelled("w1", "3")),
    ("labelled", {"text": "w1", "label": " very  no "}, Labelled("w1", "very no")),
    ("pair", {"question": "w1", "answer": "w2"}, Pair("w1", "w2")),
    ("pair", {"question": "w1", "answer": "w2", "context": "w3"}, Pair("w1", "w2", "w3")),
    ("pair", {"question": "", "answer": "w2", "context": "w3"}, Pair("", "w2", "w3")),
    ("messages", {"messages": [U, A]}, Messages((Message("user", "w1"), Message("assistant", "w1")))),
    ("messages", {"conversations": [HUMAN, GPT], "id": 7}, Messages((Message("user", "w1"), Message("assistant", "w1")))),
    (
        "messages",
        {"system": "w2", "conversations": [HUMAN, {"from": "function_call", "value": "w3"}, OBSERVED, GPT]},
        Messages(tuple(Message(*m) for m in (("system", "w2"), ("user", "w1"), ("assistant", "w3"), ("tool", "w2"), LAST))),
    ),
    ("messages", {"system": "w2", "messages": [U, A]}, TOLD),
    ("messages", {"system": "w2", "messages": [SYSTEM, U, A]}, TOLD),
    ("messages", {"system": " ", "messages": [U, A]}, Messages(TOLD.messages[1:])),
    ("messages", {"system": None, "conversations": [HUMAN, GPT]}, Messages(TOLD.messages[1:])),
    ("feedback", {"system": "w2", "prompt": "w1", "completion": "w1", "label": True}, Feedback(TOLD.messages[:2], "w1", True)),
    (
        "preference",
        {"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "w2"}},
        Preference((Message("user", "w1"),), "w1", "w2"),
    ),
    (
        "feedback",
        {"conversations": [HUMAN], "completion": [HUMAN, GPT], "label": True},
        Feedback((Message("user", "w1"),), "w1", True),
    ),
]


@pytest.mark.parametrize("format,value,record", GOOD)
def test_what_is_read_and_written_again(format, value, record):
    assert parse(value, format) == record
    assert parse(json.loads(to_json(record)), format) == record


@pytest.mark.parametrize(
    "format,value,message",
    [
        ("labelled", ["w1", "yes"], r"a JSON list, not an object with 'text' and 'label'"),
        ("labelled", None, r"a JSON null, not an object"),
        ("labelled", {"text": "w1"}, r"no field 'label'"),
        ("labelled", {"text": "w1", "lable": "yes"}, r"no field 'label'; did you mean 'lable'"),
        ("labelled", {"text": "w1", "label": ["yes"]}, r"field 'label' is a list, not text"),
        ("labelled", {"text": "w1", "label": True}, r"field 'label' is a bool, not text"),
        ("labelled", {"text": "w1", "label": 0.5}, r"field 'label' is a float, not text"),
        ("labelled", {"text": "w1", "label": None}, r"field 'label' is a null, not text"),
        ("labelled", {"text": "w1", "label": " "}, r"field 'label' is empty"),
        ("labelled", {"text": " \n", "label": "yes"}, r"field 'text' is empty"),
        ("labelled", {"text": "\ud83d", "label": "yes"}, r"field 'text' has half a surrogate pair at character 0"),
        ("pair", {"question": "w1", "answer": ""}, r"field 'answer' is empty"),
        ("pair", {"question": "", "answer": "w1"}, r"field 'question' is empty"),
        ("pair", {"question": "", "answer": "w1", "context": " "}, r"field 'question' is empty"),
        ("pair", {"question": "w1", "answer": {"text": "w1"}}, r"field 'answer' is a dict, not text"),
        ("pair", {"question": "w1", "answer": "w1", "contxt": "w1"}, r"field 'contxt' is unknown; did you mean 'context'"),
        ("messages", {"conversation": []}, r"no field 'messages'"),
        ("labelled", {"text": "w1", "label": "a\0b"}, "field 'label' holds a zero byte"),
        ("messages", {"conversations": [GPT]}, r"conversations\[0\] has the role 'assistant' and is the first"),
        ("messages", {"conversations": [HUMAN, {"from": "gtp", "value": "w1"}]}, r"has the role 'gtp'; did you mean 'gpt'"),
        ("messages", {"conversations": [HUMAN, {"from": "gpt", "value": " "}]}, r"'value' of conversations\[1\] is empty"),
        ("messages", {"conversations": [HUMAN, {**GPT, "weight": 0}]}, r"conversations\[1\] has a field 'weight'"),
        ("messages", {"messages": [U, A], "conversations": [HUMAN, GPT]}, "'messages' and 'conversations' say the same"),
        ("messages", {"messages": [U, A], "system": ["w2"]}, "field 'system' is a list, not text"),
        ("messages", {"messages": [SYSTEM, U, A], "system": "w3"}, "field 'system' is another message than the one that"),
        ("messages", {"messages": "w1"}, r"field 'messages' is a str, not a list"),
        ("messages", {"messages": []}, r"no message is the assistant's"),
        ("messages", {"messages": [U]}, r"no message is the assistant's"),
        ("messages", {"messages": ["w1"]}, r"messages\[0\] is a str, not an object"),
        (
            "messages",
            {"messages": [A, U]},
            r"messages\[0\] has the role 'assistant' and is the first; allowed there: system, user",
        ),
        (
            "messages",
            {"messages": [U, SYSTEM, A]},
            r"messages\[1\] has the role 'system' and follows a message of the role 'user'",
        ),
        (
            "messages",
            {"messages": [U, A, A]},
            r"messages\[2\] has the role 'assistant' and follows a message of the role 'assistant'",
        ),
        (
            "messages",
            {"messages": [U, {"role": "bot", "content": "w1"}]},
            r"messages\[1\] has the role 'bot'; known: assistant",
        ),
        ("messages", {"messages": [U, {"role": "assistant", "content": ""}]}, r"field 'content' of messages\[1\] is empty"),
        ("messages", {"messages": [U, {"role": "assistant", "content": None}]}, r"'content' of messages\[1\] is a null"),
        ("messages", {"messages": [U, {"role": "assistant"}]}, r"no field 'content' of messages\[1\]"),
        ("messages", {"messages": [U, {**A, "tool_calls": []}]}, r"messages\[1\] has a field 'tool_calls'"),
    ],
)
def test_what_is_no_record_is_refused_by_its_field(format, value, message):
    with pytest.raises(InvalidRecord, match=message):
        parse(value, format)


# -------------------------------------------------------------------------------------------------------- rendering


class Roles(WordTokenizer):
    role_ids = {"<|system|>": 101, "<|user|>": 102, "<|assistant|>": 103, "<|tool|>": 104, "<|end|>": 105}


class NoRoles(WordTokenizer):
    """Words of other vocabularies are all `very`."""

    def encode_batch(self, texts, *, threads=None):
        return [np.array([WORDS.index(w if w in WORDS else "very") for w in t.split()], np.int32) for t in texts]


def rendered(record, tokenizer):
    (one,) = render([record], tokenizer)
    assert one.ids.dtype == np.int32 and one.loss.dtype == bool
    return one.ids.tolist(), one.loss.astype(int).tolist()


W = {w: i for i, w in enumerate(WORDS)}
BOS, EOS, W1, W2, W3, YES, VERY = 1, 2, W["w1"], W["w2"], W["w3"], W["yes"], W["very"]


def test_loss_is_on_the_answer_and_its_end():
    t = WordTokenizer()
    assert rendered(Text("w1 w2"), t) == ([BOS, W1, W2, EOS], [1, 1, 1, 1])
    assert rendered(Labelled("w1 w2", "yes"), t) == ([BOS, W1, W2, EOS, YES, EOS], [0, 0, 0, 0, 1, 1])
    assert rendered(Pair("w2", "w3", "w1"), t) == ([BOS, W1, W2, EOS, W3, EOS], [0, 0, 0, 0, 1, 1])
    assert rendered(Pair("", "w3 w3", "w1"), t) == ([BOS, W1, EOS, W3, W3, EOS], [0, 0, 0, 1, 1, 1])


def test_loss_is_on_every_message_of_the_assistant_and_its_end():
    talk = parse({"messages": [SYSTEM, U, A, U, {"role": "assistant", "content": "w3 yes"}, U]}, "messages")
    assert rendered(talk, Roles()) == (
        [BOS, 101, W2, 105, 102, W1, 105, 103, W1, 105, 102, W1, 105, 103, W3, YES, 105],  # the last question is unanswered
        [0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1],
    )
    tool = parse({"messages": [U, A, TOOL, A]}, "messages")
    assert rendered(tool, Roles()) == (
        [BOS, 102, W1, 105, 103, W1, 105, 104, W2, 105, 103, W1, 105],
        [0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 1],
    )


def test_roles_are_words_where_the_tokenizer_has_no_tokens_for_them():
    talk = parse({"messages": [U, A]}, "messages")
    assert rendered(talk, NoRoles()) == ([BOS, VERY, W1, EOS, VERY, W1, EOS], [0, 0, 0, 0, 0, 1, 1])


def test_what_was_said_has_the_same_ids_whatever_follows():
    short, long = (parse({"messages": [U, A, *more]}, "messages") for more in ([], [U, A]))
    ids = [one.ids.tolist() for one in render([short, long], Roles())]
    assert ids[1][: len(ids[0])] == ids[0]


def test_a_tokenizer_without_an_end_is_refused():
    class Endless(WordTokenizer):
        eos_id = None

        def require(self, name):
            raise UserError(f"the given tokenizer has no {name}")

    with pytest.raises(UserError, match="has no eos"):
        render([Labelled("w1", "yes")], Endless())


# -------------------------------------------------------------------------------------------------------- comparing


def test_records_that_ask_the_same_are_told_by_their_questions():
    same = [Labelled("One, two!", "yes"), Labelled("one  two", "no")]
    assert len({question_digest(r) for r in same}) == 1
    pairs = [Pair("When?", "then", "A text."), Pair("when", "now", "a text"), Pair("when", "now", "another text")]
    assert [question_digest(pairs[0]) == question_digest(r) for r in pairs] == [True, True, False]
    talks = [parse({"messages": [U, A, *more]}, "messages") for more in ([], [U, A])]
    assert (
        question_digest(talks[0])
        == question_digest(talks[1])
        != question_digest(parse({"messages": [SYSTEM, U, A]}, "messages"))
    )
    assert question_digest(Labelled("!?", "yes")) != question_digest(Labelled("?!", "yes"))  # without letters, as they are


def test_all_that_a_record_says():
    assert texts(Pair("question", "answer", "context")) == "context\nquestion\nanswer"
    assert texts(Labelled("text", "label")) == "text\nlabel"
    assert texts(parse({"messages": [SYSTEM, U, A]}, "messages")) == "w2\nw1\nw1"
