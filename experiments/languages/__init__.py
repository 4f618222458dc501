"""Controlled languages: texts from a generator, word-level, of which the entropy or the right answers are known.

A module of this package is one language, with `language(**settings) -> Language`. Its texts are made again each time and lie
in a folder that their contents name, so that a changed generator never meets the files of another.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lm import config
from lm.data.tokenizer import RESERVED_OF_WORDS
from lm.errors import UserError
from lm.paths import expanded  # a module of this package is called paths

FOLDER = "~/.cache/lm/languages"
_ENCODED = ("left", "target", "right", "text", "context", "question", "answer")  # fields of items and records; no label is


@dataclass(frozen=True)
class Language:
    """Generated texts in a folder that their content names, with what is known of them."""

    name: str
    folder: str  # "~/.cache/lm/languages/<name>-<12 hex digits of the content>": the same on every machine
    vocab_size: int  # for the model: all words of the training texts and the reserved ids, rounded up to a multiple of 64
    items: Mapping[str, str] = field(default_factory=dict)  # name -> file, for `Cell.items`, or of records to fine-tune on
    entropy: float | None = None  # nats a word of the held-out texts, exact under the generator
    heldout: tuple[str, ...] = ("heldout",)  # names of the held-out sources

    def data(self, *, encoder_length: int | None = None, decoder_length: int | None = None, **changes: Any) -> config.Data:
        """Trains on all of `train` and holds out all of the others, as they are: nothing is cleaned or dropped.

        Other fields of `config.Data` are `changes`.
        """
        source = lambda name, use: config.Source("jsonl", f"{self.folder}/{name}.jsonl", use=use)
        given: dict[str, Any] = dict(
            sources={"train": source("train", "train")} | {name: source(name, "holdout") for name in self.heldout},
            clean=config.Clean(unicode=False),
            dedup=config.Dedup(exact=False, near=None),
            tokenizer=config.Tokenizer("word", self.vocab_size),
            encoder_length=encoder_length,
            decoder_length=decoder_length,
        )
        return config.Data(**given | changes)


def write(
    name: str,
    train: Iterable[str],
    heldout: Iterable[str] | Mapping[str, Iterable[str]],
    *,
    items: Mapping[str, Iterable[Mapping[str, str]]] | None = None,
    entropy: float | None = None,
) -> Language:
    """The language of these documents, one text each. Writes their files, all or none, unless they are there.

    heldout: texts, or texts by the name of a held-out source, each of which has a loss of its own.
    items: records by the name of their file: {"left", "target", "right"} to be asked for, or others to fine-tune on.

    Raises UserError if a held-out text or an item has a word that no training text has: it would be unknown to every model.
    """
    held = heldout if isinstance(heldout, Mapping) else {"heldout": heldout}
    texts = {"train": list(train)} | {source: list(some) for source, some in held.items()}
    records = {file: list(some) for file, some in (items or {}).items()}
    if twice := set(texts) & set(records) or {"train"} & set(held):
        raise UserError(f"language {name}: {', '.join(sorted(twice))} names two of its files; rename one")
    words = {word for text in texts["train"] for word in text.split()}
    asked = (record.get(key, "") for some in records.values() for record in some for key in _ENCODED)
    for text in (*(text for source in held for text in texts[source]), *asked):
        if unknown := set(text.split()) - words:
            raise UserError(
                f"language {name}: no training text has the word {min(unknown)!r} of {text[:60]!r}; add one that has"
            )
    documents = {source: [{"text": text} for text in some] for source, some in texts.items()}
    files = {file: _lines(some) for file, some in {**documents, **records}.items()}
    digest = hashlib.sha256()
    for file, raw in sorted(files.items()):
        digest.update(f"{file} {len(raw)}\n".encode() + raw)
    folder = f"{FOLDER}/{name}-{digest.hexdigest()[:12]}"
    _write(expanded(folder), files)
    size = -(-(RESERVED_OF_WORDS + len(words)) // 64) * 64
    return Language(name, folder, size, {file: f"{folder}/{file}.jsonl" for file in records}, entropy, tuple(held))


def _lines(records: Iterable[Mapping[str, str]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes the files into a new folder that appears at once, complete."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    made = Path(tempfile.mkdtemp(prefix=f"{folder.name}.", dir=folder.parent))
    try:
        for file, raw in files.items():
            (made / f"{file}.jsonl").write_bytes(raw)
        try:
            os.rename(made, folder)
        except OSError:
            if not folder.exists():  # or another process was faster
                raise
    finally:
        shutil.rmtree(made, ignore_errors=True)
