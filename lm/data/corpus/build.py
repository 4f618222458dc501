"""The stages of a preparation: read, clean, drop duplicates, split, train a tokenizer, encode.

In a source of records, a document is the JSON of one record (`lm.data.records`). It goes through the same stages, but is not
cleaned; only exact copies are duplicates; its split depends on its question; and it is rendered instead of encoded.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm import atomic, config
from lm.config.data import OWN_SPLIT, TURNS
from lm.data import records, templates
from lm.data.corpus import clean, dedup, integrity, packages, sources, stages
from lm.data.corpus.documents import SKIP
from lm.data.corpus.store import Entry, write_store
from lm.data.render import check, render
from lm.data.tokenizer import Tokenizer, from_bytes, load, train
from lm.errors import UserError

FORMAT = 2  # version of the prepared folder and of the stages; raise it to have everything prepared again
SPLITS = ("train", "holdout")
_ENCODE_BYTES = 1 << 23  # of text in one call of the tokenizer
_TOKENIZER_BYTES = 1 << 30  # of text that a tokenizer is trained on, taken evenly from all sources
_STAND_IN = config.Tokenizer("word", 1024)  # has the special tokens of any that is trained here
_EXAMPLES = 5  # of dropped documents and corrupt records, shown in the report; dropped.jsonl has all


class Build:
    """One preparation, stage by stage, in the folder `path`. After a kill, the next process continues with the same folder.

    `mark` is the fingerprint; `tokenizer` replaces `data.tokenizer`.
    """

    def __init__(
        self,
        data: config.Data,
        path: Path,
        cache: Path,
        mark: str,
        tokenizer: Tokenizer | None,
        open_source: Callable[[config.Source, config.Data], sources.Documents],
        progress: bool,
    ) -> None:
        self.data, self.path, self.cache, self.mark = data, path, cache, mark
        self.given, self.open_source = tokenizer, open_source
        self.bar = stages.Progress(progress)
        self.template: templates.Template | None = None

    def run(self) -> None:
        """Runs the stages that are not finished yet, and writes the report."""
        try:
            integrity.read_report(self.path, self.mark)
        except integrity.Damaged:
            pass  # usually there is none yet
        else:
            return self._remove_temporary()  # killed after the report was written, before the rename
        start = time.monotonic()
        # To refuse a bad file or template now, not after hours of cleaning.
        given = self.given or (load(self.data.tokenizer.path) if self.data.tokenizer.path else None)
        if self.data.template is not None:
            self.template = templates.of(self.data.template, given or train(["word"], _STAND_IN))
        with self.bar:
            cleaned = {name: self._stage(f"{name}/clean", lambda n=name: self._clean(n)) for name in self.data.sources}
            dropped = self._stage("dedup", lambda: self._dedup(cleaned))
            split = {n: self._stage(f"{n}/split", lambda n=n: self._split(n, dropped[n])) for n in self.data.sources}
            classes = self._classes(split)
            self._stage("tokenizer", lambda: self._tokenizer(split))
            tokenizer = from_bytes((self.path / "tokenizer.model").read_bytes(), checked=True)
            encode = lambda name, of: lambda: self._encode(name, of, tokenizer, classes)
            encoded = {n: {s: self._stage(f"{n}/{s}", encode(n, s)) for s in SPLITS if split[n][s]} for n in self.data.sources}
        self._finish(cleaned, dropped, split, encoded, classes, tokenizer, time.monotonic() - start)

    def _stage(self, name: str, make: Callable[[], Any]) -> Any:
        """Runs `make` and stores its result as JSON; returns the stored result if this stage was finished before."""
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
        """Writes the cleaned documents and their signatures; returns counts, and an error text for each unreadable document."""
        data, source = self.data, self.data.sources[name]
        documents = self.open_source(source, data)
        texts = source.format == "text"
        counts: Counter[str] = Counter()
        unreadable, keys, exact, near = list(documents.unreadable), [], [], []
        partial = self.path / name / "clean.jsonl"

        def read() -> Iterator[sources.Document]:
            for index in range(len(documents)):
                try:
                    yield self._accepted(documents[index], name)
                except sources.CorruptRecord as error:
                    if data.on_corrupt != "skip":
                        raise
                    unreadable.append(str(error))

        with partial.open("w", encoding="utf-8") as out:
            if texts:
                worked = stages.clean_all(read(), clean.resolved(data.clean, transcripts=documents.transcripts), data.dedup)
            else:
                worked = ((d, _signature(d, source), Counter[str]()) for d in read())
            for document, signature, found in self.bar.track(worked, f"clean {name}", total=len(documents)):
                counts += found
                counts["documents"] += 1
                if texts and len(document.text.strip()) < data.clean.min_chars:
                    counts["short"] += 1
                    continue
                stages.check_space(self.cache, out, every=len(keys))
                keys.append(document.key)
                exact.append(signature.exact)
                if signature.near is not None:
                    near.append(signature.near)
                out.write(json.dumps({"key": document.key, "text": document.text}, ensure_ascii=False) + "\n")
        np.save(self.path / name / "exact.npy", np.frombuffer(b"".join(exact), np.uint8).reshape(-1, 32))
        np.save(self.path / name / "near.npy", np.stack(near) if near else np.zeros((0, 0), np.uint32))
        return {"counts": counts, "unreadable": unreadable, "keys": len(keys)}

    def _accepted(self, document: sources.Document, name: str) -> sources.Document:
        """The document. CorruptRecord if it is a conversation that the chat template refuses."""
        format = self.data.sources[name].format
        if self.template is not None and format in TURNS:
            try:
                check(record(document, format), self.template)
            except UserError as error:
                raise sources.CorruptRecord(f"{name}/{document.key}: {error}; {SKIP}") from None
        return document

    def _dedup(self, cleaned: Mapping[str, Any]) -> dict[str, Any]:
        """Finds duplicates over all sources as one list. Returns for each source a list of [index, reason, source of the kept
        document, its index there]."""
        settings, names = self.data.dedup, list(self.data.sources)
        starts = np.cumsum([0] + [cleaned[name]["keys"] for name in names])

        def signatures() -> Iterator[dedup.Signature]:
            for name in names:
                exact, near = (np.load(self.path / name / f"{part}.npy") for part in ("exact", "near"))
                for i in range(len(exact)):
                    yield dedup.Signature(exact[i].tobytes(), near[i] if len(near) else None)

        def located(index: int) -> tuple[str, int]:
            number = int(np.searchsorted(starts, index, side="right")) - 1
            return names[number], int(index - starts[number])

        out: dict[str, Any] = {name: [] for name in names}
        every = self.bar.track(signatures(), "duplicates", total=int(starts[-1]))
        for drop in dedup.duplicates(every, settings):
            name, index = located(drop.index)
            out[name].append([index, drop.reason, *located(drop.kept)])
        return out

    def _split(self, name: str, dropped: list[Any]) -> dict[str, Any]:
        """Writes the documents of both splits. Returns the number of documents in each, and of each label if they have labels.

        The documents with the smallest hashes are held out, or all or none of them by `source.use`; a set that comes with a
        held-out split keeps it.
        """
        gone = {index for index, *_ in dropped}
        folder, source = self.path / name, self.data.sources[name]
        texts = source.format == "text"
        every = enumerate(stages.read_texts(folder / "clean.jsonl", keys_only=texts))
        digest = lambda d: (
            _sha256(d.key.encode("utf-8", "surrogatepass")) if texts else records.question_digest(record(d, source.format))
        )
        if source.kind in OWN_SPLIT:
            kept = [(b"", i, d.key.startswith("holdout/")) for i, d in every if i not in gone]
            held = {i for _, i, out in kept if out}
        else:
            kept = sorted((digest(d), i, False) for i, d in every if i not in gone)
            share = self._held_out([key for key, *_ in kept], together=not texts)
            held = {i for _, i, _ in kept[: {"both": share, "train": 0, "holdout": len(kept)}[source.use]]}
        if not kept:
            raise UserError(self._nothing_left(name, len(gone)))
        labels = {split: Counter[str]() for split in SPLITS}
        with stages.TextWriter(folder / "train.jsonl.gz") as a, stages.TextWriter(folder / "holdout.jsonl.gz") as b:
            for i, document in enumerate(stages.read_texts(folder / "clean.jsonl")):
                if i not in gone:
                    (b if i in held else a).write(document)
                    if source.format == "labelled":
                        labels["holdout" if i in held else "train"][json.loads(document.text)["label"]] += 1
        counts: dict[str, Any] = {"train": len(kept) - len(held), "holdout": len(held)}
        for split in SPLITS:
            if not counts[split]:
                (folder / f"{split}.jsonl.gz").unlink()
        return counts | ({"labels": labels} if source.format == "labelled" else {})

    def _held_out(self, hashes: list[bytes], *, together: bool) -> int:
        """How many of the documents, sorted by hash, are held out. `together`: documents with equal hashes, which are records
        with the same question, must be in the same split.
        """
        if not self.data.holdout or len(hashes) < 2:
            return 0
        count = min(max(1, round(self.data.holdout * len(hashes))), len(hashes) - 1)
        if together:
            while count < len(hashes) and hashes[count] == hashes[count - 1]:
                count += 1
            if count == len(hashes):  # training needs at least one
                count = hashes.index(hashes[-1])
        return count

    def _classes(self, split: Mapping[str, Any]) -> list[str]:
        """The classes of all labelled sources, each once: those of a package in its order, others sorted. Raises UserError if
        there is only one.
        """
        classes: dict[str, None] = {}
        for name, source in self.data.sources.items():
            if source.format != "labelled":
                continue
            found = {label for counts in split[name]["labels"].values() for label in counts}
            classes |= dict.fromkeys(packages.find(source.path).classes if source.kind == "package" else sorted(found))
        if len(classes) == 1:
            raise UserError(
                f"all records have the label {next(iter(classes))!r}, so there is nothing to learn: give others too"
            )
        return list(classes)

    def _nothing_left(self, name: str, duplicates: int) -> str:
        cleaned = json.loads((self.path / name / "clean.done.json").read_bytes())
        counts = cleaned["counts"]
        source = self.data.sources[name]
        texts = source.format == "text"
        short = f"{counts.get('short', 0)} shorter than data.clean.min_chars={self.data.clean.min_chars}, " if texts else ""
        return (
            f"source {name!r} ({source.path}) has no {'text' if texts else f'{source.format} records'}: "
            f"{counts.get('documents', 0)} documents read, {len(cleaned['unreadable'])} unreadable, {short}"
            f"{duplicates} duplicates; check its path and {'field' if texts else 'format'}"
        )

    def _tokenizer(self, split: Mapping[str, Any]) -> dict[str, Any]:
        settings, out = self.data.tokenizer, self.path / "tokenizer.model"
        if self.given or settings.path:
            tokenizer = self.given or load(settings.path or "")
        else:
            trained = [name for name in split if split[name]["train"]]
            size = sum(self._text_bytes(name) for name in trained)
            step = max(1, -(-size // _TOKENIZER_BYTES))
            texts = (
                records.texts(record(document, self.data.sources[name].format))
                for name in trained
                for i, document in enumerate(stages.read_texts(self.path / name / "train.jsonl.gz"))
                if i % step == 0
            )
            with self.bar.waiting(f"tokenizer ({settings.kind}, {settings.vocab_size})"):
                tokenizer = train(texts, settings)
        atomic.write_bytes(out, tokenizer.proto)
        return {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}

    def _text_bytes(self, name: str) -> int:
        return (self.path / name / "clean.jsonl").stat().st_size

    def _encode(self, name: str, split: str, tokenizer: Tokenizer, classes: list[str]) -> dict[str, int]:
        """Writes the token store of a split, and counts what is in it."""
        total: Counter[str] = Counter()
        documents = stages.read_texts(self.path / name / f"{split}.jsonl.gz")
        count = json.loads((self.path / name / "split.done.json").read_bytes())[split]
        tracked = self.bar.track(documents, f"encode {name} {split}", total=count)
        format, template = self.data.sources[name].format, templates.of(self.data.template, tokenizer)

        def entries() -> Iterator[Entry]:
            for batch in stages.batches(tracked, _ENCODE_BYTES):
                for entry in _encoded([record(document, format) for document in batch], tokenizer, classes, template):
                    total.update(documents=1, tokens=len(entry.ids), bytes=entry.num_bytes)
                    if entry.loss is not None:
                        total["tokens_with_loss"] += int(entry.loss.sum())
                    yield entry

        write_store(str(self.path / name / split), entries(), vocab_size=tokenizer.vocab_size)
        return dict(total)

    def _finish(
        self, cleaned: Any, dropped: Any, split: Any, encoded: Any, classes: list[str], tokenizer: Tokenizer, seconds: float
    ) -> None:
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
            totals = {key: sum(part[key] for part in encoded[name].values()) for key in ("documents", "tokens", "bytes")}
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
                **totals,
                "bytes_per_token": round(totals["bytes"] / totals["tokens"], 4),
                "splits": encoded[name],
            }
            if source.format != "text":
                about = {"format": source.format} | ({"labels": split[name]["labels"]} if "labels" in split[name] else {})
                report["sources"][name] |= about
        if classes:
            report["classes"] = classes
        report["tokenizer"] = {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}
        with (self.path / integrity.DROPPED).open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        kept = {p for p in self.path.rglob("*") if p.is_file()} - self._chunks() - self._temporary()
        atomic.write_json(self.path / integrity.REPORT, integrity.sealed(report, self.path, kept))
        self._remove_temporary()

    def _remove_temporary(self) -> None:
        """Removes the files that only the stages read."""
        for file in self._temporary():
            file.unlink()

    def _temporary(self) -> set[Path]:
        patterns = ("*.done.json", "*/*.done.json", "*/*.npy", "*/clean.jsonl", "*.tmp", "*/*.tmp")
        return {file for pattern in patterns for file in self.path.glob(pattern)}

    def _chunks(self) -> set[Path]:
        """The chunks of the stores' arrays, which carry their own checksums."""
        return set(self.path.glob("*/*/*/c/*"))

    def _key(self, keys: dict[str, list[str]], name: str, index: int) -> str:
        if name not in keys:
            keys[name] = [d.key for d in stages.read_texts(self.path / name / "clean.jsonl", keys_only=True)]
        return f"{name}/{keys[name][index]}"


# --------------------------------------------------------------------------------------------------------- documents


def record(document: sources.Document, format: str) -> records.Record:
    """The record in a document that `sources` made."""
    return records.Text(document.text) if format == "text" else records.parse(json.loads(document.text), format)


def _sha256(raw: bytes) -> bytes:
    return hashlib.sha256(raw).digest()


def _signature(document: sources.Document, source: config.Source) -> dedup.Signature:
    """Equal records are duplicates, but for those of a set that comes with a split: its key makes each unique."""
    key = f"{source.path}/{document.key}" if source.kind in OWN_SPLIT else ""
    return dedup.Signature(_sha256(f"{source.format} {key} {document.text}".encode()), None)


def _encoded(
    every: list[records.Record], tokenizer: Tokenizer, classes: list[str], template: templates.Template | None
) -> Iterator[Entry]:
    """Records as the store holds them; a text has no loss mask, because every token of it has loss."""
    index = {name: i for i, name in enumerate(classes)}
    for one, rendered in zip(every, render(every, tokenizer, template), strict=True):
        loss = None if isinstance(one, records.Text) else rendered.loss
        label = index[one.label] if isinstance(one, records.Labelled) else _judgement(one)
        yield Entry(rendered.ids, len(records.texts(one).encode()), loss, label)


def _judgement(one: records.Record) -> int | float | None:
    """What is stored beside the tokens of two answers, their margin, and of a judged one, 1 if it is good, else 0."""
    if isinstance(one, records.Feedback):
        return int(one.label)
    return one.margin if isinstance(one, records.Preference) else None
