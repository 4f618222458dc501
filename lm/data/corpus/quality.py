"""Judges texts by the settings in data.quality: which are dropped, and what is cut out of those that stay.

The order is FineWeb's (arXiv 2406.17557, section 3): language, rules of Gopher, C4 and FineWeb, then a classifier, evaluation
sets, personal data. The first that drops a text is the reason that dropped.jsonl names.
"""

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from lm import config
from lm.config import resolve
from lm.config.data import OWN_SPLIT
from lm.data import records
from lm.data.corpus import classifier, contamination, language, redact, rules
from lm.data.corpus.documents import Document, Documents

VERSION = 2  # of all that is judged; raise it to have texts judged again
_DROPPED, _CHANGED = "dropped by ", "changed by "  # of names in the counts of a stage
_SHOWN = 200  # characters of a dropped text in dropped.jsonl


@dataclass(frozen=True)
class Judge:
    """Judges one text at a time, in any process: whatever it needs travels with it."""

    settings: config.Quality
    model: classifier.Model | None = None
    index: contamination.Index | None = None

    def __call__(self, text: str) -> tuple[str, str | None, Counter[str]]:
        """Returns the text with what is cut or redacted, why it is dropped or None, and counts for `summary`. Of a dropped text
        nothing is cut, and personal data are redacted as in others: its beginning is shown."""
        counts: Counter[str] = Counter()
        kept, reason = self._judged(text, counts)
        if reason is None:
            return kept, None, counts
        return redact.redact(text, self.settings.redact)[0], reason, Counter({_DROPPED + reason: 1})

    def _judged(self, text: str, counts: Counter[str]) -> tuple[str, str | None]:
        c = self.settings
        if c.language and (broken := language.broken(text, c.language)):
            return text, f"language.{broken}"
        if c.gopher and (broken := rules.gopher(text, c.gopher)):
            return text, f"gopher.{broken}"
        if c.c4:
            text, broken, gone = rules.c4(text, c.c4)
            if broken:
                return text, f"c4.{broken}"
            counts[_CHANGED + "c4: lines cut"] += gone
        if c.fineweb and (broken := rules.fineweb(text, c.fineweb)):
            return text, f"fineweb.{broken}"
        if c.classifier and self.model and self.model.good(text) < c.classifier.least:
            return text, "classifier.least"
        if self.index:
            text, found, kept = self.index.cut(text)
            if not kept:
                return text, f"contamination.{found}"
            if found:
                counts[_CHANGED + f"contamination: cut, {found}"] += 1
        if c.redact:
            text, found = redact.redact(text, c.redact)
            counts.update({f"{_CHANGED}redact: {name}": n for name, n in found.items()})
        return text, None

    @property
    def facts(self) -> dict[str, Any]:
        """What the report says of the classifier and of the evaluation sets."""
        found: dict[str, Any] = {"classifier": self.model.facts} if self.model else {}
        return found | ({"contamination": self.index.facts} if self.index else {})


def judge(settings: config.Quality, open_source: Callable[[config.Source], Documents]) -> Judge | None:
    """Trains the classifier and indexes the evaluation sets, if there are any; None if all is off. Raises UserError if a
    package is not installed, and for what the sources cannot give."""
    if settings == config.Quality():
        return None
    if settings.language:
        language.check(settings.language)
    model = index = None
    if settings.classifier:
        model = classifier.train(_records(settings.classifier.examples, open_source), settings.classifier)
    if settings.contamination:
        sets = {name: _records(source, open_source) for name, source in settings.contamination.sets.items()}
        index = contamination.index(sets, settings.contamination)
    return Judge(settings, model, index)


def _records(source: config.Source, open_source: Callable[[config.Source], Documents]) -> list[records.Record]:
    """The records of a source; of a set that comes with a split, the held-out ones."""
    documents = open_source(source)
    every = (documents[i] for i in range(len(documents)))
    chosen = [d.text for d in every if source.kind not in OWN_SPLIT or d.key.startswith("holdout/")]
    return [
        records.Text(text) if source.format == "text" else records.parse(json.loads(text), source.format) for text in chosen
    ]


def identity(settings: config.Quality, of_source: Callable[[config.Source], Any]) -> dict[str, Any]:
    """A JSON tree of the settings that are on and of the contents that they name."""
    tree = {name: value for name, value in resolve.to_dict(settings).items() if value}
    if settings.classifier:
        tree["classifier"] |= {"examples": of_source(settings.classifier.examples)}
    if settings.contamination:
        tree["contamination"] |= {"sets": {name: of_source(s) for name, s in settings.contamination.sets.items()}}
    if settings.language:
        tree["identified by"] = language.version()
    return tree | {"version": VERSION}


def line(source: str, document: Document, reason: str) -> dict[str, str]:
    """What dropped.jsonl says of a dropped document."""
    return {"source": source, "key": document.key, "reason": reason, "text": document.text[:_SHOWN]}


def summary(counts: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """The part of a report that counts what went: `dropped` by reason, `changed` by kind."""
    part = lambda prefix: {k.removeprefix(prefix): n for k, n in sorted(counts.items()) if k.startswith(prefix)}
    return {"dropped": part(_DROPPED), "changed": part(_CHANGED)}
