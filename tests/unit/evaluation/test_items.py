"""Items of a file: read strictly, asked as a document's text, scored item by item under any model."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest

from lm import config
from lm.errors import UserError
from lm.evaluation import items
from lm.evaluation.items import Item
from lm.objectives.prompts import examples
from tests.unit.evaluation.test_spans import model
from tests.unit.objectives.asking import ASKED, BOS, EOS, SPAN_PROMPTS, TEXT, WORDS

LETTERS = "fghi"  # of the texts: tokens 5 to 8; any other is unknown, token 0
UNKNOWN = 0


def encode_batch(texts):
    return [np.array([LETTERS.index(c) + TEXT if c in LETTERS else UNKNOWN for c in text], np.int32) for text in texts]


TOKENIZER = SimpleNamespace(**vars(WORDS), encode_batch=encode_batch)
EVERY = ["".join(letters) for letters in itertools.product(LETTERS, repeat=2)]
KINDS = [(*key, kind) for *key, kind in ASKED if kind != "pll"]
IDS = [f"{a}-{o.__name__}-{k}" for a, o, k in KINDS]


def scored(architecture, objective, chosen, **settings):
    return items.score(*model(architecture), objective(), TOKENIZER, chosen, **settings)


def is_joint(architecture, objective, kind):
    return SPAN_PROMPTS[architecture, objective][kind].note.startswith("log p(target, right")


# ------------------------------------------------------------------------------------------------------------ scores


@pytest.mark.parametrize("architecture,objective,kind", [k for k in KINDS if not is_joint(*k)], ids=str)
def test_of_all_targets_one_is_exact_and_together_they_are_certain(architecture, objective, kind):
    """Each token is the most likely one after the target's earlier tokens along one path."""
    right = "hi" if kind == "infill" else ""
    result = scored(architecture, objective, [Item("fg", target, right) for target in EVERY])
    assert result.exact.sum() == 1 and result.hits[result.exact == 1].tolist() == [2]
    assert result.normalised and np.exp(-result.nats).sum() == pytest.approx(1, abs=1e-4)
    assert result.tokens.tolist() == [2] * len(EVERY)
    first = [target[0] for target, hits in zip(EVERY, result.hits, strict=True) if hits]
    assert len(first) >= 4  # the four targets that begin right have a hit at least


@pytest.mark.parametrize("architecture,objective,kind", [k for k in KINDS if is_joint(*k)], ids=str)
def test_a_model_that_only_reads_to_the_right_is_given_no_right_side(architecture, objective, kind):
    with pytest.raises(UserError, match=r"item 2 has a right side, and a model of '\w+' cannot be asked for it: .*'suffix'"):
        items.check(architecture, objective(), [Item("f", "g", ""), Item("f", "g", " ")])
    items.check(architecture, objective(), [Item("f", "g", "")])
    with pytest.raises(UserError, match="item 1 has a right side"):
        scored(architecture, objective, [Item("f", "g", "h")])


def test_items_of_all_lengths_are_scored_as_each_alone():
    rng = np.random.default_rng(0)
    text = lambda low: "".join(rng.choice(list(LETTERS), rng.integers(low, 20)))
    chosen = [Item(text(0), text(1), text(0) if i % 2 else "") for i in range(9)]
    for architecture, objective in (("encoder", config.Masked), ("encoder_decoder", config.Denoise)):
        together = scored(architecture, objective, chosen, batch_size=4)
        for i in (0, 1, 8):
            alone = scored(architecture, objective, chosen[i : i + 1], batch_size=1)
            assert together.nats[i] == pytest.approx(alone.nats[0], rel=1e-4)
            assert (together.exact[i], together.hits[i], together.tokens[i]) == (*alone.exact, *alone.hits, *alone.tokens)
        assert together.tokens.tolist() == [len(item.target) for item in chosen]
    values = together.values()
    assert values["accuracy"].mean() == pytest.approx(together.hits.sum() / together.tokens.sum())
    assert values["exact"].mean() == together.exact.mean() and values["nats"].mean() == together.nats.mean()


def test_a_causal_model_reads_bos_before_an_empty_left_side():
    a, b = (scored("decoder", config.Causal, [Item("", target, "")]).nats[0] for target in ("f", "fg"))
    assert 0 < a < b


def test_refusals():
    with pytest.raises(UserError, match="item 2: target 'fx' has a word that the tokenizer does not know"):
        scored("decoder", config.Causal, [Item("f", "g", ""), Item("f", "fx", "")])
    silent = SimpleNamespace(**vars(WORDS), encode_batch=lambda texts: [np.zeros(0, np.int32)] * len(texts))
    with pytest.raises(UserError, match="item 1: target ' ' has no text that the tokenizer knows"):
        items.score(*model("decoder"), config.Causal(), silent, [Item("f", " ", "")])
    network, params = model("decoder", config.Learned(16))
    with pytest.raises(UserError, match="takes 21 positions of the decoder, which has learned 16.*shorten item 2, the longest"):
        items.score(network, params, config.Causal(), TOKENIZER, [Item("f", "gh", ""), Item("f" * 19, "gh", "")])
    with pytest.raises(UserError, match="no way to score spans under a model of 'deshuffle'"):
        scored("encoder_decoder", config.Deshuffle, [Item("f", "g", "")])
    headless = SimpleNamespace(**{**vars(TOKENIZER), "bos_id": None})
    with pytest.raises(UserError, match="item 1 has an empty left side, and the tokenizer has no bos"):
        items.score(*model("decoder"), config.Causal(), headless, [Item("", "g", "")])


# ----------------------------------------------------------------------------------------------- what a model is asked


@pytest.mark.parametrize("architecture,objective,kind", KINDS, ids=IDS)
def test_bos_and_eos_are_where_training_has_them(architecture, objective, kind):
    """In training each row of a document begins with bos, or an encoder that reads a noised text has none, and eos is last."""
    (span,) = items._spans([Item("fg", "h", "i" if kind == "infill" else "")], TOKENIZER)
    for row in examples(SPAN_PROMPTS[architecture, objective][kind], kind, span, TOKENIZER):
        for stream in (row.encoder, row.decoder):
            if stream is not None:
                tokens = stream.tokens.tolist()
                assert tokens.count(BOS) <= 1 and BOS not in tokens[1:]
                assert tokens.count(EOS) <= 1
        read = (row.encoder or row.decoder).tokens.tolist()
        reads_on = objective in (config.Prefix, config.Teacherless)  # its encoder reads the beginning of a text
        noised = architecture == "encoder_decoder" and not reads_on or objective is config.SpanCorruption
        assert (read[0] == BOS) != noised
        if row.encoder is not None and not reads_on:  # a decoder that reads on is not told where it ends
            assert read[-1] == EOS
        assert len(row.targets) == 1 or is_joint(architecture, objective, kind)


# ----------------------------------------------------------------------------------------------------------- reading

GOOD = {"left": "a", "target": "b", "right": ""}


def test_reading(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(GOOD) + "\n\n" + json.dumps(GOOD | {"left": "", "right": "\u2028c"}, ensure_ascii=False))
    assert items.read(path) == [Item("a", "b", ""), Item("", "b", "\u2028c")]
    path.write_text(json.dumps(GOOD), encoding="utf-8-sig")  # as some editors write it
    assert items.read(path) == [Item("a", "b", "")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "has no items; give a line"),
        ("nonsense", "line 2 is not valid JSON"),
        ("[1]", "line 2 is not valid JSON: it must be an object"),
        ('{"left": "a", "target": "b", "target": "c", "right": ""}', "line 2 .*'target' appears twice"),
        ('{"left": "a", "right": ""}', "line 2 has no field 'target'"),
        ('{"left": "a", "targt": "b", "right": ""}', "line 2 has no field 'target'; did you mean 'targt'"),
        ('{"left": "a", "target": 3, "right": ""}', "line 2: field 'target' is a int; give a text"),
        ('{"left": "a", "target": "", "right": ""}', "line 2: field 'target' is empty"),
        ('{"left": "a", "target": "b", "right": "", "id": 1}', "line 2: an item has no field 'id'"),
        ('{"left": "\\ud83d", "target": "b", "right": ""}', "line 2: field 'left' has half a surrogate pair"),
    ],
)
def test_mistakes_name_the_line_and_the_field(line, said, tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text("\n" + line)
    with pytest.raises(UserError, match=said) as caught:
        items.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path):
    with pytest.raises(UserError, match="--items=.*none.jsonl cannot be read"):
        items.read(tmp_path / "none.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"left": "\xe9"}')
    with pytest.raises(UserError, match="items.words=.* cannot be read .*UTF-8"):
        items.read(tmp_path / "latin.jsonl", name="items.words")
