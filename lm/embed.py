"""Turns texts into vectors, compares them, and searches among them.

  python -m lm.embed --from=D "a text" "another"
  python -m lm.embed --from=D --file=lines.txt
  python -m lm.embed --from=D --jsonl < texts.jsonl > vectors.jsonl
  python -m lm.embed --from=D --index=I texts/*.txt
  python -m lm.embed --from=D --index=I --file=lines.txt
  python -m lm.embed --from=D --index=I --query="a text" --top=5

Texts are given as arguments, as the lines of --file, or as the lines of standard input; empty lines are left out. The first
two commands print a table of cosines.

With --jsonl each line read is {"text": "..."} with any other fields, such as an id. The line written has these fields and
"vector".

With --index the arguments are files, each a text, and the vectors are written to a new folder: vectors.npy, float32 [N, D];
texts.jsonl, the texts in the same order; and index.json, which says what they were made by. --jsonl reads the texts there too.

--query compares a text with all texts of an index and prints those of the highest cosine. A text equal to the query is marked
"=" and does not count towards --top. With --jsonl each line written is {"rank": 1, "cosine": 0.9, "same": false, "document":
{...}}; the rank of a text equal to the query is null.
"""

import argparse
import json
from collections.abc import Iterable
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
VECTORS, TEXTS, INDEX = "vectors.npy", "texts.jsonl", "index.json"
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


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    if flags.texts and (flags.file or flags.jsonl or flags.query is not None) or (flags.file and flags.jsonl):
        raise UserError("arguments, --file, --jsonl and --query are four ways to give texts: leave out the others")
    if flags.query is not None:
        return _search(flags)
    records, names = _given(flags)
    texts = [record["text"] for record in records]
    if flags.index is not None:
        with atomic.new_folder(paths.local(flags.index, name="--index")) as folder:
            source, embedder = _opened(flags, flags.pooling)
            _write(folder, records, embedder(texts, names), source, embedder)
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
    cli.start_jax()
    import jax

    from lm import saved
    from lm.generation.vectors import Embedder, usual_length
    from lm.models.transformer import Transformer

    source = saved.open(flags.source)
    length = flags.length or usual_length(source.model, source.run.data if source.run else None)
    settings: Any = dict(pooling=pooling, long=flags.long, normalise=flags.normalise, batch_size=flags.batch_size)
    params, objective = source.params(device=jax.local_devices()[0]), source.run.objective if source.run else None
    return source, Embedder(Transformer(source.model), params, source.tokenizer(), objective, length=length, **settings)


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


def _write(folder: Path, records: Iterable[Record], vectors: "np.ndarray", source: "Saved", embedder: "Embedder") -> None:
    import numpy as np

    about: Record = dict(model=str(source.folder), step=source.step, pooling=embedder.pooling, normalised=embedder.normalise)
    about |= dict(long=embedder.long, length=embedder.length, texts=len(vectors), width=vectors.shape[1])
    np.save(folder / VECTORS, vectors)
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
    _, embedder = _opened(flags, about.pooling)
    if embedder.fingerprint != about.fingerprint:
        step = "" if about.step is None else f" at step {about.step}"
        raise UserError(
            f"the index in {folder} was made by another model than --from={flags.source}: that in {about.model}{step}; give "
            "that one, or make another index"
        )
    from lm.generation.vectors import cosines

    found = cosines(embedder([flags.query], ["--query"]), vectors)[0]
    same = [record["text"].strip() == flags.query.strip() for record in records]
    order = sorted(range(len(records)), key=lambda i: (not same[i], -found[i], i))
    for place, i in enumerate(order[: sum(same) + flags.top], 1 - sum(same)):
        rank = None if same[i] else place
        if flags.jsonl:
            line = {"rank": rank, "cosine": float(str(found[i])), "same": same[i], "document": records[i]}
            print(json.dumps(line, ensure_ascii=False))
        else:
            label = next((f"{records[i][name]}: " for name in ("file", "id") if name in records[i]), "")
            print(f"{'=' if rank is None else rank:>3}  {found[i]:.4f}  {printable(label)}{_short(records[i]['text'])}")
    return 0


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
    p.add_argument("--top", hint=Count, default=5, help="how many of them")
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
