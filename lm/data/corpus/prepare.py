"""Sources to token stores: read, clean, drop duplicates, split by document, train a tokenizer, encode.
Everything lands in <cache>/<fingerprint>, where the fingerprint covers all that decides the outcome, so that equal
settings over equal data are prepared once. It is built beside that folder and renamed at the end; a preparation that
was killed goes on after the last stage it finished. Two processes that want the same wait for each other. What is found
there is verified (`lm.data.corpus.integrity`): a damaged file is named, and a damaged report made again.

    report.json  tokenizer.model  dropped.jsonl
    <source>/train/ holdout/                 token stores
    <source>/train.jsonl.gz holdout.jsonl.gz the same documents as text, {"key": ..., "text": ...} a line
"""

import errno
import hashlib
import json
import re
import shutil
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from lm import atomic, config, paths
from lm.config import resolve
from lm.data.corpus import clean, dedup, integrity, sources, stages
from lm.data.corpus.store import Store, write_store
from lm.data.tokenizer import Tokenizer, from_bytes, load, read, train
from lm.errors import UserError

FORMAT = 2  # of the prepared folder and of what the stages do; a change of either makes everything be prepared anew
_SPLITS = ("train", "holdout")
_ENCODE_BYTES = 1 << 23  # of text in one call of the tokenizer
_TOKENIZER_BYTES = 1 << 30  # of text that a tokenizer is trained on, evenly taken from all
_EXAMPLES = 5  # of dropped documents and corrupt records, shown in the report; dropped.jsonl has all


@dataclass(frozen=True)
class Prepared:
    """What training and evaluation read. A source without held-out documents is not in `holdout`."""

    path: Path
    fingerprint: str
    train: Mapping[str, Store]
    holdout: Mapping[str, Store]
    tokenizer: Tokenizer
    report: Mapping[str, Any]

    def documents(self, source: str, split: str) -> Iterator[sources.Document]:
        """The cleaned text behind a store, in its order. Raises UserError, before the first, if the file was damaged."""
        integrity.check_file(self.path, self.report, f"{source}/{split}.jsonl.gz")
        return stages.read_texts(self.path / source / f"{split}.jsonl.gz")


def fingerprint(data: config.Data) -> str:
    """64 hex digits over all that decides the outcome of `prepare`: contents, settings, library versions, FORMAT."""
    tree = resolve.to_dict(data)
    settings = {k: tree[k] for k in ("clean", "dedup", "tokenizer", "holdout", "on_corrupt")}
    if data.tokenizer.path:
        settings["tokenizer"] = {"given": hashlib.sha256(read(data.tokenizer.path)).hexdigest()}
    whole = {
        "format": FORMAT,
        "sources": [[name, sources.identity(source)] for name, source in data.sources.items()],
        "settings": settings,
        "libraries": {name: version(name) for name in ("ftfy", "datasketch", "sentencepiece")},
    }
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def prepare(data: config.Data, *, progress: bool = True) -> Prepared:
    """The prepared data of these settings, built now if it is not in the cache.

    Raises UserError for what a user can mend: sources, encodings, an empty corpus, a vocabulary that is too large, a
    full disk.
    """
    from filelock import FileLock

    for name in data.sources:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UserError(f"data.sources.{name}: it becomes a folder; a name has letters, digits, '_', and then '.' and '-'")
    if not 0 <= data.holdout < 1:
        raise UserError(f"data.holdout={data.holdout} is not a fraction; 0.05 keeps a twentieth of the documents")
    if "://" in data.cache:
        raise UserError(f"data.cache={data.cache} must be a local folder (sources may be remote)")
    cache = paths.local(data.cache, name="data.cache")
    mark = fingerprint(data)
    done = cache / mark
    try:
        report = _report(done)
        if report is None:
            cache.mkdir(parents=True, exist_ok=True)
            with FileLock(cache / f"{mark}.lock"):
                report = _report(done)  # another process may have made it while we waited
                if report is None:
                    partial = cache / f"{mark}.partial"
                    partial.mkdir(exist_ok=True)
                    _Build(data, partial, cache, mark, progress).run()
                    _move(partial, done)
                    report = integrity.read_report(done, mark)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"no disk space left below {cache}; free some, or set data.cache to another disk") from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.EEXIST, errno.ENOTDIR):
            raise UserError(f"cannot write below {cache} ({error.strerror}); set data.cache to another folder") from None
        raise
    return _open(done, report)


def _report(done: Path) -> dict[str, Any] | None:
    """The report of a prepared folder; None, with a warning, if it is damaged, and None if nothing is there yet."""
    if not done.exists():
        return None
    try:
        return integrity.read_report(done, done.name)
    except integrity.Damaged as damage:
        warnings.warn(f"prepared data in {done}: {damage}; it is prepared again", stacklevel=3)
        return None


def _move(partial: Path, done: Path) -> None:
    """Moves `partial` to `done`. Where `done` is there, file by file, because others may be reading it: what they read
    stays, since the same settings give the same bytes. The report comes last, so that a kill leaves work to be done again.
    """
    if not done.exists():
        partial.rename(done)
        return
    files = sorted((p for p in partial.rglob("*") if p.is_file()), key=lambda p: p == partial / integrity.REPORT)
    for file in files:
        target = done / file.relative_to(partial)
        target.parent.mkdir(parents=True, exist_ok=True)
        file.replace(target)
    shutil.rmtree(partial)


def _open(path: Path, report: Mapping[str, Any]) -> Prepared:
    stores: dict[str, dict[str, Store]] = {split: {} for split in _SPLITS}
    for name, source in report["sources"].items():
        for split in source["splits"]:  # an empty one has no store
            stores[split][name] = Store.open(str(path / name / split))
    integrity.check(path, report)
    tokenizer = from_bytes((path / "tokenizer.model").read_bytes(), checked=True)
    return Prepared(path, path.name, stores["train"], stores["holdout"], tokenizer, report)


class _Build:
    """One preparation, stage by stage, in a folder that survives a kill."""

    def __init__(self, data: config.Data, path: Path, cache: Path, mark: str, progress: bool) -> None:
        self.data, self.path, self.cache, self.mark = data, path, cache, mark
        self.bar = stages.Progress(progress)

    def run(self) -> None:
        try:
            integrity.read_report(self.path, self.mark)
        except integrity.Damaged:
            pass  # as a rule there is none yet
        else:
            return self._tidy()  # killed after the report was written, before the rename
        start = time.monotonic()
        if self.data.tokenizer.path:
            load(self.data.tokenizer.path)  # a file that is refused is refused now, and not after hours of cleaning
        with self.bar:
            cleaned = {name: self._stage(f"{name}/clean", lambda n=name: self._clean(n)) for name in self.data.sources}
            dropped = self._stage("dedup", lambda: self._dedup(cleaned))
            split = {n: self._stage(f"{n}/split", lambda n=n: self._split(n, dropped[n])) for n in self.data.sources}
            self._stage("tokenizer", lambda: self._tokenizer(split))
            tokenizer = from_bytes((self.path / "tokenizer.model").read_bytes(), checked=True)
            encoded = {
                n: {s: self._stage(f"{n}/{s}", lambda n=n, s=s: self._encode(n, s, tokenizer)) for s in _SPLITS if split[n][s]}
                for n in self.data.sources
            }
        self._finish(cleaned, dropped, encoded, tokenizer, time.monotonic() - start)

    def _stage(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returns (JSON), from an earlier run that got this far if there was one."""
        done = self.path / f"{name}.done.json"
        if done.exists():
            try:
                return json.loads(done.read_bytes())
            except ValueError:
                pass  # damaged since: the stage is done again
        done.parent.mkdir(parents=True, exist_ok=True)
        atomic.write_json(done, make())
        return json.loads(done.read_bytes())

    def _clean(self, name: str) -> dict[str, Any]:
        data, source = self.data, self.data.sources[name]
        documents = sources.open_source(source, cache=data.cache, on_corrupt=data.on_corrupt)
        counts: Counter[str] = Counter()
        unreadable, keys, exact, near = list(documents.unreadable), [], [], []
        partial = self.path / name / "clean.jsonl"

        def read() -> Iterator[sources.Document]:
            for index in range(len(documents)):
                try:
                    yield documents[index]
                except sources.CorruptRecord as error:
                    if data.on_corrupt != "skip":
                        raise
                    unreadable.append(str(error))

        with partial.open("w", encoding="utf-8") as out:
            worked = stages.clean_all(read(), clean.resolved(data.clean, transcripts=documents.transcripts), data.dedup)
            for document, signature, found in self.bar.track(worked, f"clean {name}", total=len(documents)):
                counts += found
                counts["documents"] += 1
                if len(document.text.strip()) < data.clean.min_chars:
                    counts["short"] += 1
                    continue
                stages.check_space(self.cache, out.tell(), every=len(keys))
                keys.append(document.key)
                exact.append(signature.exact)
                if signature.near is not None:
                    near.append(signature.near)
                out.write(json.dumps({"key": document.key, "text": document.text}, ensure_ascii=False) + "\n")
        np.save(self.path / name / "exact.npy", np.frombuffer(b"".join(exact), np.uint8).reshape(-1, 32))
        np.save(self.path / name / "near.npy", np.stack(near) if near else np.zeros((0, 0), np.uint32))
        return {"counts": counts, "unreadable": unreadable, "keys": len(keys)}

    def _dedup(self, cleaned: Mapping[str, Any]) -> dict[str, Any]:
        """Over all sources as one row: for each, [index, reason, source of the kept, its index] of what goes."""
        settings, names = self.data.dedup, list(self.data.sources)
        starts = np.cumsum([0] + [cleaned[name]["keys"] for name in names])

        def signatures() -> Iterator[dedup.Signature]:
            for name in names:
                exact, near = (np.load(self.path / name / f"{part}.npy") for part in ("exact", "near"))
                for i in range(len(exact)):
                    yield dedup.Signature(exact[i].tobytes(), near[i] if len(near) else None)

        def place(index: int) -> tuple[str, int]:
            number = int(np.searchsorted(starts, index, side="right")) - 1
            return names[number], int(index - starts[number])

        out: dict[str, Any] = {name: [] for name in names}
        every = self.bar.track(signatures(), "duplicates", total=int(starts[-1]))
        for drop in dedup.duplicates(every, settings):
            name, index = place(drop.index)
            out[name].append([index, drop.reason, *place(drop.kept)])
        return out

    def _split(self, name: str, dropped: list[Any]) -> dict[str, int]:
        """Writes both texts; returns the number of documents in each. Held out are the smallest hashes of the keys."""
        gone = {index for index, *_ in dropped}
        folder = self.path / name
        kept = [(i, d) for i, d in enumerate(stages.read_texts(folder / "clean.jsonl", keys_only=True)) if i not in gone]
        if not kept:
            raise UserError(self._nothing_left(name, len(gone)))
        count = 0
        if self.data.holdout and len(kept) >= 2:
            count = min(max(1, round(self.data.holdout * len(kept))), len(kept) - 1)
        order = sorted((hashlib.sha256(d.key.encode("utf-8", "surrogatepass")).digest(), i) for i, d in kept)
        held = {i for _, i in order[:count]}
        with stages.TextWriter(folder / "train.jsonl.gz") as a, stages.TextWriter(folder / "holdout.jsonl.gz") as b:
            for i, document in enumerate(stages.read_texts(folder / "clean.jsonl")):
                if i not in gone:
                    (b if i in held else a).write(document)
        if not held:
            (folder / "holdout.jsonl.gz").unlink()
        return {"train": len(kept) - count, "holdout": count}

    def _nothing_left(self, name: str, duplicates: int) -> str:
        cleaned = json.loads((self.path / name / "clean.done.json").read_bytes())
        counts = cleaned["counts"]
        return (
            f"source {name!r} ({self.data.sources[name].path}) has no text: "
            f"{counts.get('documents', 0)} documents read, "
            f"{len(cleaned['unreadable'])} unreadable, {counts.get('short', 0)} shorter than data.clean.min_chars="
            f"{self.data.clean.min_chars}, {duplicates} duplicates; check its path and field"
        )

    def _tokenizer(self, split: Mapping[str, Any]) -> dict[str, Any]:
        settings, out = self.data.tokenizer, self.path / "tokenizer.model"
        if settings.path:
            tokenizer = load(settings.path)
        else:
            size = sum(self._text_bytes(name) for name in split)
            step = max(1, -(-size // _TOKENIZER_BYTES))
            texts = (
                document.text
                for name in split
                for i, document in enumerate(stages.read_texts(self.path / name / "train.jsonl.gz"))
                if i % step == 0
            )
            with self.bar.waiting(f"tokenizer ({settings.kind}, {settings.vocab_size})"):
                tokenizer = train(texts, settings)
        atomic.write_bytes(out, tokenizer.proto)
        return {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}

    def _text_bytes(self, name: str) -> int:
        return (self.path / name / "clean.jsonl").stat().st_size

    def _encode(self, name: str, split: str, tokenizer: Tokenizer) -> dict[str, int]:
        """Writes [bos] tokens [eos] of each document (a given tokenizer may lack either)."""
        ends = [[] if i is None else [i] for i in (tokenizer.bos_id, tokenizer.eos_id)]
        first, last = (np.array(i, np.int32) for i in ends)
        total: Counter[str] = Counter()
        documents = stages.read_texts(self.path / name / f"{split}.jsonl.gz")
        count = json.loads((self.path / name / "split.done.json").read_bytes())[split]
        tracked = self.bar.track(documents, f"encode {name} {split}", total=count)

        def encoded() -> Iterator[tuple[np.ndarray, int]]:
            for texts in stages.batches((d.text for d in tracked), _ENCODE_BYTES):
                for text, ids in zip(texts, tokenizer.encode_batch(texts), strict=True):
                    row, size = np.concatenate([first, ids, last]), len(text.encode())
                    total.update(documents=1, tokens=len(row), bytes=size)
                    yield row, size

        write_store(str(self.path / name / split), encoded(), vocab_size=tokenizer.vocab_size)
        return dict(total)

    def _finish(self, cleaned: Any, dropped: Any, encoded: Any, tokenizer: Tokenizer, seconds: float) -> None:
        keys = {
            n: [d.key for d in stages.read_texts(self.path / n / "clean.jsonl", keys_only=True)] for n in dropped if dropped[n]
        }
        lines: list[dict[str, str]] = []
        report: dict[str, Any] = {
            "fingerprint": self.mark,
            "format": FORMAT,
            "seconds": round(seconds, 1),
            "sources": {},
        }
        for name, source in self.data.sources.items():
            drops = [
                {"source": name, "key": keys[name][i], "reason": why, "kept": self._key(keys, other, j)}
                for i, why, other, j in dropped[name]
            ]
            lines += drops
            counts, unreadable = Counter(cleaned[name]["counts"]), cleaned[name]["unreadable"]
            reasons = Counter(drop["reason"] for drop in drops)
            whole = {key: sum(part[key] for part in encoded[name].values()) for key in ("documents", "tokens", "bytes")}
            report["sources"][name] = {
                "path": source.path,
                "read": counts["documents"] + len(unreadable),
                "dropped": {
                    "unreadable": len(unreadable),
                    "short": counts["short"],
                    "exact": reasons["exact"],
                    "near": reasons["near"],
                },
                "examples": {"unreadable": unreadable[:_EXAMPLES], "duplicates": drops[:_EXAMPLES]},
                "cleaned": {k: counts[k] for k in clean.COUNTED},
                **whole,
                "bytes_per_token": round(whole["bytes"] / whole["tokens"], 4),
                "splits": encoded[name],
            }
        report["tokenizer"] = {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}
        with (self.path / integrity.DROPPED).open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        kept = {p for p in self.path.rglob("*") if p.is_file()} - self._chunks() - self._scaffolding()
        atomic.write_json(self.path / integrity.REPORT, integrity.sealed(report, self.path, kept))
        self._tidy()

    def _tidy(self) -> None:
        """Removes the scaffolding, of no use to those who read."""
        for file in self._scaffolding():
            file.unlink()

    def _scaffolding(self) -> set[Path]:
        patterns = ("*.done.json", "*/*.done.json", "*/*.npy", "*/clean.jsonl", "*.tmp", "*/*.tmp")
        return {file for pattern in patterns for file in self.path.glob(pattern)}

    def _chunks(self) -> set[Path]:
        """The chunks of the stores' arrays, which carry their own checksums."""
        return set(self.path.glob("*/*/*/c/*"))

    def _key(self, keys: dict[str, list[str]], name: str, index: int) -> str:
        if name not in keys:
            keys[name] = [d.key for d in stages.read_texts(self.path / name / "clean.jsonl", keys_only=True)]
        return f"{name}/{keys[name][index]}"
