"""Prepared data: token stores of all sources, below <cache>/<fingerprint>, built on first use.

The fingerprint covers everything that determines the result, so that equal settings over equal data are prepared once. A folder
is built as <fingerprint>.partial (`lm.data.corpus.build`) and renamed at the end; after a kill, the next preparation goes on
with the tasks that were not done. Of two processes that need the same data, one waits for the other. Prepared data is verified
when it is opened (`lm.data.corpus.integrity`): an error names a damaged file; a damaged report leads to a new preparation. The
cleaned documents of a source are kept for other data that has it too (`lm.data.corpus.kept`).

    report.json  tokenizer.model  dropped.jsonl
    <source>/train/ holdout/                 token stores
    <source>/train.jsonl.gz holdout.jsonl.gz the same documents as text, {"key": ..., "text": ...} a line; the text of a
                                             record is its JSON
"""

import errno
import functools
import hashlib
import json
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lm import config, paths
from lm.config import resolve
from lm.config.data import TURNS
from lm.data import records, templates
from lm.data.corpus import bucket, build, cloze, executors, integrity, quality, sources, stages
from lm.data.corpus.places import Url
from lm.data.corpus.store import Store
from lm.data.tokenizer import Tokenizer, from_bytes, identity_of, read
from lm.errors import UserError


@dataclass(frozen=True)
class Prepared:
    """Token stores by source, their tokenizer and report. A source without held-out documents is not in `holdout`."""

    path: Path | Url
    fingerprint: str
    train: Mapping[str, Store]
    holdout: Mapping[str, Store]
    tokenizer: Tokenizer
    report: Mapping[str, Any]

    @property
    def beside(self) -> Path:
        """A local folder for what is computed from this data: its own, unless it lies elsewhere."""
        if isinstance(self.path, Path):
            return self.path
        folder = paths.local(bucket.STAGING, name="the local folder of data.cache") / f"{self.fingerprint}.beside"
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def documents(self, source: str, split: str) -> Iterator[sources.Document]:
        """Yields the cleaned documents in a store, in its order. Raises UserError, before the first, if the file is damaged."""
        integrity.check_file(self.path, self.report, f"{source}/{split}.jsonl.gz")
        return stages.read_texts(self.path / source / f"{split}.jsonl.gz")

    def records(self, source: str, split: str) -> list[records.Record]:
        """The records in a store, in its order; [] if the split is empty."""
        about = self.report["sources"][source]
        if split not in about["splits"]:
            return []
        return [build.record(document, about.get("format", "text")) for document in self.documents(source, split)]

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes of all labelled sources; a store's labels are indices of them."""
        return tuple(self.report.get("classes", ()))


def fingerprint(data: config.Data, tokenizer: Tokenizer | None = None) -> str:
    """64 hex digits that identify the result of `prepare`: from contents, settings, library versions and FORMAT."""
    return _digest(_identities(data, tokenizer))


def _digest(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()


def _identities(data: config.Data, tokenizer: Tokenizer | None) -> dict[str, Any]:
    """The JSON tree whose digest is the fingerprint."""
    tree = resolve.to_dict(data)
    settings = {k: tree[k] for k in ("clean", "dedup", "holdout", "on_corrupt")}
    if tokenizer or data.tokenizer.path:
        proto = tokenizer.proto if tokenizer else read(data.tokenizer.path or "")
        settings["tokenizer"] = {"given": hashlib.sha256(proto).hexdigest()}
    else:
        settings["tokenizer"] = identity_of(data.tokenizer)
    if data.template is not None:
        settings["template"] = templates.text_of(data.template)
    if data.quality != config.Quality():
        settings["quality"] = quality.identity(data.quality, lambda source: _identity("quality", source))
    return {
        "format": build.FORMAT,
        "sources": [[name, _identity(name, source)] for name, source in data.sources.items()],
        "settings": settings,
        "libraries": {name: version(name) for name in ("ftfy", "datasketch", "sentencepiece")},
    }


def _cleaned(data: config.Data, identities: Mapping[str, Any]) -> dict[str, str]:
    """Source -> digest of what its cleaned documents depend on: itself, and the settings that `tasks.Clean` reads."""
    out = {}
    for name, about in identities["sources"]:
        read = {"clean", "dedup", "on_corrupt", "quality"}
        if data.sources[name].format in TURNS:  # checked by the template, in the words of the tokenizer
            read |= {"template", "tokenizer"} if data.template is not None else set()
        settings = {key: value for key, value in identities["settings"].items() if key in read}
        out[name] = _digest({**identities, "sources": [[name, about]], "settings": settings})
    return out


def _identity(name: str, source: config.Source) -> dict[str, Any]:
    if source.kind != "cloze":
        return sources.identity(source)
    if source.documents is None or source.length is None:
        raise UserError(
            f"data.sources.{name} asks about the documents of other data: set its documents and length; a fine-tuning takes "
            "them from the run in train.init_from"
        )
    about = {"documents": fingerprint(source.documents), "length": source.length}
    return {"kind": source.kind, "path": source.path, "version": cloze.VERSION, **about}


def prepare(data: config.Data, *, tokenizer: Tokenizer | None = None, progress: bool = True) -> Prepared:
    """Opens the prepared data of these settings, and builds it first if it is not in the cache. A given `tokenizer` is used
    instead of `data.tokenizer`.

    Raises UserError for faults of sources and encodings, an empty corpus, a vocabulary that is too large, and a full disk.
    """
    for name in data.sources:
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise UserError(f"data.sources.{name}: it becomes a folder; a name has letters, digits, '_', and then '.' and '-'")
    if not 0 <= data.holdout < 1:
        raise UserError(f"data.holdout={data.holdout} is not a fraction; 0.05 keeps a twentieth of the documents")
    identities = _identities(data, tokenizer)
    mark, elsewhere = _digest(identities), "://" in data.cache
    cleaned = {} if elsewhere else _cleaned(data, identities)  # nothing stays on the disk of what goes to a bucket
    locally = lambda cache: _local(data, paths.local(cache, name="data.cache"), mark, cleaned, tokenizer, progress)
    return _open(*(_elsewhere(data, mark, locally) if elsewhere else locally(data.cache)))


def _elsewhere(data: config.Data, mark: str, locally: Callable[[str], tuple[Path, Any]]) -> tuple[Url, dict[str, Any]]:
    """Where prepared data lies in a bucket, and its report. What is not there yet is prepared by this process, or waited for if
    this is not the first of a run."""
    home = bucket.home(data.cache, mark)
    if (report := bucket.report_of(home)) is None:
        from lm import distributed

        if distributed.process_id():
            report = bucket.wait(home, data.sources, seconds=distributed.seconds_of("LM_PREPARE_SECONDS", bucket.WAIT))
        else:
            report = bucket.put(home, lambda cache: locally(cache)[0])
    else:
        bucket.tidy(home)
    return home, report


def _local(
    data: config.Data, cache: Path, mark: str, cleaned: Mapping[str, str], tokenizer: Tokenizer | None, progress: bool
) -> tuple[Path, dict[str, Any]]:
    """The folder of prepared data below a local cache, and its report."""
    from filelock import FileLock

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
                    open_source = functools.partial(_open_source, str(cache))  # of all nodes of a cluster, wherever their ~ is
                    homes = {name: cache / "cleaned" / digest for name, digest in cleaned.items()}
                    build.Build(data, partial, cache, mark, tokenizer, open_source, homes, progress).run()
                    _move(partial, done)
                    report = integrity.read_report(done, mark)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError(f"no disk space left below {cache}; free some, or set data.cache to another disk") from None
        if error.errno in (errno.EACCES, errno.EROFS, errno.EEXIST, errno.ENOTDIR):
            raise UserError(f"cannot write below {cache} ({error.strerror}); set data.cache to another folder") from None
        raise
    return done, report


def _open_source(cache: str, source: config.Source, data: config.Data) -> sources.Documents:
    """`cache`: local folder of packages and TFDS."""
    if source.kind != "cloze":
        return sources.open_source(source, cache=cache, on_corrupt=data.on_corrupt)
    assert source.documents and source.length  # or it had no fingerprint
    return sources.Splits(cloze.load(source.path, prepare(source.documents, progress=False), length=source.length))


def _report(done: Path) -> dict[str, Any] | None:
    """The report of a prepared folder; None if there is no folder yet, and, with a warning, if the report is damaged."""
    if not done.exists():
        return None
    try:
        return integrity.read_report(done, done.name)
    except integrity.Damaged as damage:
        warnings.warn(f"prepared data in {done}: {damage}; it is prepared again", stacklevel=3)
        return None


def _move(partial: Path, done: Path) -> None:
    """Moves `partial` to `done`. If `done` exists, moves file by file, because other processes may be reading it; its contents
    stay the same, since equal settings give equal bytes. The report is moved last: without it, the data counts as not prepared.
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


def _open(path: Path | Url, report: Mapping[str, Any]) -> Prepared:
    stores: dict[str, dict[str, Store]] = {split: {} for split in build.SPLITS}
    limit = executors.limit()  # of a preparation for its own sake, which reads nothing afterwards
    most = None if limit is None else limit // 2  # an array and its chunks are held at once
    for name, source in report["sources"].items():
        for split in source["splits"]:  # an empty one has no store
            stores[split][name] = Store.open(str(path / name / split), most=most)
    integrity.check(path, report)
    tokenizer = from_bytes((path / "tokenizer.model").read_bytes(), checked=True)
    return Prepared(path, path.name, stores["train"], stores["holdout"], tokenizer, report)
