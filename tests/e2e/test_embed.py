"""`python -m lm.embed` on real runs: a table, JSON lines, an index and what is found in it, mistakes in one line."""

import json
import shutil
from collections import Counter

import numpy as np
import pytest

from lm import saved
from lm.data.corpus.prepare import prepare
from lm.embed import main
from lm.generation.vectors import Embedder, cosines
from lm.models.transformer import Transformer

TEXTS = ["abc de fa", "j", "bcd ef ghi bb", "abc de fb", "hij hij"]


@pytest.fixture
def ask(piped):
    return lambda *words, given="": piped(main, words, given)


@pytest.fixture
def index(runs, ask, tmp_path):
    """An index of TEXTS, a file each, by the encoder."""
    for i, text in enumerate(TEXTS):
        (tmp_path / f"{i}.txt").write_text(text + "\n")
    files = [tmp_path / f"{i}.txt" for i in range(len(TEXTS))]
    code, out, err = ask(f"--from={runs / 'encoder.masked'}", f"--index={tmp_path / 'index'}", *files)
    assert code == 0 and out == f"5 texts, 32 numbers each: {tmp_path / 'index'}\n", err
    return tmp_path / "index"


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def vectors(folder, texts, **settings):
    """What the library makes of the texts."""
    source = saved.open(folder)
    settings = dict(length=64) | settings
    return Embedder(Transformer(source.model), source.params(), source.tokenizer(), source.run.objective, **settings)(texts)


@pytest.mark.parametrize("name", ["encoder.masked", "decoder.causal"])
def test_a_table_of_cosines(runs, ask, tmp_path, name):
    source = f"--from={runs / name}"
    code, out, err = ask(source, *TEXTS)
    assert code == 0, err
    head, *rows = out.splitlines()
    assert head.split() == ["1", "2", "3", "4", "5"]
    wanted = vectors(runs / name, TEXTS)
    for i, row in enumerate(rows):
        number, *shown = row.split(maxsplit=6)
        assert (number, shown[-1]) == (str(i + 1), TEXTS[i])
        np.testing.assert_allclose(list(map(float, shown[:-1])), cosines(wanted, wanted)[i], atol=6e-5)
    assert ask(source, given="\n\n".join(TEXTS)) == (0, out, "")  # a text a line
    (tmp_path / "lines.txt").write_text("\n".join(TEXTS))
    assert ask(source, f"--file={tmp_path / 'lines.txt'}") == (0, out, "")
    assert ask(source, "--no-normalise", "--batch_size=1", *TEXTS) == (0, out, "")


def test_json_lines(runs, ask):
    source, folder = f"--from={runs / 'decoder.causal'}", runs / "decoder.causal"
    given = lines(*({"id": i, "text": text} for i, text in enumerate(TEXTS)))
    code, out, err = ask(source, "--jsonl", given=given)
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert [(record["id"], record["text"]) for record in found] == list(enumerate(TEXTS))
    assert all(set(record) == {"id", "text", "vector"} for record in found)
    got = np.array([record["vector"] for record in found], np.float32)
    np.testing.assert_allclose(got, vectors(folder, TEXTS), atol=1e-6)
    for words, settings in (
        (("--no-normalise",), dict(normalise=False)),
        (("--pooling=last",), dict(pooling="last")),
        (("--long=windows", "--length=5"), dict(long="windows", length=5)),
    ):
        code, out, err = ask(source, "--jsonl", *words, given=given)
        assert code == 0, err
        other = np.array([json.loads(line)["vector"] for line in out.splitlines()], np.float32)
        np.testing.assert_allclose(other, vectors(folder, TEXTS, **settings), atol=1e-6)
        assert np.abs(other - got).max() > 1e-3


def test_an_index_holds_vectors_and_texts(runs, ask, index, tmp_path):
    kept = np.load(index / "vectors.npy")
    np.testing.assert_allclose(kept, vectors(runs / "encoder.masked", TEXTS), atol=1e-6)
    records = [json.loads(line) for line in (index / "texts.jsonl").read_text().splitlines()]
    assert records == [{"text": text, "file": str(tmp_path / f"{i}.txt")} for i, text in enumerate(TEXTS)]
    about = json.loads((index / "index.json").read_text())
    assert about.pop("fingerprint") and about == {
        "model": str(runs / "encoder.masked"),
        "step": 2,
        "pooling": "mean",
        "normalised": True,
        "long": "refuse",
        "length": 32,
        "texts": 5,
        "width": 32,
    }
    assert kept.dtype == np.float32 and sorted(p.name for p in index.iterdir()) == ["index.json", "texts.jsonl", "vectors.npy"]
    given = lines(*({"id": i, "text": text} for i, text in enumerate(TEXTS)))
    source = f"--from={runs / 'encoder.masked'}"
    assert ask(source, "--jsonl", f"--index={tmp_path / 'other'}", given=given)[0] == 0
    np.testing.assert_array_equal(np.load(tmp_path / "other/vectors.npy"), kept)
    assert (tmp_path / "other/texts.jsonl").read_text() == given


@pytest.mark.parametrize("query", ["abc de fc", "abc de fa"])
def test_a_query_finds_the_nearest(runs, ask, index, query):
    """In the order of their exact cosines; a text that equals the query is marked, and is none of the nearest."""
    source, folder = f"--from={runs / 'encoder.masked'}", runs / "encoder.masked"
    exact = (vectors(folder, [query]).astype(np.float64) @ vectors(folder, TEXTS).astype(np.float64).T)[0]
    order = [i for i in np.argsort(-exact) if TEXTS[i] != query]
    same = [i for i in range(len(TEXTS)) if TEXTS[i] == query]
    code, out, err = ask(source, f"--index={index}", f"--query={query}", "--top=3", "--jsonl")
    assert code == 0, err
    found = [json.loads(line) for line in out.splitlines()]
    assert [(f["rank"], f["same"], f["document"]["text"]) for f in found] == [
        *((None, True, TEXTS[i]) for i in same),
        *((rank, False, TEXTS[i]) for rank, i in enumerate(order[:3], 1)),
    ]
    np.testing.assert_allclose([f["cosine"] for f in found], exact[[*same, *order[:3]]], atol=1e-5)
    code, out, err = ask(source, f"--index={index}", f"--query={query}")
    assert code == 0, err
    shown = out.splitlines()
    assert [line.split()[0] for line in shown] == ["="] * len(same) + [str(i + 1) for i in range(len(order))]
    assert all(line.endswith(f"{i}.txt: {TEXTS[i]}") for line, i in zip(shown, [*same, *order], strict=True))


def test_an_index_that_was_made_otherwise_is_refused(runs, ask, index, tmp_path):
    source, query = f"--from={runs / 'encoder.masked'}", "--query=a"
    code, _, err = ask(f"--from={runs / 'decoder.causal'}", f"--index={index}", query)
    assert code == 2 and err == (
        f"error: the index in {index} was made by another model than --from={runs / 'decoder.causal'}: that in "
        f"{runs / 'encoder.masked'} at step 2; give that one, or make another index\n"
    )
    code, _, err = ask(source, f"--index={index}", query, "--pooling=max")
    assert code == 2 and err == (
        f"error: --pooling=max, and the index in {index} was made with mean: leave it out, or make another\n"
    )
    shutil.copytree(index, tmp_path / "relabelled")  # by hand: the pooling that it claims is not that it was made with
    about = json.loads((index / "index.json").read_text())
    (tmp_path / "relabelled/index.json").write_text(json.dumps(about | {"pooling": "max"}))
    code, _, err = ask(source, f"--index={tmp_path / 'relabelled'}", query)
    assert code == 2 and "was made by another model" in err
    code, _, err = ask(source, f"--index={index}", "a.txt")
    assert code == 2 and err.startswith("error: a.txt cannot be read (No such file or directory)")
    code, _, err = ask(source, f"--index={index}", tmp_path / "0.txt")
    assert code == 2 and "exists and is not an empty folder; give another, nothing is overwritten" in err
    for name, content, cause in (
        ("vectors.npy", b"\x93NUMPY", "cannot be read"),
        ("vectors.npy", None, "cannot be read"),
        ("texts.jsonl", b'{"text": "a"}\n', "are not those that index.json describes; make the index again"),
        ("texts.jsonl", b'{"words": "a"}\n', "line 1 of|has no text"),
        ("index.json", b"{}", "is missing"),
        ("index.json", json.dumps(about | {"pooling": "sum"}).encode(), "index.json.pooling is 'sum'"),
    ):
        shutil.rmtree(tmp_path / "damaged", ignore_errors=True)
        shutil.copytree(index, tmp_path / "damaged")
        (tmp_path / "damaged" / name).unlink()
        if content is not None:
            (tmp_path / "damaged" / name).write_bytes(content)
        code, _, err = ask(source, f"--index={tmp_path / 'damaged'}", query)
        assert code == 2 and all(c in err for c in cause.split("|")) and err.count("\n") == 1, err


def test_long_texts(runs, ask, tmp_path):
    source, long = f"--from={runs / 'encoder.masked'}", " ".join("jihgfedcba"[i % 7 :] for i in range(80))
    (tmp_path / "long.txt").write_text(long)
    code, _, err = ask(source, f"--index={tmp_path / 'index'}", tmp_path / "long.txt")
    assert code == 2 and err.startswith(f"error: {tmp_path / 'long.txt'} has ") and err.count("\n") == 1
    assert err.endswith(
        " tokens with its ends, and 32 are read at once: shorten it, or give --long=windows, or a higher --length\n"
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["long.txt"]  # nothing was left behind
    code, out, err = ask(source, f"--index={tmp_path / 'index'}", "--long=windows", tmp_path / "long.txt")
    assert code == 0 and out.startswith("1 texts, 32 numbers each"), err
    wanted = vectors(runs / "encoder.masked", [long], long="windows", length=32)
    np.testing.assert_allclose(np.load(tmp_path / "index/vectors.npy"), wanted, atol=1e-6)


def test_approximate_search_finds_the_same(runs, ask, tmp_path):
    pytest.importorskip("hnswlib")
    source, folder = f"--from={runs / 'encoder.masked'}", tmp_path / "index"
    rng = np.random.default_rng(0)
    texts = [" ".join("".join(rng.choice(list("abcdefghij"), 3)) for _ in range(6)) for _ in range(60)]
    given = lines(*({"text": text} for text in texts))
    assert ask(source, "--jsonl", f"--index={folder}", "--approximate", given=given)[0] == 0
    assert sorted(p.name for p in folder.iterdir()) == ["index.hnsw", "index.json", "texts.jsonl", "vectors.npy"]
    for query in (texts[7], "abc de fa"):
        words = (source, f"--index={folder}", f"--query={query}", "--jsonl")
        exact, near = ([json.loads(line) for line in ask(*words, *more)[1].splitlines()] for more in ((), ("--approximate",)))
        # hnswlib adds up a product in another order.
        np.testing.assert_allclose([x.pop("cosine") for x in near], [x.pop("cosine") for x in exact], atol=2e-7)
        assert near == exact and len(exact) >= 5
        assert [x["same"] for x in exact].count(True) == (query in texts)
    code, _, err = ask(f"--from={runs / 'decoder.causal'}", f"--index={folder}", "--query=a", "--approximate")
    assert code == 2 and "was made by another model than" in err
    assert ask(source, "--jsonl", f"--index={tmp_path / 'plain'}", given=given)[0] == 0
    code, _, err = ask(source, f"--index={tmp_path / 'plain'}", "--query=a", "--approximate")
    assert code == 2 and "has no index.hnsw: leave --approximate out, or make the index again with it" in err
    shutil.copytree(folder, tmp_path / "damaged")
    (tmp_path / "damaged/index.hnsw").write_bytes((folder / "index.hnsw").read_bytes()[:-9])
    code, _, err = ask(source, f"--index={tmp_path / 'damaged'}", "--query=a", "--approximate")
    assert code == 2 and "index.hnsw in" in err and "is not the one that index.json describes" in err
    assert ask(source, f"--index={tmp_path / 'damaged'}", "--query=a")[0] == 0  # the exact search does not read it


def test_words_as_vectors(runs, ask, tmp_path):
    """In the held-out text of a run, in sentences, or alone where a word is in neither."""
    pytest.importorskip("matplotlib")
    source = saved.open(runs / "decoder.causal")
    held = prepare(source.run.data, progress=False)
    text = " ".join(document.text for document in held.documents("tiny", "holdout")).split()
    first, second = (word for word, _ in Counter(text).most_common(2))
    code, out, err = ask(
        f"--from={runs / 'decoder.causal'}", f"--words={first},{second}", f"--out={tmp_path / 'out'}", "--top=2"
    )
    assert code == 0, err
    assert "token vectors: the rows" in out and f" {text.count(first):,} times " in out and "in the run's held-out text" in out
    found = json.loads((tmp_path / "out/words.json").read_text())
    assert [[w["word"] for w in space["words"]] for space in found["spaces"]] == [[first, second]] * 2
    assert all(len(w["neighbours"]) == 2 for space in found["spaces"] for w in space["words"])
    assert (tmp_path / "out/words.png").read_bytes().startswith(b"\x89PNG")
    table = source.params()["embed"]["tokens"]["embedding"]
    rows = [
        table[[i for i in source.tokenizer().encode(f" {w}") if source.tokenizer().piece_bytes[i].strip()]].mean(0)
        for w in (first, second)
    ]
    assert found["spaces"][0]["distances"][0][1] == pytest.approx(1 - cosines(np.stack(rows), np.stack(rows))[0, 1], abs=1e-5)
    (tmp_path / "lines.txt").write_text(f"{first} {second} abc\n\nzzz {first}\n")
    code, out, err = ask(f"--from={runs / 'decoder.causal'}", f"--words={first},zzz", f"--file={tmp_path / 'lines.txt'}")
    assert code == 0 and " 2 times " in out and " 1 time " in out, err
    code, _, err = ask(f"--from={runs / 'decoder.causal'}", f"--words={second},zzzz", f"--file={tmp_path / 'lines.txt'}")
    assert code == 2 and err.startswith("error: 'zzzz' is no word of ") and err.count("\n") == 1
    (tmp_path / "empty.txt").write_text("\n")
    code, _, err = ask(f"--from={runs / 'decoder.causal'}", f"--words={first}", f"--file={tmp_path / 'empty.txt'}")
    assert code == 2 and err == f"error: {tmp_path / 'empty.txt'} has no text: give a sentence or more, a line each\n"
    code, out, err = ask(f"--from={runs / 'decoder.causal'}", "--words=zzzz,yyy")
    assert code == 0 and "read alone" in out and err.startswith("note: 'zzzz' is no word of the run's held-out text")


def test_mistakes_take_one_line(runs, ask, tmp_path):
    source = f"--from={runs / 'decoder.causal'}"
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    for words, given, cause in (
        ((source,), "", "standard input has no text: give one or more, a line each"),
        ((source, "a"), "", "one text has none to be compared with: give two or more, or take --jsonl for its vector"),
        ((source, "--jsonl", "a"), "", "arguments, --file, --jsonl and --query are four ways to give texts"),
        ((source, "--file=a", "b"), "", "arguments, --file, --jsonl and --query are four ways to give texts"),
        ((source, "--query=a", "b"), "", "arguments, --file, --jsonl and --query are four ways to give texts"),
        ((source, "--query=a"), "", "--query searches an index: give --index=FOLDER"),
        ((source, "--query="), "", "--query='' is too short"),
        ((source, "--query=a", f"--index={tmp_path}"), "", "holds no index; make one"),
        ((source, "--jsonl"), "{]\n", "line 1 of standard input is not valid JSON"),
        ((source, "--jsonl"), '\n{"prompt": "a"}\n', 'line 2 of standard input has no text: {"text": "..."}'),
        ((source, "--jsonl"), '{"text": 3}\n', "line 1 of standard input has no text"),
        ((source, "--jsonl"), '{"text": "a", "id": "\\ud800"}\n', "line 1 of standard input has characters that are not UTF-8"),
        ((source, "--jsonl"), lines({"text": "a", "vector": []}), 'line 1 of standard input has a field "vector" already'),
        (
            (
                source,
                "--words=a,",
            ),
            "",
            "a word of --words='' is too short",
        ),
        ((source, "--words=a", "--jsonl"), "", "--words reads the sentences of --file, and prints: leave out other texts"),
        ((source, "--words=a", "b"), "", "--words reads the sentences of --file, and prints: leave out other texts"),
        ((source, "--out=o", "a", "b"), "", "--out=o is of --words, and they are not given: leave it out"),
        ((source, "--approximate", "a", "b"), "", "--approximate is of an index: give --index=FOLDER"),
        ((source, "a", "\udce9"), "", "has characters that are not UTF-8"),
        ((source, f"--file={tmp_path / 'latin.txt'}"), "", "give a file of text in UTF-8"),
        ((source, f"--file={tmp_path}"), "", "Is a directory"),
        ((source, "--pooling=sum", "a", "b"), "", "--pooling 'sum' is not known"),
        ((source, "--length=65", "a", "b"), "", "length=65 is more than the 64 positions that the model has learned"),
        ((source, "--length=0", "a", "b"), "", "--length=0 is too small"),
        ((source, "--poling=max", "a", "b"), "", "unknown flag --poling; did you mean '--pooling'?"),
        ((f"--from={runs}", "a", "b"), "", "--from="),
    ):
        code, out, err = ask(*words, given=given)
        assert code == 2 and cause in err and err.startswith("error: ") and err.count("\n") == 1 and not out, (words, err)
