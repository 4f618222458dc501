"""Records of a tfds builder with nested features, which tfds itself writes and reads here, without TensorFlow."""

import functools
import json

import numpy as np
import pytest

from lm import config
from lm.data import records
from lm.data.corpus import nested, sources
from lm.data.corpus.prepare import prepare
from lm.data.corpus.sources import CorruptRecord, open_source
from lm.data.records import Feedback, Labelled, Message, Messages, Pair, Preference
from lm.errors import UserError

tfds = pytest.importorskip("tensorflow_datasets")
TURNS = [Message("user", "Is 1 é?"), Message("assistant", "No."), Message("user", "And 2?"), Message("assistant", "Yes.")]


def parsed(text, format):
    return records.parse(json.loads(text), format)


@functools.cache  # tfds refuses to register a second builder class of the same name
def builder_class():
    F = tfds.features
    turn = {"role": F.Text(), "content": F.Text()}

    class TinyTalks(tfds.core.GeneratorBasedBuilder):
        """Three examples, which are records of every format."""

        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            features = {
                "id": F.Text(),
                "messages": F.Sequence(turn),
                "system": F.Text(),
                "prompt": F.Text(),
                "chosen": F.Dataset({"role": F.ClassLabel(names=["user", "assistant"]), "content": F.Text()}),
                "rejected": F.Text(),
                "margin": F.Scalar(np.float32),
                "completion": F.Text(),
                "text": F.Text(),
                "label": F.ClassLabel(names=["bad", "good"]),
                "question": F.Text(),
                "answer": F.Text(),
                "pixels": F.Tensor(shape=(2, 2), dtype=np.uint8),
            }
            return tfds.core.DatasetInfo(builder=self, features=F.FeaturesDict(features), disable_shuffling=True)

        def _split_generators(self, dl_manager):
            return {"train": self._generate_examples()}

        def _generate_examples(self):
            for i in range(3):
                talk = [dict(role=t.role, content=t.content) for t in TURNS[: 2 + 2 * (i > 0)]]
                yield (
                    i,
                    {
                        "id": f"k{i}",
                        "messages": talk if i < 2 else [],
                        "system": "Be brief." if i else "",
                        "prompt": "Is 1?",
                        "chosen": [dict(role="assistant", content="No.")],
                        "rejected": "Yes.",
                        "margin": 0.5,
                        "completion": "No.",
                        "text": f"t{i}",
                        "label": i % 2,
                        "question": "q",
                        "answer": f"a{i}",
                        "pixels": np.zeros((2, 2), np.uint8),
                    },
                )

    return TinyTalks


@pytest.fixture
def opened(monkeypatch, tmp_path_factory):
    """Opens the builder's records in a format; tfds has prepared it once for all tests."""
    made = lambda name, data_dir: builder_class()(data_dir=data_dir, file_format="array_record")
    monkeypatch.setattr(sources, "_builder", made)
    cache = str(tmp_path_factory.getbasetemp() / "tiny_talks")
    return lambda format, **more: open_source(config.Source(path="tiny_talks", format=format, **more), cache=cache)


def test_a_list_of_objects_is_a_conversation(opened):
    documents = opened("messages")
    found = [parsed(documents[i].text, "messages") for i in range(2)]
    assert found == [Messages(tuple(TURNS[:2])), Messages((Message("system", "Be brief."), *TURNS))]
    assert [documents[i].key for i in range(2)] == ["k0", "k1"]
    with pytest.raises(CorruptRecord, match="tfds tiny_talks/train, record 2: no message is the assistant's, so there"):
        documents[2]


@pytest.mark.parametrize(
    ("format", "expected"),
    [("labelled", Labelled("t1", "good")), ("pair", Pair("q", "a1")), ("text", None)],
)
def test_other_formats_and_names_of_classes(opened, format, expected):
    text = opened(format)[1].text
    assert text == "t1" if expected is None else parsed(text, format) == expected


def test_answers_that_are_compared_or_judged(opened):
    """Of the features but `messages`, and with a judgement as a number of TFDS."""
    documents, ask = opened("messages"), (Message("system", "Be brief."), Message("user", "Is 1?"))
    features = {**documents._features, "label": tfds.features.Scalar(np.bool_)}
    example = {**documents._records[1], "label": np.bool_(True)}
    del features["messages"], example["messages"]
    for format, expected in (
        ("preference", Preference(ask, "No.", "Yes.", 0.5)),
        ("feedback", Feedback(ask, "No.", True)),
    ):
        source = config.Source(path="tiny_talks", format=format)
        assert parsed(nested.text_of(example, features, source, "here"), format) == expected


@pytest.mark.parametrize(
    ("format", "words"), [("text", "nothing in field 'text'; mend the file"), ("messages", "is a null, not a list")]
)
def test_a_record_that_lacks_its_text_is_one_that_may_be_counted(opened, format, words):
    documents = opened(format)
    lacks = {name: None if name in ("text", "messages", "label") else value for name, value in documents._records[0].items()}
    with pytest.raises(CorruptRecord, match=f"^here: .*{words}"):
        nested.text_of(lacks, documents._features, config.Source(path="tiny_talks", format=format), "here")


def test_a_builder_without_such_records_is_refused(opened, monkeypatch):
    monkeypatch.setitem(records.FIELDS, "messages", ("talks",))
    with pytest.raises(UserError, match=r"tfds 'tiny_talks' has no field of a messages record \(talks\), and its fields are "):
        opened("messages")


def test_a_run_is_prepared_from_them(opened, tmp_path):
    """Of the two conversations that are whole; the third is counted."""
    data = config.Data(
        {"talks": config.Source(path="tiny_talks", format="messages")},
        tokenizer=config.Tokenizer(vocab_size=400),
        cache=str(tmp_path),
        holdout=0.0,
        on_corrupt="skip",
    )
    done = prepare(data, progress=False)
    assert done.train["talks"].num_documents == 2
    assert {m.content for record in done.records("talks", "train") for m in record.messages} == {
        "Be brief.",
        *(t.content for t in TURNS),
    }
