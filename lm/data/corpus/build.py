"""The stages of a preparation: read, clean, drop duplicates, split, train a tokenizer, encode.

In a source of records, a document is the JSON of one record (`lm.data.records`). It goes through the same stages, but is not
cleaned; only exact copies are duplicates; its split depends on its question; and it is rendered instead of encoded.

A stage is tasks over shards (`lm.data.corpus.tasks`), which run where `lm.data.corpus.executors` says, and a few lines here
that join their results. The folder has the same bits wherever they ran.
"""

import functools
import itertools
import json
import os
import pickle
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lm import atomic, config
from lm.config.data import LABELLED, OWN_SPLIT
from lm.data import records, templates
from lm.data.corpus import (
    clean,
    executors,
    groups,
    integrity,
    kept,
    packages,
    quality,
    shards,
    sources,
    splitting,
    stages,
    store,
    tasks,
)
from lm.data.corpus.tasks import EXAMPLES, SPLITS, record
from lm.data.tokenizer import Tokenizer, from_bytes, load, train
from lm.errors import UserError

FORMAT = 2  # version of the prepared folder and of the stages; raise it to have everything prepared again
_TOKENIZER_BYTES = 1 << 30  # of text that a tokenizer is trained on, taken evenly from all sources
_STAND_IN = config.Tokenizer("word", 1024)  # has the special tokens of any that is trained here
_MEMBER = 1 << 32  # bytes of text after which a .gz file begins a new member: they are compressed by themselves
_LOOKED_AT = 32  # documents of a source, whose length tells whether it is small


class Build:
    """One preparation, stage by stage, in the folder `path`. After a kill, the next process continues with the same folder.

    `mark` is the fingerprint; `tokenizer` replaces `data.tokenizer`; `homes` has where cleaned documents of a source are kept.
    """

    def __init__(
        self,
        data: config.Data,
        path: Path,
        cache: Path,
        mark: str,
        tokenizer: Tokenizer | None,
        open_source: Callable[[config.Source, config.Data], sources.Documents],
        homes: Mapping[str, Path],
        progress: bool,
    ) -> None:
        self.data, self.path, self.cache, self.mark = data, path, cache, mark
        self.given, self.open_source, self.homes = tokenizer, open_source, homes
        self.work = path / ".work"
        self.bar = stages.Progress(progress)
        self.judge: quality.Judge | None = None
        self.size = 0  # bytes of all sources' texts, about

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
        self.work.mkdir(exist_ok=True)
        self._sweep()
        for name, home in self.homes.items():
            kept.take(home, self.work / name)
        if self.data.template is not None:
            stand_in = given or train(["word"], _STAND_IN)
            templates.of(self.data.template, stand_in)
            atomic.write_bytes(self.work / "template.model", stand_in.proto)
        self.judge = quality.judge(self.data.quality, lambda source: self.open_source(source, self.data))
        shards.pickled(self.work / "judge.pkl", self.judge)
        with self.bar, executors.chosen() as self.on:
            self.on.check(self.work)
            opened = {name: self._opened(name) for name in self.data.sources}
            self.size = sum(source["size"] for source in opened.values())
            cleaned = {n: self._stage(f"{n}/clean", lambda n=n: self._clean(n, opened[n])) for n in self.data.sources}
            self._stage("plan", lambda: self._plan(cleaned))
            dropped = self._stage("dedup", self._dedup)
            split = {n: self._stage(f"{n}/split", lambda n=n: self._split(n, cleaned[n])) for n in self.data.sources}
            classes = self._classes(split)
            self._stage("tokenizer", lambda: self._tokenizer(cleaned, split, given))
            encode = lambda name, of: lambda: self._encode(name, of, split[name], classes)
            encoded = {n: {s: self._stage(f"{n}/{s}", encode(n, s)) for s in SPLITS if split[n][s]} for n in self.data.sources}
        self._finish(cleaned, dropped, split, encoded, classes, time.monotonic() - start)

    def _stage(self, name: str, make: Callable[[], Any]) -> Any:
        """Runs `make` and stores its result as JSON; returns the stored result if this stage was finished before."""
        done = self.work / f"{name}.done.json"

        def result() -> Any:
            done.parent.mkdir(parents=True, exist_ok=True)
            atomic.write_json(done, make())
            return json.loads(done.read_bytes())

        return shards.stored(done, result)

    def _run(self, stage: Callable[[Any], Any], every: Iterable[Any], shown: str = "") -> list[Any]:
        """What the stage returns for each of its tasks."""
        calls = [functools.partial(stage, task) for task in every]
        results = self.on.run(calls, size=self.size)
        return list(self.bar.track(results, shown, total=len(calls)) if shown else results)

    # ------------------------------------------------------------------------------------------------------ cleaning

    def _opened(self, name: str) -> dict[str, Any]:
        """What `_open` found, of a source that lies where it lay then: the mark is that of its contents alone."""
        found = self._stage(f"{name}/open", lambda: self._open(name))
        if found["from"] != self._from(name):
            (self.work / f"{name}/open.done.json").unlink()
            found = self._stage(f"{name}/open", lambda: self._open(name))
        return found

    def _from(self, name: str) -> list[str]:
        return [self.data.sources[name].path, os.getcwd()]

    def _open(self, name: str) -> dict[str, Any]:
        """Opens a source, for all processes. Returns its number of documents, their bytes, about, and what cannot be read."""
        source = self.data.sources[name]
        documents = self.open_source(source, self.data)
        file = self.work / name / "documents.pkl"
        try:
            shards.pickled(file, documents)
        except (TypeError, AttributeError, pickle.PicklingError):
            shards.pickled(file, _Reopened(self.open_source, source, self.data))
        unreadable = list(documents.unreadable)
        return {
            "from": self._from(name),
            "count": len(documents),
            "size": _size(documents),
            "lost": len(unreadable),
            "unreadable": unreadable[:EXAMPLES],
            "left_out": dict(getattr(documents, "left_out", {})),  # files of a folder
        }

    def _clean(self, name: str, opened: Mapping[str, Any]) -> dict[str, Any]:
        """Cleans and signs all documents. Returns counts, and for each shard its number of documents and their bytes."""
        every = shards.cut(name, opened["count"], permutations=self.data.dedup.permutations)
        counts, lost, unreadable = Counter[str](), opened["lost"], list(opened["unreadable"])
        keys: list[int] = []
        size = 0
        stages.check_space(self.cache, 0)
        calls = [functools.partial(tasks.Clean(self.work, self.data, name), shard) for shard in every]
        for found in self.bar.track(self.on.run(calls, size=self.size), f"clean {name}", total=len(calls)):
            counts += Counter(found["counts"])
            lost += found["lost"]
            unreadable += found["unreadable"]
            keys.append(found["keys"])
            size += found["bytes"]
            stages.check_space(self.cache, size)
        known = {"left_out": opened["left_out"], "keys": keys, "bytes": size}
        return {"counts": counts, "lost": lost, "unreadable": unreadable[:EXAMPLES], **known}

    # ---------------------------------------------------------------------------------------- duplicates and the split

    def _plan(self, cleaned: Mapping[str, Any]) -> dict[str, Any]:
        return groups.planned({name: found["keys"] for name, found in cleaned.items()}, self.data.dedup, self.on.memory)

    @property
    def plan(self) -> groups.Plan:
        return groups.plan(self.work / "plan.done.json")

    def _dedup(self) -> dict[str, Any]:
        """Finds duplicates over all sources as one list. Returns for each source how many by reason, and the first."""
        with self.bar.waiting("duplicates"):
            groups.find(self.work, self.work / "plan.done.json", self.data.dedup, self.on, self.size)
        out: dict[str, Any] = {}
        for name in self.data.sources:
            found = self._run(tasks.Dropped(self.work, self.data, name), self.plan.spans_in(name))
            counts = sum((Counter(one["counts"]) for one in found), Counter[str]())
            examples = [example for one in found for example in one["examples"]]
            out[name] = {"exact": counts["exact"], "near": counts["near"], "examples": examples[:EXAMPLES]}
        return out

    def _split(self, name: str, cleaned: Mapping[str, Any]) -> dict[str, Any]:
        """Puts each document in a split. Returns the number of documents in each, and of each label if they have labels.

        The documents with the smallest hashes are held out, or all or none of them by `source.use`; a set that comes with a
        held-out split keeps it.
        """
        at, source, spans = (self.work, self.data, name), self.data.sources[name], self.plan.spans_in(name)
        histogram = splitting.Histogram(*at)
        self._run(histogram, spans)
        counts = splitting.counted(histogram, spans)
        total, cut = int(counts.sum()), splitting.NOTHING
        if not total:
            raise UserError(self._nothing_left(name, cleaned))
        if source.use == "holdout":
            cut = splitting.ALL
        elif source.use == "both" and source.kind not in OWN_SPLIT and self.data.holdout and total > 1:
            held = min(max(1, round(self.data.holdout * total)), total - 1)
            stage = splitting.Bin(*at, bin=splitting.bin_of(counts, held))
            self._run(stage, spans)
            cut = splitting.cut(stage, spans, counts, held, together=source.format != "text")
        found = self._run(splitting.Split(*at, cut=cut), range(len(cleaned["keys"])))
        out: dict[str, Any] = {split: sum(one[split] for one in found) for split in SPLITS}
        out |= {"shards": {split: [one[split] for one in found] for split in SPLITS}}
        out |= {"bytes": {split: [one["bytes"][split] for one in found] for split in SPLITS}}
        if source.format in LABELLED:
            out["labels"] = {s: sum((Counter(one["labels"][s]) for one in found), Counter[str]()) for s in SPLITS}
        return out

    def _classes(self, split: Mapping[str, Any]) -> list[str]:
        """The classes of all labelled sources, each once: those of a package in its order, others sorted. Raises UserError if
        there is only one.
        """
        classes: dict[str, None] = {}
        for name, source in self.data.sources.items():
            if source.format not in LABELLED:
                continue
            found = {label for counts in split[name]["labels"].values() for label in counts}
            classes |= dict.fromkeys(packages.find(source.path).classes if source.kind == "package" else sorted(found))
        if len(classes) == 1:
            raise UserError(
                f"all records have the label {next(iter(classes))!r}, so there is nothing to learn: give others too"
            )
        return list(classes)

    def _nothing_left(self, name: str, cleaned: Mapping[str, Any]) -> str:
        counts, source = cleaned["counts"], self.data.sources[name]
        texts = source.format == "text"
        poor = sum(quality.summary(counts)["dropped"].values())
        short = f"{poor} dropped by data.quality, " if poor else ""
        short += f"{counts.get('short', 0)} shorter than data.clean.min_chars={self.data.clean.min_chars}, " if texts else ""
        return (
            f"source {name!r} ({source.path}) has no {'text' if texts else f'{source.format} records'}: "
            f"{counts.get('documents', 0)} documents read, {cleaned['lost']} unreadable, {short}"
            f"{sum(cleaned['keys'])} duplicates; check its path and {'field' if texts else 'format'}"
        )

    # --------------------------------------------------------------------------------------------------------- tokens

    def _tokenizer(self, cleaned: Mapping[str, Any], split: Mapping[str, Any], given: Tokenizer | None) -> dict[str, Any]:
        settings, out = self.data.tokenizer, self.path / "tokenizer.model"
        tokenizer = given
        if tokenizer is None:
            trained = [name for name in split if split[name]["train"]]
            step = max(1, -(-sum(cleaned[name]["bytes"] for name in trained) // _TOKENIZER_BYTES))
            texts = (
                records.texts(record(document, self.data.sources[name].format))
                for name in trained
                for document in self._sample(name, split[name]["shards"]["train"], step)
            )
            with self.bar.waiting(f"tokenizer ({settings.kind}, {settings.vocab_size})"):
                tokenizer = train(texts, settings)
        atomic.write_bytes(out, tokenizer.proto)
        return {"vocab_size": tokenizer.vocab_size, "fingerprint": tokenizer.fingerprint}

    def _sample(self, name: str, counts: list[int], step: int) -> Iterator[sources.Document]:
        """Every document of a source's training split whose number there is a multiple of `step`."""
        stage, first = tasks.Encode(self.work, self.data, name, "train", ()), 0
        for number, count in enumerate(counts):
            yield from stage.cleaned(number).documents(stage.rows(number)[-first % step :: step])
            first += count

    def _encode(self, name: str, split: str, found: Mapping[str, Any], classes: list[str]) -> dict[str, int]:
        """Writes the token store of a split and its documents as text, and counts what is in it."""
        at, path = (self.work, self.data, name, split), self.path / name / split
        encode, texts = tasks.Encode(*at, classes=tuple(classes)), tasks.Texts(*at)
        members = list(_members(found["bytes"][split]))
        numbers = range(len(found["shards"][split]))
        calls = [functools.partial(texts, task) for task in members] + [functools.partial(encode, i) for i in numbers]
        results = self.bar.track(self.on.run(calls, size=self.size), f"encode {name} {split}", total=len(calls))
        each = list(results)[len(members) :]
        self._join((texts.folder / f"{number}.gz" for number, *_ in members), path.with_name(f"{split}.jsonl.gz"))
        total: Counter[str] = Counter()
        for counts in each:
            total.update(counts)

        vocab_size = from_bytes((self.path / "tokenizer.model").read_bytes(), checked=True).vocab_size
        fill = tasks.Fill(*at, dtype=store.dtype(vocab_size), loss="tokens_with_loss" in total)
        shards.save(fill.folder / "starts.npy", np.cumsum([0] + [counts.get("tokens", 0) for counts in each]))
        create = lambda: store.create(str(path), tokens=total["tokens"], vocab_size=vocab_size, loss=fill.loss)
        shards.once(fill.folder / "created.json", create)
        self._run(fill, range(-(-total["tokens"] // tasks.RANGE)))
        column = lambda name: (np.load(encode.folder / f"{number}.{name}.npy") for number in numbers)
        kinds = {str(labels.dtype) for labels in column("labels") if len(labels)}
        store.finish(str(path), column("lengths"), column("sizes"), column("labels"), min(kinds, default=None))
        return dict(total)

    # --------------------------------------------------------------------------------------------------------- report

    def _finish(self, cleaned: Any, dropped: Any, split: Any, encoded: Any, classes: list[str], seconds: float) -> None:
        report: dict[str, Any] = {
            "fingerprint": self.mark,
            "format": FORMAT,
            "seconds": round(seconds, 1),
            "sources": {},
        }
        for name, source in self.data.sources.items():
            counts, lost = Counter(cleaned[name]["counts"]), cleaned[name]["lost"]
            totals = {key: sum(part[key] for part in encoded[name].values()) for key in ("documents", "tokens", "bytes")}
            report["sources"][name] = {
                "path": source.path,
                "read": counts["documents"] + lost,
                "dropped": {
                    "unreadable": lost,
                    "short": counts["short"],
                    "exact": dropped[name]["exact"],
                    "near": dropped[name]["near"],
                },
                "examples": {"unreadable": cleaned[name]["unreadable"], "duplicates": dropped[name]["examples"]},
                "cleaned": {k: counts[k] for k in clean.COUNTED},
                **totals,
                "bytes_per_token": round(totals["bytes"] / totals["tokens"], 4),
                "splits": encoded[name],
            }
            if self.judge is not None:
                examples = [json.loads(line) for line in itertools.islice(self._rejected(name), EXAMPLES)]
                report["sources"][name]["quality"] = quality.summary(counts) | {"examples": examples}
            if cleaned[name]["left_out"]:
                report["sources"][name]["left_out"] = cleaned[name]["left_out"]
            if source.format != "text":
                about = {"format": source.format} | ({"labels": split[name]["labels"]} if "labels" in split[name] else {})
                report["sources"][name] |= about
        if classes:
            report["classes"] = classes
        if self.judge is not None and self.judge.facts:
            report["quality"] = self.judge.facts
        report["tokenizer"] = self._stage("tokenizer", lambda: None)
        self._join(self._lists(cleaned), self.path / integrity.DROPPED)
        written = {p for p in self.path.rglob("*") if p.is_file()} - self._chunks() - set(self.work.rglob("*"))
        atomic.write_json(self.path / integrity.REPORT, integrity.sealed(report, self.path, written))
        for name, home in self.homes.items():
            kept.keep(self.work / name, home)
        self._remove_temporary()

    def _lists(self, cleaned: Mapping[str, Any]) -> Iterator[Path]:
        """The files of which dropped.jsonl is made."""
        for name in self.data.sources:
            yield from (self.work / name / "dropped" / f"{span}.jsonl" for span in self.plan.spans_in(name))
        for name in self.data.sources if self.judge else ():
            yield from (self._rejects(name, number) for number in range(len(cleaned[name]["keys"])))

    def _rejects(self, name: str, number: int) -> Path:
        """The documents of a shard that were not good enough."""
        return shards.Cleaned(self.work, name, number).file("rejected.jsonl")

    def _rejected(self, name: str) -> Iterator[str]:
        for number in itertools.count():
            if not self._rejects(name, number).exists():
                return
            with self._rejects(name, number).open(encoding="utf-8") as lines:
                yield from lines

    def _join(self, files: Iterable[Path], target: Path) -> None:
        """Writes the files one after the other."""
        with shards.written(target) as out:
            for file in files:
                with file.open("rb") as part:
                    shutil.copyfileobj(part, out, 1 << 20)

    def _sweep(self) -> None:
        """Removes what a killed process left unfinished, and files of the layout before this one."""
        for pattern in ("*.tmp", "*/*.tmp", "*/clean.jsonl", "*/exact.npy", "*/near.npy", "*.done.json", "*/*.done.json"):
            for file in self.path.glob(pattern):
                if self.work not in file.parents:
                    file.unlink()

    def _remove_temporary(self) -> None:
        """Removes the files that only the stages read."""
        shutil.rmtree(self.work, ignore_errors=True)

    def _chunks(self) -> set[Path]:
        """The chunks of the stores' arrays, which carry their own checksums."""
        return set(self.path.glob("*/*/*/c/*"))


class _Reopened:
    """Documents that cannot be pickled: each process opens them by itself."""

    def __init__(self, *how: Any) -> None:
        self._how = how

    def __reduce__(self) -> tuple[Any, ...]:
        return self._how[0], self._how[1:]


def _size(documents: sources.Documents) -> int:
    """The bytes of the documents' texts, from a few of them."""
    found = []
    for index in np.linspace(0, len(documents) - 1, min(len(documents), _LOOKED_AT)).astype(int).tolist():
        try:
            found.append(len(documents[index].text))
        except UserError:
            continue  # it is refused, or counted, in its place
    return int(np.mean(found) * len(documents)) if found else 0


def _members(sizes: list[int]) -> Iterator[tuple[int, int, int]]:
    """Number, first and last shard, exclusive, of each member of a .gz file. `sizes`: bytes of each shard's documents."""
    number = first = held = 0
    for shard, size in enumerate(sizes):
        held += size
        if held >= _MEMBER or shard == len(sizes) - 1:
            yield number, first, shard + 1
            number, first, held = number + 1, shard + 1, 0
