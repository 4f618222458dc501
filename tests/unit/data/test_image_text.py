"""Rows of images with texts, and the questions about them: functions of (seed, index), with answers that are true."""

import numpy as np
import pytest

from lm.data.image_questions import KINDS, PALETTE, WHAT, Described, guess, main_colour, question
from lm.data.image_text import CAPTION, DrawnRows, Images, ImageTextRows, PictureRows
from lm.data.images import patches
from lm.data.records import Pair
from lm.errors import UserError
from tests.fakes import WORDS, WordTokenizer

S, SIZE, N = 8, 4, 6  # pixels to a side of an image and of a patch, images


def images():
    rng = np.random.default_rng(0)
    described = [Described(f"w{i} w{i + 1}", "w9" if i % 2 else "w10", ("yes", "no", "very")[i % 3]) for i in range(N)]
    return Images(rng.integers(0, 256, (N, S, S, 3)).astype(np.uint8), SIZE, described)


class Spelling(WordTokenizer):
    """Words that it does not know are spelled "very"."""

    def encode_batch(self, texts, *, threads=None):
        return [np.array([WORDS.index(w) if w in WORDS else WORDS.index("very") for w in t.split()], np.int32) for t in texts]

    def encode_parts(self, parts):
        ids = [self.encode_batch([p])[0] if isinstance(p, str) else np.array([p], np.int32) for p in parts]
        return np.concatenate(ids)


def text_rows(**changes):
    settings = dict(kinds=(CAPTION, "colour", "is_group"), length=5, text=12, seed=3) | changes
    return ImageTextRows(images(), Spelling(), **settings)


@pytest.mark.parametrize("rows", [text_rows(shift=2), PictureRows(images(), length=4, seed=1, shift=1)])
def test_a_row_is_a_function_of_its_index(rows):
    whole = rows.rows(np.arange(12))
    for i in (0, 5, 11):
        one = rows.rows(np.array([i]))
        for a, b in zip(leaves(one), leaves(whole), strict=True):
            assert np.array_equal(a[0], b[i])


def leaves(example):
    streams = [s for s in (example.encoder, example.decoder) if s is not None]
    return [x for s in streams for x in vars(s).values() if x is not None] + [example.targets, example.weights]


def test_an_epoch_has_each_image_with_each_kind_once_in_its_own_order():
    rows = text_rows()
    assert rows.count == 3 * N
    epochs = [[(rows.picture(i), rows.kind(i)) for i in range(e * rows.count, (e + 1) * rows.count)] for e in range(2)]
    every = sorted((n, kind) for n in range(N) for kind in rows.kinds)
    assert sorted(epochs[0]) == sorted(epochs[1]) == every and epochs[0] != epochs[1]
    held_out = text_rows(shuffle=False)
    assert [(held_out.picture(i), held_out.kind(i)) for i in range(held_out.count)] == [
        (n, kind) for n in range(N) for kind in rows.kinds
    ]


def test_a_caption_and_an_answer_have_loss_and_a_question_has_none():
    rows = text_rows(shuffle=False)
    batch = rows.rows(np.array([0, 1, rows.count]))
    word, very = WORDS.index, WORDS.index("very")
    assert batch.decoder.tokens[0, :4].tolist() == [1, word("w0"), word("w1"), 0]
    assert batch.targets[0, :3].tolist() == [word("w0"), word("w1"), 2] and batch.weights[0].tolist() == [1] * 3 + [0] * 9
    asked = WHAT["colour"].split()  # none of these words is known
    read = [1, *[very] * len(asked), 2, word("yes")]
    assert batch.decoder.tokens[1, : len(read)].tolist() == read
    assert batch.weights[1].nonzero()[0].tolist() == [len(read) - 2, len(read) - 1]
    assert batch.targets[1, len(read) - 2 : len(read)].tolist() == [word("yes"), 2]
    assert np.array_equal(batch.encoder.vectors[0], patches(rows.images.pixels[0], SIZE)) and batch.encoder.segments[0].all()
    assert not any(np.any(x[2]) for x in leaves(batch)), "past the last row: blank"
    assert all(np.array_equal(a, b[2]) for a, b in zip(leaves(rows.blank()), leaves(batch), strict=True))
    stream, prompt = rows.prompt(1)
    assert prompt.tolist() == read[:-1] and np.array_equal(stream.vectors[0], batch.encoder.vectors[1])


def test_blind_rows_have_the_same_texts_and_no_image():
    seen, blind = text_rows().rows(np.arange(8)), text_rows(blind=True).rows(np.arange(8))
    assert not blind.encoder.vectors.any() and seen.encoder.vectors.any()
    assert np.array_equal(seen.targets, blind.targets) and np.array_equal(seen.encoder.segments, blind.encoder.segments)


def test_a_text_that_has_no_room_is_named():
    with pytest.raises(UserError, match=r"takes 9 tokens, and a row has room for 5: set --config.recipe.text=9"):
        text_rows(kinds=("group",), text=5).rows(np.arange(1))


def test_a_moved_image_is_the_same_image_elsewhere():
    rows = PictureRows(images(), length=4, seed=0, shift=2)
    still = PictureRows(images(), length=4, seed=0)
    for i in range(6):
        a, b = (r._moved(r.images.pixels[0], i) for r in (rows, still))
        wide = np.pad(b, ((2, 2), (2, 2), (0, 0)), mode="edge")
        assert any(np.array_equal(a, wide[y : y + S, x : x + S]) for y in range(5) for x in range(5))
    assert PictureRows(images(), length=4, seed=0, shuffle=False, shift=2).shift == 0


def test_codes_follow_their_caption():
    codes = np.arange(N * 4).reshape(N, 4).astype(np.int32)
    rows = DrawnRows(images(), codes, Spelling(), first=100, text=4, seed=0, shuffle=False)
    batch = rows.rows(np.arange(2))
    w = WORDS.index
    assert batch.encoder is None and rows.lengths.decoder == 7
    assert batch.decoder.tokens[1].tolist() == [1, w("w1"), w("w2"), 2, 104, 105, 106]
    assert batch.targets[1].tolist() == [w("w1"), w("w2"), 2, 104, 105, 106, 107]
    assert batch.weights[1].tolist() == [0, 0, 0, 1, 1, 1, 1]
    short = DrawnRows(images(), codes, Spelling(), first=100, text=3, seed=0)
    with pytest.raises(UserError, match="takes 4 tokens with its ends, and recipe.text=3"):
        short.rows(np.arange(1))


def test_the_main_colour_is_that_of_most_coloured_pixels():
    picture = np.full((20, 20, 3), 255, np.uint8)
    assert main_colour(picture) == "black"
    picture[:3] = (0, 0, 0)
    picture[5:10] = (0xD0, 0x30, 0x28)
    picture[10:12] = (0x60, 0xB0, 0xE0)
    assert main_colour(picture) == "red"
    for name, some in PALETTE.items():
        if name not in ("white", "black"):
            assert {main_colour(np.full((4, 4, 3), rgb, np.uint8)) for rgb in some} == {name}


def test_answers_are_true_and_half_of_what_is_asked_is_about_the_image_itself():
    pictures, rng = images().described, np.random.default_rng(0)
    for kind in KINDS:
        for _ in range(50):
            n = int(rng.integers(N))
            pair = question(pictures, n, kind, rng)
            if kind in WHAT:
                assert pair == Pair(WHAT[kind], pictures[n].of(kind))
                continue
            asked = pair.question.removeprefix("is it ").removesuffix("?")
            assert asked in {p.of(kind) for p in pictures}
            assert pair.answer == ("yes" if asked == pictures[n].of(kind) else "no")
    asked = [question(pictures, i % N, "is_name", rng).answer for i in range(3000)]
    assert np.mean([a == "yes" for a in asked]) == pytest.approx(0.5 + 0.5 / N, abs=0.03)


def test_the_best_guess_is_the_commonest_answer_to_the_same_question():
    best = guess([Pair("a?", "x"), Pair("a?", "y"), Pair("a?", "y"), Pair("b?", "x"), Pair("b?", "x"), Pair("", "z")])
    assert [best(asked) for asked in ("a?", "b?", "", "c?")] == ["y", "x", "z", "x"]
