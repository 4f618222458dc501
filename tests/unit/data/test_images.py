"""Pictures: patches, files that are read, records with pictures prepared and kept, rows as a function of (seed, index)."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from lm import config
from lm.data import image_rows
from lm.data.corpus.prepare import prepare
from lm.data.image_rows import ImageRows
from lm.data.images import Pictures, decoded, patches
from lm.data.records import Captioned
from lm.errors import UserError
from lm.models.autoencoder import whole
from lm.objectives import Lengths
from tests.fakes import MemoryStore

Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(0)
STEM = config.Patches(4, 8)


def test_patches_go_by_rows_and_come_back():
    pixels = RNG.integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    found = patches(pixels, 4)
    assert found.shape == (2, 4, 48)
    assert (found[1, 1] == pixels[1, :4, 4:].reshape(-1)).all()  # the second patch is right of the first
    assert (whole(found, STEM) == pixels).all()


def saved(folder, name, pixels, **options):
    Image.fromarray(pixels).save(folder / name, **options)
    return (folder / name).read_bytes()


def test_a_file_becomes_a_square_on_white(tmp_path):
    """Of a wide picture the middle is kept; what is transparent is white."""
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = (200, 100, 50)
    assert (decoded(saved(tmp_path, "wide.png", wide), 8, "wide.png") == (200, 100, 50)).all()
    clear = np.zeros((8, 8, 4), np.uint8)
    assert (decoded(saved(tmp_path, "clear.png", clear), 8, "clear.png") == 255).all()
    assert decoded(saved(tmp_path, "grey.jpg", np.full((16, 16), 128, np.uint8)), 8, "grey.jpg").shape == (8, 8, 3)
    with pytest.raises(UserError, match="b.png is no picture that can be read"):
        decoded(b"no picture", 8, "b.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twelve pictures of one colour each, captioned and labelled."""
    home = tmp_path_factory.mktemp("pictures")
    lines = []
    for i in range(12):
        saved(home, f"{i}.png", np.full((8, 8, 3), 20 * i, np.uint8))
        lines.append({"image": f"{i}.png", "text": f"shade number {i}", "label": ("dark", "light")[i > 5]})
    (home / "records.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    return home


def data_of(folder, cache, **source):
    source = config.Source(kind="jsonl", path=str(folder / "records.jsonl"), format="captioned", **source)
    return config.Data({"mine": source}, tokenizer=config.Tokenizer("word", 64), holdout=0.25, cache=str(cache))


def test_a_folder_of_pictures_is_prepared_once(folder, tmp_path):
    data = data_of(folder, tmp_path)
    prepared = prepare(data, progress=False)
    found = image_rows.splits(prepared, data, STEM)
    assert {split: len(some["mine"].records) for split, some in found.items()} == {"train": 9, "holdout": 3}
    for split, some in found.items():
        of = some["mine"]
        shades = [20 * int(record.text.split()[-1]) for record in of.records]
        assert (of.pixels == np.array(shades)[:, None, None, None]).all(), split
        store = getattr(prepared, split)["mine"]
        known = {"train": 3, "holdout": 2}[split]  # words of a caption that training has
        for i, record in enumerate(of.records):
            assert prepared.tokenizer.decode(store.document(i)).split()[:known] == record.text.split()[:known]
    written = {file: file.stat().st_mtime_ns for file in (prepared.path / "pixels").glob("*.npy")}
    image_rows.splits(prepare(data, progress=False), data, STEM)
    assert len(written) == 2 and all(file.stat().st_mtime_ns == then for file, then in written.items())


def test_a_missing_picture_and_other_records_are_refused(folder, tmp_path):
    lost = tmp_path / "lost"
    lost.mkdir()
    (lost / "records.jsonl").write_text('{"image": "none.png", "text": "a"}\n{"image": "b.png", "text": "b"}', encoding="utf-8")
    data = data_of(lost, tmp_path)
    with pytest.raises(UserError, match="cannot read the picture .*png .*check the field 'image'"):
        image_rows.splits(prepare(data, progress=False), data, STEM)
    (lost / "records.jsonl").write_text('{"image": "https://host/a.png", "text": "a"}\n' * 2, encoding="utf-8")
    with pytest.raises(UserError, match="image=https://host/a.png is elsewhere, and pictures are read from local files"):
        image_rows.splits(prepare(replace(data, dedup=config.Dedup(False, None)), progress=False), data, STEM)
    texts = replace(data, sources={"mine": config.Source("text", str(folder))})
    with pytest.raises(UserError, match="this run reads pictures: give format='captioned'"):
        image_rows.splits(prepare(data_of(folder, tmp_path), progress=False), texts, STEM)


def rows_of(count=5, *, make=None, shuffle=True, shift=0, length=6):
    tokens = np.concatenate([[1, *range(10 * i, 10 * i + 2 + i), 2] for i in range(count)])
    store = MemoryStore(tokens, [4 + i for i in range(count)])
    store.document = lambda i: store.tokens[store.offsets[i] : store.offsets[i + 1]]
    pixels = np.stack([np.full((8, 8, 3), 10 * i, np.uint8) for i in range(count)])
    records = [Captioned(f"{i}.png", f"text {i}", "dark" if i < 2 else "light" if i < 4 else "") for i in range(count)]
    make = make or partial(image_rows.caption, length=length)
    data = config.Data({"a": config.Source("jsonl", "a.jsonl", format="captioned")})
    lengths = Lengths(STEM.length, length, 1)
    return ImageRows({"a": store}, {"a": Pictures(pixels, records)}, data, STEM, lengths, make, 3, shuffle, shift)


def test_a_caption_is_beside_its_picture():
    batch = rows_of(shuffle=False).rows(np.arange(7))
    assert batch.encoder.vectors.shape == (7, 4, 48) and batch.encoder.vectors.dtype == np.uint8
    assert batch.encoder.vectors[:5].mean(axis=(1, 2)).tolist() == [0, 10, 20, 30, 40]
    assert batch.decoder.tokens[0].tolist() == [1, 0, 1, 2, 0, 0] and batch.where[0].tolist() == [3]
    assert batch.decoder.tokens[3].tolist() == [1, 30, 31, 32, 33, 2]  # too long: it keeps its end
    assert batch.weights[:, 0].tolist() == [1] * 5 + [0] * 2  # past the last: blank
    assert not batch.encoder.segments[5:].any() and (batch.encoder.segments[:5] == 1).all()
    assert batch.encoder.positions[0].tolist() == list(range(STEM.length))
    assert rows_of(shuffle=False).left_out(np.arange(5)) == pytest.approx(3 / 30)


def test_rows_are_a_function_of_seed_and_index():
    rows = rows_of(shift=2)
    whole = rows.rows(np.arange(20))
    for part in (np.arange(7), np.array([13, 2, 19])):
        found = rows.rows(part)
        assert (found.encoder.vectors == whole.encoder.vectors[part]).all() and (found.where == whole.where[part]).all()
    assert [sorted(r.text for r in rows.records(np.arange(5) + 5 * e)) for e in range(4)] == [
        [f"text {i}" for i in range(5)]
    ] * 4
    orders = [tuple(r.text for r in rows.records(np.arange(5) + 5 * e)) for e in range(4)]
    assert len(set(orders)) > 1


def test_a_shift_moves_pictures_and_lets_white_in():
    plain, moved = rows_of().rows(np.arange(40)), rows_of(shift=2).rows(np.arange(40))
    same = (plain.encoder.vectors == moved.encoder.vectors).reshape(40, -1).mean(axis=1)
    assert (plain.encoder.tokens == moved.encoder.tokens).all() and 0.3 < same.min() < 1
    assert set(np.unique(moved.encoder.vectors)) <= {0, 10, 20, 30, 40, 255}
    held = rows_of(shift=2, shuffle=False).rows(np.arange(5))
    assert (held.encoder.vectors == rows_of(shuffle=False).rows(np.arange(5)).encoder.vectors).all()


def test_a_picture_without_a_class_has_no_weight():
    make = partial(image_rows.labelled, classes={"dark": 0, "light": 1})
    rows = replace(rows_of(make=make, shuffle=False), lengths=Lengths(STEM.length, None, 1))
    batch = rows.rows(np.arange(6))
    assert batch.targets[:, 0].tolist() == [0, 0, 1, 1, 0, 0] and batch.weights[:, 0].tolist() == [1, 1, 1, 1, 0, 0]
    assert batch.decoder is None and not batch.where.any() and batch.tokens_asked() == 4
