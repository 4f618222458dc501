"""Arrays of a batch as strips: each list against the arrays that it is made of."""

from types import SimpleNamespace

import numpy as np
import pytest

from lm import config
from lm.types import Compared, Example, Judged, TokenStream
from lm.view.pieces import Pieces, names_of, visible
from lm.view.strips import row, strips

PIECES = [b"<pad>", b"<s>", b"</s>", b"<mask>", b"<extra_id_0>", b"<|user|>", b"a", b" b", b"\n", b"\xe2", b"\x1b[", b"<s>"]


def tokenizer():
    return SimpleNamespace(
        special=np.arange(len(PIECES)) < 6,
        piece_bytes=PIECES,
        piece=lambda i: PIECES[i].decode(),
        mask_id=3,
        sentinel_ids=(4,),
        role_ids={"<|user|>": 5},
    )


def stream(tokens, segments, **arrays):
    arrays = {name: np.array([values]) for name, values in arrays.items()}
    tokens, segments = np.array([tokens]), np.array([segments])
    return TokenStream(tokens, arrays.pop("positions", np.arange(tokens.shape[1])[None]), segments, **arrays)


def of(example, i=0):
    pieces = Pieces(tokenizer())
    return {strip.name: strip for strip in strips(example, i, pieces, pieces.text)}


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b" a b", "␣a␣b"),
        ("é日שׁ".encode(), "é日שׁ"),
        (b"\n\t\x00", "⏎\\t\\x00"),
        (b"a\xe2\x82", "a<0xE2><0x82>"),
        ("\u202e\u200b".encode(), "\\u202e\\u200b"),  # they would turn a line round, or be seen by nobody
        ("\u0301".encode(), "◌\u0301"),  # a mark alone would join what stands before it
        (b"<script>", "<script>"),
        (b"", ""),
    ],
)
def test_bytes_become_visible(raw, text):
    assert visible(raw) == text


def test_kinds_and_texts_of_tokens():
    pieces = Pieces(tokenizer(), {4: "yes"})
    assert [pieces.kind(i) for i in range(8)] == ["special"] * 3 + ["mask", "sentinel", "role", "text", "text"]
    assert [pieces.text(i) for i in (3, 4, 7, 9)] == ["<mask>", "<extra_id_0>=yes", "␣b", "<0xE2>"]
    assert pieces.kind(11) == "text" != pieces.kind(1)  # the same letters, as text


def test_special_tokens_are_named_as_their_objective_takes_them():
    sentinels = SimpleNamespace(sentinel_ids=tuple(range(10, 20)))
    assert names_of(config.FillInMiddle(), sentinels) == {17: "prefix", 18: "suffix", 19: "middle"}
    assert names_of(config.NextSentence(), sentinels) == {10: "yes", 11: "no"}
    parts = {
        "a": config.Part(config.FillInMiddle(), mode="second"),
        "b": config.Part(config.Causal(), mode="first"),
        "c": config.Part(config.Causal()),
    }
    both = {17: "prefix", 18: "suffix", 19: "middle", 16: "first", 15: "second"}
    assert names_of(config.Mixture(parts), sentinels) == both
    assert names_of(config.Causal(), sentinels) == {}


def test_a_row_that_predicts_everywhere():
    """Two documents and padding: each position has its target, but for one without loss."""
    decoder = stream([1, 6, 7, 1, 6, 0], [1, 1, 1, 2, 2, 0], positions=[0, 1, 2, 0, 1, 0])
    found = of(Example(None, decoder, np.array([[6, 7, 2, 6, 7, 0]]), np.array([[1, 1, 0, 1, 1, 0.0]])))["decoder"]
    assert found.lines == {
        "reads": ["<s>", "a", "␣b", "<s>", "a"],
        "predicts": ["a", "␣b", "·", "a", "␣b"],
        "position": ["0", "1", "2", "0", "1"],
        "segment": ["1", "1", "1", "2", "2"],
    }
    assert found.asked == [True, True, False, True, True] and found.segments == [1, 1, 1, 2, 2]
    assert found.about == "5 of 6 tokens, the rest is padding; 2 segments; loss at 4"


def test_a_masked_row_has_targets_where_it_says():
    encoder = stream([1, 3, 7, 3], [1] * 4, types=[0, 0, 1, 1])
    where, targets, weights = np.array([[3, 1, 1, 0]]), np.array([[7, 6, 8, 0]]), np.array([[2.5, 1, 1, 0.0]])
    found = of(Example(encoder, None, targets, weights, where))["encoder"]
    assert found.lines == {
        "reads": ["<s>", "<mask>", "␣b", "<mask>"],
        "predicts": ["·", "a ⏎", "·", "␣b"],  # two at one position, none for the padding's place 0
        "weight": ["·", "1 1", "·", "2.5"],
        "types": ["0", "0", "1", "1"],
    }
    assert found.about == "4 of 4 tokens; 2 masks; loss at 2" and found.kinds == ["special", "mask", "text", "mask"]


def test_two_streams_and_a_prefix():
    """Of an encoder-decoder the decoder alone predicts; `ahead` and `blocks` stand as they are."""
    decoder = stream([1, 4], [1, 1], prefix=[True, False], ahead=[3, 1], blocks=[0, 2])
    both = of(Example(stream([6, 4, 2], [1] * 3), decoder, np.array([[4, 2]]), np.array([[1.0, 1]])))
    assert "predicts" not in both["encoder"].lines and both["encoder"].about == "3 of 3 tokens; 1 sentinel"
    lines = both["decoder"].lines
    assert (lines["prefix"], lines["ahead"], lines["blocks"]) == (["1", "·"], ["3", "1"], ["0", "2"])
    assert both["decoder"].about == "2 of 2 tokens; 1 sentinel; prefix of 1 token; loss at 2"


def test_rows_of_several_examples_keep_their_names_and_figures():
    one = Example(None, stream([1, 6], [1, 1]), np.array([[6, 2]]), np.array([[0, 1.0]]))
    two = Example(None, stream([1, 7], [1, 1]), np.array([[7, 2]]), np.array([[0, 1.0]]))
    pieces = Pieces(tokenizer())
    pair = row(Compared(one, two, np.array([0.5])), 0, "row 0", pieces, pieces.text)
    assert {name: strip.lines["reads"][1] for name, (strip,) in pair.parts.items()} == {"chosen": "a", "rejected": "␣b"}
    assert pair.facts == {"margin": "0.5"}
    judged = row(Judged(one, two, np.array([1.0])), 0, "row 0", pieces, lambda target: "(a number)", source="x")
    assert [*judged.parts] == ["answer", "mismatched"] and judged.facts == {"source": "x", "good": "1"}
    assert judged.parts["answer"][0].lines["predicts"] == ["·", "(a number)"]


def test_a_row_of_padding_is_empty():
    found = of(Example(None, stream([0, 0], [0, 0]), np.zeros((1, 2), int), np.zeros((1, 2))))["decoder"]
    assert found.ids == [] and found.lines["reads"] == [] and found.about == "0 of 2 tokens, the rest is padding"


def test_vectors_are_counted_and_what_is_asked_of_the_whole_is_shown():
    vectors = np.zeros((1, 4, 12), np.uint8)
    asked = TokenStream(np.zeros((1, 5), int), np.arange(5)[None], np.ones((1, 5), int), vectors=vectors)
    example = Example(asked, None, np.array([[7]]), np.ones((1, 1)), np.zeros((1, 1), int))
    (strip,) = strips(example, 0, Pieces(tokenizer()), lambda target: f"class {target}")
    assert strip.about == "4 vectors of 12 numbers, read at 5 places; loss at 1"
    assert strip.lines == {"reads": ["the whole"], "predicts": ["class 7"]}
    each = Example(asked, None, np.zeros((1, 5), int), np.ones((1, 5)))  # the targets are the vectors themselves
    (strip,) = strips(each, 0, Pieces(tokenizer()), lambda target: f"class {target}")
    assert strip.about == "4 vectors of 12 numbers, read at 5 places" and not strip.lines
