"""Turns texts into vectors, compares them, and searches among them.

  python -m lm.embed --from=D "a text" "another"
  python -m lm.embed --from=D --file=lines.txt
  python -m lm.embed --from=D --jsonl < texts.jsonl > vectors.jsonl
  python -m lm.embed --from=D --index=I texts/*.txt
  python -m lm.embed --from=D --index=I --file=lines.txt
  python -m lm.embed --from=D --index=I --query="a text" --top=5
  python -m lm.embed --from=D --words=ox,cow,plant --out=FOLDER

Texts are given as arguments, as the lines of --file, or as the lines of standard input; empty lines are left out. The first
two commands print a table of cosines.

With --jsonl each line read is {"text": "..."} with any other fields, such as an id. The line written has these fields and
"vector".

With --index the arguments are files, each a text, and the vectors are written to a new folder: vectors.npy, float32 [N, D];
texts.jsonl, the texts in the same order; and index.json, which says what they were made by. --jsonl reads the texts there too.

--query compares a text with all texts of an index and prints those of the highest cosine. A text equal to the query is marked
"=" and does not count towards --top. With --jsonl each line written is {"rank": 1, "cosine": 0.9, "same": false, "document":
{...}}; the rank of a text equal to the query is null.

With --approximate an index also gets hnswlib's, index.hnsw, and a query is sought in that: it is faster among very many texts,
and may miss some of the nearest. Cosines are exact in either case.

--words prints the nearest neighbours of words, and their distances, twice: by the model's token vectors, and by its last
layer's vectors in sentences: those of --file, or a run's held-out text; of a converted model each word is read alone. --out
writes them to a new folder: words.json, and words.png, a map.
"""

import argparse
import hashlib
import json
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from lm import atomic, cli, paths, untrusted
from lm.config import resolve
from lm.config.ranges import Count, Name, Natural, Words
from lm.errors import UserError, printable

if TYPE_CHECKING:
    import numpy as np

    from lm.generation.vectors import Embedder  # imports jax
    from lm.saved import Saved

Pooling = Literal["mean", "cls", "last", "max"]
Long = Literal["refuse", "windows"]
VECTORS, TEXTS, INDEX, HNSW = "vectors.npy", "texts.jsonl", "index.json", "index.hnsw"
SHOWN = 60  # characters of a text in a table
NO_TEXT = "there is no text: give some, or --file, or lines on standard input"

Record = dict[str, Any]  # {"text": ..., and any other fields}


@dataclass(frozen=True)
class Index:
    """What an index was made by: the contents of its index.json."""

    model: Name  # folder
    pooling: Pooling
    normalised: bool
    long: Long
    length: Count  # tokens that were read at once
    texts: Count
    width: Count
    fingerprint: Name  # of model and pooling, see `lm.generation.vectors.Embedder.fingerprint`
    step: Natural | None = None  # of the checkpoint; None: a converted model
    approximate: Name | None = None  # SHA-256 of index.hnsw; None: there is none


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    if flags.texts and (flags.file or flags.jsonl or flags.query is not None) or (flags.file and flags.jsonl):
        raise UserError("arguments, --file, --jsonl and --query are four ways to give texts: leave out the others")
    if flags.approximate and flags.index is None:
        raise UserError("--approximate is of an index: give --index=FOLDER")
    if flags.words is not None:
        return _words(flags)
    if flags.out is not None:
        raise UserError(f"--out={flags.out} is of --words, and they are not given: leave it out")
    if flags.query is not None:
        return _search(flags)
    records, names = _given(flags)
    texts = [record["text"] for record in records]
    if flags.index is not None:
        with atomic.new_folder(paths.local(flags.index, name="--index")) as folder:
            source, embedder = _opened(flags, flags.pooling)
            _write(folder, records, embedder(texts, names), source, embedder, approximate=flags.approximate)
        print(f"{len(texts):,} texts, {embedder.model.config.width:,} numbers each: {flags.index}")
        return 0
    if flags.jsonl and (taken := next((name for name, r in zip(names, records, strict=True) if "vector" in r), None)):
        raise UserError(f'{taken} has a field "vector" already: rename it')
    if not flags.jsonl and len(texts) < 2:
        raise UserError("one text has none to be compared with: give two or more, or take --jsonl for its vector")
    vectors = _opened(flags, flags.pooling)[1](texts, names)
    if flags.jsonl:
        for record, vector in zip(records, vectors, strict=True):
            numbers = [float(str(x)) for x in vector]  # the shortest that are read back as the same float32
            print(json.dumps(record | {"vector": numbers}, ensure_ascii=False))
    else:
        _print_table(texts, vectors)
    return 0


def _opened(flags: argparse.Namespace, pooling: str | None) -> "tuple[Saved, Embedder]":
    """The model of --from, and what makes vectors with it."""
    cli.start_jax(flags.source)
    from lm import saved
    from lm.generation.vectors import Embedder

    source = saved.open(flags.source)
    settings: Any = dict(pooling=pooling, long=flags.long, normalise=flags.normalise, batch_size=flags.batch_size)
    return source, Embedder.of(source, length=flags.length, **settings)


# ---------------------------------------------------------------------------------------------------------------- texts


def _given(flags: argparse.Namespace) -> tuple[list[Record], list[str]]:
    """The texts that are given, and what errors call each of them. UserError if there is none."""
    if flags.texts and flags.index is not None:
        found = [({"text": paths.text(name, name="the file").removesuffix("\n"), "file": name}, name) for name in flags.texts]
    elif flags.texts:
        found = [({"text": text}, f"text {i} ({_short(text)!r})") for i, text in enumerate(flags.texts, 1)]
    else:
        where = flags.file or "standard input"
        content = paths.text(flags.file, name="--file") if flags.file else cli.standard_input(NO_TEXT)
        lines = [(line, f"line {i} of {where}") for i, line in enumerate(content.split("\n"), 1) if line.strip()]
        found = [(_parsed(line, name), name) if flags.jsonl else ({"text": line}, name) for line, name in lines]
        if not found:
            raise UserError(f"{where} has no text: give one or more, a line each")
    for record, name in found:
        resolve.build(Words, record["text"], name)
    return [record for record, _ in found], [name for _, name in found]


def _parsed(line: str, name: str) -> Record:
    """The record in a line of JSON. UserError, which calls it `name`, if it has no text."""
    record = untrusted.parse_json(line.encode("utf-8", "surrogateescape"), name)
    if not isinstance(record.get("text"), str):
        raise UserError(f'{name} has no text: {{"text": "..."}}')
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise UserError(f"{name} has characters that are not UTF-8: give texts that are") from None
    return record


# ---------------------------------------------------------------------------------------------------------------- index


def _write(
    folder: Path,
    records: Iterable[Record],
    vectors: "np.ndarray",
    source: "Saved",
    embedder: "Embedder",
    *,
    approximate: bool,
) -> None:
    import numpy as np

    from lm.generation import approximate as hnsw

    about: Record = dict(model=str(source.folder), step=source.step, pooling=embedder.pooling, normalised=embedder.normalise)
    about |= dict(long=embedder.long, length=embedder.length, texts=len(vectors), width=vectors.shape[1])
    np.save(folder / VECTORS, vectors)
    if approximate:
        hnsw.build(vectors, folder / HNSW)
        about["approximate"] = hashlib.sha256((folder / HNSW).read_bytes()).hexdigest()
    atomic.write_bytes(folder / TEXTS, "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records).encode())
    atomic.write_json(folder / INDEX, about | {"fingerprint": embedder.fingerprint})


def _read(folder: Path, about: Index) -> "tuple[list[Record], np.ndarray]":
    """The texts of an index and their vectors, float32 [N, D]. UserError if they do not belong together."""
    import numpy as np

    try:
        vectors = np.load(folder / VECTORS, allow_pickle=False)
        lines = (folder / TEXTS).read_text(encoding="utf-8").removesuffix("\n").split("\n")
        records = [_parsed(line, f"line {i} of {folder / TEXTS}") for i, line in enumerate(lines, 1)]
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"the index in {folder} cannot be read ({error}); make it again") from None
    if len(records) != about.texts or vectors.shape != (about.texts, about.width) or vectors.dtype != np.float32:
        raise UserError(f"{VECTORS} and {TEXTS} in {folder} are not those that {INDEX} describes; make the index again")
    return records, vectors


def _check_approximate(folder: Path, about: Index) -> None:
    """UserError if an index has no index.hnsw, or not the one that it was written with."""
    if about.approximate is None:
        raise UserError(f"the index in {folder} has no {HNSW}: leave --approximate out, or make the index again with it")
    file = folder / HNSW
    if not file.exists() or hashlib.sha256(file.read_bytes()).hexdigest() != about.approximate:
        raise UserError(f"{HNSW} in {folder} is not the one that {INDEX} describes; make the index again")


def _search(flags: argparse.Namespace) -> int:
    resolve.build(Name, flags.query, "--query")
    if flags.index is None:
        raise UserError("--query searches an index: give --index=FOLDER")
    folder = paths.local(flags.index, name="--index")
    if not (folder / INDEX).exists():
        raise UserError(f"--index={flags.index} holds no index; make one: --index={flags.index} texts/*.txt, without --query")
    about: Index = resolve.build(Index, untrusted.read_json(folder, INDEX), INDEX)
    if flags.pooling is not None and flags.pooling != about.pooling:
        raise UserError(
            f"--pooling={flags.pooling}, and the index in {folder} was made with {about.pooling}: leave it out, or make another"
        )
    records, vectors = _read(folder, about)
    if flags.approximate:
        _check_approximate(folder, about)
    _, embedder = _opened(flags, about.pooling)
    if embedder.fingerprint != about.fingerprint:
        step = "" if about.step is None else f" at step {about.step}"
        raise UserError(
            f"the index in {folder} was made by another model than --from={flags.source}: that in {about.model}{step}; give "
            "that one, or make another index"
        )
    from lm.generation import approximate
    from lm.generation.vectors import cosines

    query = embedder([flags.query], ["--query"])
    same = [record["text"].strip() == flags.query.strip() for record in records]
    among = list(range(len(records)))
    if flags.approximate:
        near = approximate.nearest(folder / HNSW, query[0], flags.top + sum(same), vectors=len(records))
        among = sorted({*near.tolist(), *(i for i in among if same[i])})
    found = dict(zip(among, cosines(query, vectors[among])[0], strict=True))
    order = sorted(among, key=lambda i: (not same[i], -found[i], i))
    for place, i in enumerate(order[: sum(same) + flags.top], 1 - sum(same)):
        rank = None if same[i] else place
        if flags.jsonl:
            line = {"rank": rank, "cosine": float(str(found[i])), "same": same[i], "document": records[i]}
            print(json.dumps(line, ensure_ascii=False))
        else:
            label = next((f"{records[i][name]}: " for name in ("file", "id") if name in records[i]), "")
            print(f"{'=' if rank is None else rank:>3}  {found[i]:.4f}  {printable(label)}{_short(records[i]['text'])}")
    return 0


# ---------------------------------------------------------------------------------------------------------------- words


def _words(flags: argparse.Namespace) -> int:
    words = list(dict.fromkeys(word.strip() for word in flags.words.split(",")))
    for word in words:
        resolve.build(Name, word, "a word of --words")
    if flags.texts or flags.jsonl or flags.index or flags.query is not None or flags.pooling is not None:
        raise UserError(
            "--words reads the sentences of --file, and prints: leave out other texts, --jsonl, --index and --pooling"
        )
    lines = paths.text(flags.file, name="--file").split("\n") if flags.file else None
    with ExitStack() as stack:
        folder = stack.enter_context(atomic.new_folder(paths.local(flags.out, name="--out"))) if flags.out else None
        source, embedder = _opened(flags, None)
        from lm.generation import words as of_words

        texts, where = (lines, flags.file) if lines is not None else _held_out(source)
        if lines is not None and not any(line.strip() for line in lines):
            raise UserError(f"{flags.file} has no text: give a sentence or more, a line each")
        spaces = [of_words.of_tokens(embedder, words)]
        try:
            spaces.append(of_words.in_context(embedder, words, [text for text in texts if text.strip()], where))
        except of_words.Missing as missing:
            if lines is not None:
                raise
            print(f"note: {printable(str(missing))}; each word is read alone", file=sys.stderr)
            spaces.append(of_words.in_context(embedder, words, [], where))
        if folder is not None:
            of_words.draw(spaces, folder / "words.png", flags.top)
            about = {"model": str(source.folder), "step": source.step, "spaces": [s.to_json(flags.top) for s in spaces]}
            atomic.write_json(folder / "words.json", about)
    print("\n\n".join("\n".join(space.lines(flags.top)) for space in spaces))
    return 0


def _held_out(source: "Saved") -> tuple[list[str], str]:
    """The held-out texts of a run, and what errors call them; [] of a converted model."""
    if source.run is None:
        return [], "the model's text"
    from lm.data.corpus.prepare import prepare

    data = prepare(source.run.data)
    texts = [document.text for name in sorted(data.holdout) for document in data.documents(name, "holdout")]
    return texts, "the run's held-out text"


# ---------------------------------------------------------------------------------------------------------------- shown


def _print_table(texts: list[str], vectors: "np.ndarray") -> None:
    from lm.generation.vectors import cosines

    print("   " + "".join(f"{i:>8}" for i in range(1, len(texts) + 1)))
    for i, row in enumerate(cosines(vectors, vectors)):
        print(f"{i + 1:>3}" + "".join(f"{x:>8.4f}" for x in row) + f"  {_short(texts[i])}")


def _short(text: str) -> str:
    """The beginning of a text, in one line of printable characters."""
    line = printable(" ".join(text[: 10 * SHOWN].split()))
    return line if len(line) <= SHOWN else f"{line[: SHOWN - 1]}…"


def parser() -> cli.Parser:
    p = cli.parser("lm.embed", __doc__)
    p.add_argument("texts", nargs="*", metavar="TEXT", help="texts; with --index files, each a text")
    p.add_argument("--from", dest="source", required=True, metavar="FOLDER", help="workdir of a run, or a converted model")
    p.add_argument("--file", help="a file with a text a line")
    p.add_argument("--jsonl", action="store_true", help="read texts and write vectors, or what is found, as JSON lines")
    p.add_argument("--index", metavar="FOLDER", help="a new folder to write vectors and texts to, or one that --query searches")
    p.add_argument("--query", metavar="TEXT", help="find the texts of the index that are nearest to this one")
    p.add_argument("--top", hint=Count, default=5, help="how many of them, or neighbours of a word")
    p.add_argument("--approximate", action="store_true", help="write hnswlib's index too, or search it")
    p.add_argument("--words", metavar="A,B,...", help="compare words as vectors; with --file in its sentences, one a line")
    p.add_argument("--out", metavar="FOLDER", help="with --words: a new folder for words.json and a map, words.png")
    p.add_argument(
        "--pooling",
        choices=get_args(Pooling),
        help="how a text's hidden vectors become one: their mean, that of the first token, that of the last, or their maximum "
        "(default: of a model trained by contrast what it was trained for, the first token of an encoder or the last of a "
        "decoder; of any other the mean; of a query that of the index)",
    )
    p.add_argument(
        "--long",
        choices=get_args(Long),
        default="refuse",
        help="a text of more than --length tokens is an error, or the mean of overlapping windows (default refuse)",
    )
    p.add_argument(
        "--length",
        hint=Count,
        help="tokens that are read at once (default: those of a row of the run's data, or 512, if the model has learned so "
        "many positions)",
    )
    p.add_argument("--batch_size", hint=Count, default=32, help="texts that are read at the same time")
    p.add_argument(
        "--normalise", action=argparse.BooleanOptionalAction, default=True, help="scale vectors to length 1 (default)"
    )
    return p


if __name__ == "__main__":
    cli.enter(main)
