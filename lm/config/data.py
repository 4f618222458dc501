"""The data: sources, cleaning, deduplication, the tokenizer, rows."""

import datetime
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from lm.config.quality import C4, FineWeb, Gopher, Language
from lm.config.ranges import (
    LARGEST,
    Count,
    Decay,
    Length,
    Name,
    Natural,
    NonNegative,
    Positive,
    PositiveShare,
    Range,
    Share,
    Vocabulary,
    Words,
    Year,
)
from lm.errors import UserError


def day(text: str | int) -> datetime.date:
    """The day of a date in ISO's form, with a time or without; of a year or a month its first. A year may be a number of four
    digits. ValueError if it is none."""
    if isinstance(text, int):
        if not 1000 <= text <= 9999:
            raise ValueError(text)
        return datetime.date(text, 1, 1)
    if short := re.fullmatch(r"(\d{4})(?:-(\d\d))?", text):
        return datetime.date(int(short[1]), int(short[2] or 1), 1)
    return datetime.datetime.fromisoformat(text).date()


Format = Literal["text", "labelled", "pair", "messages", "preference", "feedback", "speech", "captioned", "tree"]


@dataclass(frozen=True)
class Source:
    """Where documents, or records to fine-tune on, come from. `field` is that of a record that holds the text.

    kind `tfds`: `path` is a builder name ("sotu" and "stdlib" are ours; "lm1b", "c4/en"...), `split` one of its splits; a
    record's fields are features, a list of objects a Sequence of them.
    Kinds of files: `path` is a file, a glob or a folder with all that is below it, local or gs://, s3://, hf:// or https://
    (of a web server a folder ends in a slash).
    kind `text`: a file a document; of a folder .txt, .md and source code, without hidden and binary files.
    kind `jsonl`: .jsonl, .jsonl.gz or .jsonl.zst, a line a document. kind `array_record`: local, a record a document.
    kind `parquet`: .parquet, a row a document; a record's fields are columns.
    kind `csv`: .csv, .tsv or these with .gz, a row a document below the row of names, which are those of columns.
    kind `warc`: .warc, .warc.gz or .wet.gz of a web crawl, a page a document: its main text, without menus and markup.
    kind `package`: `path` names a labelled set of `lm.data.corpus.packages`, which has its own held-out split; with format
    `text` its texts alone, such as the encyclopaedia's of "topics"; with `pair` a task told in words (`lm.data.corpus.told`);
    with `captioned` the pictures of `lm.data.corpus.openmoji`.
    kind `cloze`: `path` is "spans" or "infill", questions about the documents of other prepared data (`lm.data.corpus.cloze`).
    kind `generated`: `path` names a set of `lm.data.corpus.generated`: questions with better and worse answers, or speech.

    `format` says what a document is: a text, or a record with the fields of `lm.data.records`. Records are neither cleaned
    nor compared for near duplicates.
    """

    kind: Literal["tfds", "text", "jsonl", "array_record", "package", "cloze", "generated", "parquet", "csv", "warc"] = "tfds"
    path: Name = "sotu"
    split: Name = "train"
    field: Name = "text"  # of a tfds, jsonl or JSON ArrayRecord record; a column of Parquet or CSV
    format: Format = "text"
    encoding: Name = "utf-8"  # of files
    documents: "Data | None" = None  # cloze: the data that is asked about; None: that of the run in train.init_from
    length: Length | None = None  # cloze: tokens of a context and its question, at most; None: what a record has room for
    weight: NonNegative = 1.0  # of this source in the mixture, in rows
    # Which split its documents are in: a share of `data.holdout` held out, none, or all. (A package or cloze has its own.)
    use: Literal["both", "train", "holdout"] = "both"
    # Of a jsonl, array_record or parquet record: the field with its date (2024-05-31, 2024-05 or 2024, with a time or without).
    # Those from the day `since` on and before the day `before` are read; None: there is no such bound.
    date: Name | None = None
    since: Name | Year | None = None
    before: Name | Year | None = None

    def __post_init__(self) -> None:
        _check_dates(self)
        try:
            "a".encode(self.encoding)
        except (LookupError, ValueError):  # a codec that gives no text, such as hex, is a LookupError too
            raise UserError(f"unknown encoding {self.encoding!r} of {self.path}; for example utf-8, utf-16, latin-1") from None
        if self.use != "both" and self.kind in OWN_SPLIT:
            raise UserError(
                f"use={self.use} of {self.path}: a source of kind {self.kind} comes with a held-out split; leave it out"
            )
        if self.use == "holdout" and self.weight != 1.0:
            raise UserError(f"weight={self.weight:g} of {self.path}: with use=holdout no row is trained on; leave it out")
        scheme, colon, _ = self.path.partition("://")
        formats = _FORMATS.get(self.kind, typing.get_args(Format))
        if self.format not in formats:
            raise UserError(
                f"format={self.format} of {self.path}: a source of kind {self.kind} has format={' or '.join(formats)}"
            )
        if colon and (scheme not in SCHEMES or self.kind not in FILES):
            names = {
                "tfds": "a builder's name",
                "package": "a set's name",
                "cloze": "'spans' or 'infill'",
                "generated": "a set's name",
            }
            what = names.get(self.kind, "a local file, and " + ", ".join(f"{name}://" for name in SCHEMES))
            raise UserError(f"path={self.path} is not read, {what} is: copy it to a local folder and give that")


def _check_dates(source: Source) -> None:
    if source.date is not None and source.kind not in DATED:
        raise UserError(f"date={source.date} of {source.path}: records of kind {' or '.join(DATED)} have dates; leave it out")
    for name in ("since", "before"):
        bound = getattr(source, name)
        if bound is not None and source.date is None:
            raise UserError(f"{name}={bound} of {source.path}: say which field has the date, such as date=published")
        try:
            day(bound or "2000")
        except ValueError:
            raise UserError(f"{name}={str(bound)[:40]} of {source.path} is no date: give one such as 2024-05-31") from None
    if source.since and source.before and day(source.since) >= day(source.before):
        raise UserError(f"since={source.since} of {source.path} is not before before={source.before}: change one of them")


FILES = ("text", "jsonl", "array_record", "parquet", "csv", "warc")  # kinds whose path names files
SCHEMES = ("gs", "s3", "hf", "https", "http", "memory", "file")  # of URLs of files
DATED = ("jsonl", "array_record", "parquet")  # kinds whose records may have a date
LABELLED = ("labelled", "tree")  # formats whose records have a class
TURNS = ("messages", "preference", "feedback")  # formats that are conversations, which a model is trained to chat in
OWN_SPLIT = ("package", "cloze")  # kinds of sources that come with a held-out split
# Of kinds that have not all of them.
_FORMATS: Mapping[str, tuple[str, ...]] = {
    "text": ("text",),
    "warc": ("text",),
    "package": ("text", "labelled", "pair", "captioned"),
    "cloze": ("pair",),
    "csv": ("text", "labelled", "pair"),
    "generated": ("text", "pair", "messages", "preference", "feedback", "speech", "tree"),
}


@dataclass(frozen=True)
class Clean:
    """By default only damage is repaired; what may be part of a text is changed on request. The report counts every change."""

    unicode: bool = True  # repair mojibake and control characters (ftfy), unify newlines, NFC (U+FA19 becomes U+795E)
    width: bool = False  # full-width forms and ligatures to plain letters (ftfy); wrong for Chinese and Japanese
    markup: bool = False  # remove HTML tags and decode entities; wrong for code
    directions: bool | None = None  # remove stage directions ([Applause]); None: if the source's documents are transcripts
    spaces: bool = False  # collapse runs of spaces and of empty lines, strip line ends; wrong for code and tables
    min_chars: Natural = 1  # drop, and report, documents with fewer characters after stripping


@dataclass(frozen=True)
class Dedup:
    """Which documents are dropped because an earlier one is the same."""

    exact: bool = True  # the same text
    near: PositiveShare | None = 0.8  # a higher Jaccard similarity of word 5-grams, estimated by MinHash; None: not compared
    permutations: Annotated[int, Range(2, 2**16)] = 128  # of MinHash: more estimate better and take longer


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer that is trained on the training documents, or is given.

    kind `bpe`, `unigram`: pieces of words, and bytes for what they do not spell; `vocab_size` is reached exactly.
    kind `byte_bpe`: pieces of bytes, as GPT and LLaMA 3 have them, by the tokenizers library; `vocab_size` is reached exactly.
    kind `word`: each word between white space is one id, other words are unk; `vocab_size` is an upper limit.
    """

    kind: Literal["bpe", "unigram", "word", "byte_bpe"] = "bpe"
    vocab_size: Vocabulary = 8192  # with special tokens
    path: Name | None = None  # a sentencepiece model or tokenizer.json to use as it is; None: train one
    split: Literal["gpt2", "gpt4", "llama3"] = "gpt4"  # of byte_bpe: whose words pieces are part of

    def __post_init__(self) -> None:
        if self.split != "gpt4" and self.kind != "byte_bpe":
            raise UserError(f"split={self.split} is of kind=byte_bpe, and kind is {self.kind}: change one of them")


@dataclass(frozen=True)
class Classifier:
    """Drops documents that look like bad examples: a linear model of labelled texts (`lm.data.corpus.classifier`)."""

    examples: Source  # of format=labelled
    good: Name = "good"  # the label of texts to keep; all others are of texts to drop
    least: Share = 0.5  # probability of being good

    def __post_init__(self) -> None:
        if self.examples.format != "labelled":
            raise UserError(f"examples.format={self.examples.format}: examples of good and bad texts have format=labelled")


@dataclass(frozen=True)
class Contamination:
    """Cuts the texts of evaluation sets out of the documents, as GPT-3 (arXiv 2005.14165, appendix C).

    What is searched for are all runs of `words` words in a set's texts, and whole texts that are shorter. It is cut out with
    `around` characters on both sides; pieces of fewer than `min_chars` are dropped, and so is a document in more than
    `max_pieces`. (GPT-3 leaves runs that are in more than 10 documents; here they are cut out too.)
    """

    sets: Mapping[Name, Source]
    words: Count = 13  # lower-case, without punctuation
    shortest: Count = 8  # words of a whole text that is searched for; shorter ones are too common
    around: Natural = 200
    min_chars: Natural = 200
    max_pieces: Count = 10

    def __post_init__(self) -> None:
        if not self.sets:
            raise UserError("sets is empty: name the evaluation sets, such as sets.mine.path=questions.jsonl")


@dataclass(frozen=True)
class Quality:
    """Which texts are dropped for what they are, and what is removed from those that stay (`lm.data.corpus.quality`), in this
    order. All is off by default; an empty section, quality.gopher={}, has its paper's thresholds. Records stay as they are.
    """

    language: Language | None = None
    gopher: Gopher | None = None
    c4: C4 | None = None
    fineweb: FineWeb | None = None
    classifier: Classifier | None = None
    contamination: Contamination | None = None
    redact: tuple[Literal["email", "ip", "phone"], ...] = ()  # written over by addresses and numbers that are nobody's


@dataclass(frozen=True)
class Data:
    """What is read, how it is prepared, and the rows made of it."""

    sources: Mapping[Name, Source] = field(default_factory=lambda: {"sotu": Source()})
    clean: Clean = Clean()
    dedup: Dedup = Dedup()
    tokenizer: Tokenizer = Tokenizer()
    holdout: Decay = 0.05  # share of each source's documents that is held out, chosen by a hash of their identity
    train_share: PositiveShare = 1.0  # share of the training documents that is used, to study repeated data
    encoder_length: Length | None = None  # tokens in a row of the encoder; None: the model has none
    decoder_length: Length | None = None  # tokens in a row of the decoder; None: the model has none
    # A text up to the last of these words is only read, as a prompt is: it has no loss and no masks; a piece without them has
    # no loss. "": texts have no such part. For causal, prefix, teacherless, multi_token and masked_diffusion.
    after: Words = ""
    packing: bool = False  # records, as many in a row as fit into these lengths; a text's documents always share rows
    on_long: Literal["fail", "skip"] = "fail"  # an answer for which a record has no room: stop, or leave it out and count it
    cache: Name = "~/.cache/lm"  # a local folder, or gs://, s3://, file://; prepared data lives in <cache>/<fingerprint>
    on_corrupt: Literal["fail", "skip"] = "fail"  # an unreadable record: stop and name it, or count it and go on
    # How conversations are written: a name of `lm.data.templates` (chatml, llama3, gemma, t5), or a template's own text in
    # Jinja's language. None: as in the run of train.init_from, by a converted model's own template if it has one, or else
    # with the tokenizer's role tokens.
    template: Name | None = None
    quality: Quality = Quality()  # which documents are good enough
    # Shares of the sources by weight x tokens^(1 / temperature), so that small ones are read more often than their size asks
    # for (mT5, arXiv 2010.11934, section 3.2: 1 / 0.3). 1: in proportion to their size; None: by weight alone.
    temperature: Positive | None = None

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("sources is empty: give at least one, such as sources.mine.path=texts/*.txt")
        trained = [source for source in self.sources.values() if source.use != "holdout"]
        if not trained:
            raise UserError("all sources have use=holdout, so there is nothing to train on: add one with use=train or both")
        if self.template and not self.conversations:
            raise UserError(f"template={self.template[:40]} writes conversations, and no source has any: leave it out")
        total = sum(source.weight for source in trained)
        if total > LARGEST:
            raise UserError(f"weights of all sources sum to {total:g}, which is infinite in float32: give smaller ones")
        if total == 0:
            raise UserError("weights of all sources are 0: they are shares of the rows, so give one of them more")

    @property
    def conversations(self) -> bool:
        """Whether a source has conversations."""
        return any(source.format in TURNS for source in self.sources.values())
