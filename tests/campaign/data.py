"""Unusual corpora and unusual names of directories."""

import gzip
import json
import os
from pathlib import Path

from tests.campaign.bench import Bench, Injection, refused, strict


def _line(text: str) -> str:
    return json.dumps({"text": text})


def _words(bench: Bench) -> list[str]:
    return bench.corpus.read_text().splitlines()


def _read(title: str, make, *, name: str = "odd.jsonl", flags: tuple[str, ...] = (), documents: int | None = 40) -> Injection:
    """A readable corpus: `make(lines)` makes its bytes from forty lines of JSON, and it must yield the given number of
    documents."""

    def run(bench: Bench) -> str:
        workdir = bench.folder()
        path = workdir.with_name(name)
        path.write_bytes(make(_words(bench)))
        said = bench.train(workdir, f"--config.data.sources.tiny.path={path}", "--config.train.steps=2", *flags)
        assert said.code == 0, f"ended with {said.code}: {said.last[:300]}"
        cache = bench.root / "cache"
        newest = max(cache.glob("*/report.json"), key=lambda p: p.stat().st_mtime_ns)
        source = json.loads(newest.read_text())["sources"]["tiny"]
        assert documents is None or source["documents"] == documents, f"{source['documents']} documents, not {documents}"
        return f"read: {source['documents']} documents, {source['dropped']}"

    return Injection("corpus", title, run)


def _bad(title: str, make, cause: str, *, name: str = "odd.jsonl", flags: tuple[str, ...] = ()) -> Injection:
    def run(bench: Bench) -> str:
        workdir = bench.folder()
        path = workdir.with_name(name)
        path.write_bytes(make(_words(bench)))
        return refused(bench.train(workdir, f"--config.data.sources.tiny.path={path}", *flags), cause)

    return Injection("corpus", title, run)


def _joined(lines: list[str]) -> bytes:
    return ("\n".join(lines) + "\n").encode()


SKIP = ("--config.data.on_corrupt=skip",)
DEEP = '{"text": "a b c", "deep": ' + "[" * 100_000 + "]" * 100_000 + "}"
CORPORA = [
    _read("UTF-16", lambda x: _joined(x).decode().encode("utf-16"), flags=("--config.data.sources.tiny.encoding=utf-16",)),
    _read("a byte order mark", lambda x: b"\xef\xbb\xbf" + _joined(x)),
    _read("no newline at the end", lambda x: _joined(x)[:-1]),
    _read("Windows line ends", lambda x: _joined(x).replace(b"\n", b"\r\n")),
    _read("lines of blanks", lambda x: _joined([*x[:3], " " * 50, "\t" * 9, "", *x[3:]])),
    _read("deep nesting, skipped", lambda x: _joined([*x, DEEP]), flags=SKIP),
    _read("malformed lines, skipped", lambda x: _joined([*x, "{", "[]", '{"text": 5}', '{"text": "\\ud83d"}']), flags=SKIP),
    _read("a line of 20 MB", lambda x: _joined([*x, _line("lorem ipsum " * 1_700_000)]), documents=41),
    _read("control characters and escapes", lambda x: _joined([*x, _line("\x1b[2J\x00 bell\x07 " * 30)]), documents=41),
    _bad("deep nesting", lambda x: _joined([*x, DEEP]), "line 41"),
    _bad("empty", lambda x: b"", "odd.jsonl"),
    _bad("zeros", lambda x: bytes(10_000), "line 1|malformed|odd"),
    _bad("latin-1", lambda x: _joined([*x, '{"text": "caf\xe9"}']).replace(b"\xc3\xa9", b"\xe9"), "invalid utf-8"),
    _bad("gzip cut short", lambda x: gzip.compress(_joined(x))[:-20], "odd.jsonl.gz", name="odd.jsonl.gz"),
    _bad("one document, nothing held out for baselines", lambda x: _joined(x[:1]), "held out|holdout|baselines",
         flags=("--config.evaluate.baselines=True",)),
    _bad("ArrayRecord of other bytes", _joined, "odd.jsonl", flags=("--config.data.sources.tiny.kind=array_record",)),
]  # fmt: skip


def _named(name: bytes) -> Injection:
    """A workdir of this name either works, with all its files inside, or is refused before anything is done."""
    shown = name.decode(errors="backslashreplace").replace("\n", "\\n")
    shown = shown if len(shown) < 40 else shown[:20] + "..."

    def run(bench: Bench) -> str:
        parent = bench.folder().parent
        workdir = Path(os.fsdecode(os.fsencode(parent) + b"/" + name))
        said = bench.train(workdir, "--config.train.steps=2")
        if said.code:
            assert not list(parent.rglob("checkpoints/*")), "began to save"
            return refused(said, "workdir|name|long")
        assert strict(workdir / "summary.json")["step"] == 2
        arrays = [p for p in (workdir / "checkpoints" / "2" / "state").rglob("*") if p.is_file()]
        assert arrays, "no arrays in the checkpoint"
        assert {p.name for p in parent.iterdir()} == {workdir.relative_to(parent).parts[0]}, "something lies beside the workdir"
        again = bench.train(workdir, "--config.train.steps=2")
        assert again.code == 0 and "going on from step 2" in again.err, f"not found again: {again.err[-200:]}"
        return "works, found again"

    return Injection("workdir", f"`{shown}`", run)


def _cache(name: str) -> Injection:
    def run(bench: Bench) -> str:
        workdir = bench.folder()
        cache = workdir.with_name(name)
        flags = [f"--config.data.cache={cache}", "--config.train.steps=2"]
        said = bench.train(workdir, *flags)
        if said.code:
            return refused(said, "cache")
        assert {p.name for p in workdir.parent.iterdir()} == {name, "run"}, "something lies beside the cache"
        return "works"

    return Injection("data cache", f"named `{name}`", run)


def _workdir(title: str, path: str, cause: str) -> Injection:
    return Injection("workdir", title, lambda bench: refused(bench.train(path.format(bench.corpus)), cause))


INJECTIONS = [
    *CORPORA,
    *(
        _named(name)
        for name in (b"a\\b/r", b"a%41b", b"a#b", b"a?b", b"a b", b"a\nb", b"caf\xc3\xa9", b"\xff\xfe/r", b"n" * 300)
    ),
    *(_cache(name) for name in ("a%41b", "a#b", "a?b", "a\\b", "a b")),
    _workdir("empty", "", "workdir"),
    _workdir("a file", "{}", "is a file|directory"),
    _workdir("below a file", "{}/run", "workdir"),
    _workdir("in /proc", "/proc/run", "workdir"),
    _workdir("https", "https://example.org/run", "workdir"),
]
