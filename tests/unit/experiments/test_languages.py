"""A language's files are named by their contents, and its data is trained on and held out as it was written."""

from dataclasses import replace
from pathlib import Path

import pytest

from experiments import languages
from lm.data.corpus.prepare import prepare
from lm.errors import UserError

TRAIN = ["a b c", "a b c", "d", "b c a d"] * 5  # equal documents stay


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_its_data_has_every_document_where_it_was_put(home):
    items = {"asked": iter([{"left": "a", "target": "b", "right": ""}])}
    language = languages.write("toy", iter(TRAIN), {"near": ["a b c"], "far": ["d d", "d"]}, items=items, entropy=1.5)
    assert language.vocab_size == 64 and language.entropy == 1.5
    assert Path(language.items["asked"]).expanduser().read_text() == '{"left": "a", "target": "b", "right": ""}\n'
    made = prepare(language.data(decoder_length=8, cache=str(home / "cache")), progress=False)
    assert {name: store.num_documents for name, store in made.train.items()} == {"train": 20}
    assert {name: store.num_documents for name, store in made.holdout.items()} == {"near": 1, "far": 2}
    assert [d.text for d in made.documents("train", "train")] == TRAIN
    assert made.tokenizer.vocab_size == 46
    a, b, c = made.tokenizer.encode("a b c").tolist()
    assert made.train["train"].read(made.train["train"].offsets[:1], 8)[0].tolist() == [1, a, b, c, 2, 1, a, b]


def test_the_folder_is_named_by_the_contents(home):
    one = languages.write("toy", TRAIN, ["a"])
    assert one.folder.startswith("~/.cache/lm/languages/toy-") and languages.write("toy", TRAIN, ["a"]) == one
    others = [
        languages.write("toy", [*TRAIN, "a"], ["a"]),
        languages.write("toy", TRAIN, ["a", "a"]),
        languages.write("toy", TRAIN, {"other": ["a"]}),
        languages.write("toy", TRAIN, ["a"], items={"asked": [{"left": "a", "target": "b"}]}),
    ]
    assert len({one.folder, *(other.folder for other in others)}) == 5
    folders = list((home / ".cache/lm/languages").iterdir())
    assert len(folders) == 5 and all(len(folder.name) == len("toy-") + 12 for folder in folders)  # nothing half written


def test_settings_of_the_data_can_be_changed():
    language = languages.write("toy", TRAIN, ["a"])
    data = language.data(encoder_length=16)
    assert replace(data, train_share=0.5) == language.data(encoder_length=16, train_share=0.5)
    assert {name: source.use for name, source in data.sources.items()} == {"train": "train", "heldout": "holdout"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (dict(heldout=["a", "b zz"]), "no training text has the word 'zz' of 'b zz'"),
        (dict(items={"asked": [{"left": "a", "target": "y", "right": "b"}]}), "the word 'y'"),
        (dict(items={"tuned": [{"text": "a", "label": "good"}, {"question": "a", "answer": "x"}]}), "the word 'x'"),
        (dict(items={"train": [{"left": "a", "target": "a"}]}), "train names two of its files"),
        (dict(heldout={"train": ["a"]}), "train names two of its files"),
    ],
)
def test_faults_of_a_generator_are_named(given, said):
    with pytest.raises(UserError, match=said):
        languages.write("toy", TRAIN, **dict(heldout=["a"]) | given)
