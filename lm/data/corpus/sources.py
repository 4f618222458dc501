"""Documents by index from TFDS, files, packages and cloze questions, behind one small protocol."""

import contextlib
import importlib
import io
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from lm import config, paths
from lm.data import records
from lm.data.corpus import array_records, dated, files, generated, lines, nested, openmoji, packages, parquet, table, told, warc
from lm.data.corpus.documents import SKIP, CorruptRecord, Document, Documents, one_line
from lm.errors import UserError, nearest

# tfds builders of this package: modules of lm.data.corpus with `version()` and `builder(data_dir)`.
_BUNDLED = ("sotu", "stdlib")
# Kinds of files with many records each.
_SHARDED: dict[str, Callable[[config.Source, list[files.File], str], Documents]] = {
    "jsonl": lines.JsonLines,
    "array_record": array_records.ArrayRecord,
    "parquet": parquet.Parquet,
    "csv": table.Csv,
    "warc": warc.Warc,
}


def open_source(source: config.Source, *, cache: str = "~/.cache/lm", on_corrupt: str = "fail") -> Documents:
    """Opens the documents of `source`. A tfds builder is downloaded and prepared on first use (a bundled one below `cache`).

    Raises UserError if nothing is found, and CorruptRecord for a file that cannot be opened unless `on_corrupt` is "skip".
    """
    if source.kind == "tfds":
        return _Tfds(source, cache)
    if source.kind == "package":
        if source.format == "pair":
            return Splits(told.load(source.path, cache))
        if source.format == "captioned":
            return Splits(pictures(source).load(cache))
        splits = packages.load(source.path, cache)
        if source.format == "labelled":
            return Splits(splits)
        return Splits({split: [records.Text(record.text) for record in some] for split, some in splits.items()})
    if source.kind == "generated":
        return Generated(source)
    listing = files.find(source)
    if source.kind == "text":
        return files.TextFiles(source, listing)
    found = _SHARDED[source.kind](source, listing.files, on_corrupt)
    return found if source.date is None else dated.Within(found, source)


def identity(source: config.Source) -> dict[str, Any]:
    """A JSON tree that identifies the contents of `source`: equal for equal contents.

    Local files are identified by name and hash, others by name, size, and the digest or time that their server tells; tfds by
    builder, split and version, a package's set by the digest of its file. (Cloze questions: see
    `lm.data.corpus.prepare.fingerprint`.)
    """
    if source.kind == "package" and source.format == "pair":
        return {"kind": source.kind, "path": source.path, "format": "pair", "made": told.identity(source.path)}
    if source.kind == "package" and source.format == "captioned":
        return {"kind": source.kind, "path": source.path, "format": "captioned", "made": pictures(source).identity()}
    if source.kind == "package":
        return {
            "kind": source.kind,
            "path": source.path,
            "version": packages.VERSION,
            "sha256": packages.find(source.path).sha256,
        } | ({"format": "text"} if source.format == "text" else {})  # of records there was a fingerprint before
    if source.kind == "tfds":
        contents: dict[str, Any] = {"path": source.path, "split": source.split, "version": _tfds_version(source.path)}
    elif source.kind == "generated":
        contents = {"path": source.path, "made": generated.version(source.path)}
    else:
        contents = {"files": [[f.key, *files.identity(f)] for f in files.find(source).files], "encoding": source.encoding}
        contents = contents | ({"made": warc.made()} if source.kind == "warc" else {})
    if source.format != "text":  # texts keep the fingerprint that they had before there were other formats
        about = {"kind": source.kind, "format": source.format, "version": records.VERSION}
    else:
        about = {"kind": source.kind, "field": source.field}
    also: dict[str, Any] = {} if source.use == "both" else {"use": source.use}  # so that older fingerprints hold
    if source.date is not None:
        bounds = (None if bound is None else str(bound) for bound in (source.since, source.before))
        also["dates"] = [source.date, *bounds]
    return about | contents | also


def pictures(source: config.Source) -> Any:
    """The module of a package's set of pictures. UserError for an unknown name."""
    if source.path != openmoji.NAME:
        raise UserError(f"no package of pictures '{source.path}': there is '{openmoji.NAME}'")
    return openmoji


class Splits:
    """Records of a set that has its own held-out split. Keys are `train/0`, ..., `holdout/0`, ..."""

    unreadable: Sequence[str] = ()
    transcripts = False

    def __init__(self, splits: Mapping[str, Sequence[records.Record]]) -> None:
        self._records = [(f"{split}/{i}", record) for split, some in splits.items() for i, record in enumerate(some)]

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Document:
        key, record = self._records[index]
        return Document(key, record.text if isinstance(record, records.Text) else records.to_json(record))


class Generated:
    """The records of `lm.data.corpus.generated`. Keys are `<set>/0`, ..."""

    unreadable: Sequence[str] = ()
    transcripts = False

    def __init__(self, source: config.Source) -> None:
        self._name, self._records = source.path, generated.load(source.path, source.format)

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Document:
        record = self._records[index]
        return Document(f"{self._name}/{index}", record.text if isinstance(record, records.Text) else records.to_json(record))


# --------------------------------------------------------------------------------------------------------------- tfds


def _bundled(name: str) -> Any:
    """The module of a builder in this package."""
    return importlib.import_module(f"lm.data.corpus.{name}")


def _tfds_version(name: str) -> str:
    if name in _BUNDLED:
        return _bundled(name).version()  # does not import tensorflow_datasets, which takes seconds
    return str(_builder(name, "").info.full_name)


def _builder(name: str, data_dir: str) -> Any:
    """The tfds builder of that name. A bundled one writes below `data_dir`, others to tfds's own folder."""
    if name in _BUNDLED:
        return _bundled(name).builder(data_dir)
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        known = [*tfds.list_builders(with_community_datasets=False), *_BUNDLED]
        hint = nearest(name.split("/")[0].split(":")[0], known)
        hint = hint if "did you mean" in hint else "; see https://www.tensorflow.org/datasets/catalog"
        raise UserError(f"no tfds builder is named {name!r}{hint}") from None
    except (ValueError, OSError, RuntimeError) as error:
        raise UserError(f"tfds builder {name!r}: {one_line(error)}; check its config and version") from None


@contextlib.contextmanager
def _quiet() -> Generator[None, None, None]:
    """Suppresses tfds's progress bars and messages: a bundled builder takes about a second."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        yield


class _Tfds:
    """A split of a tfds builder, stored as ArrayRecord and read without TensorFlow."""

    unreadable: Sequence[str] = ()

    def __init__(self, source: config.Source, cache: str) -> None:
        from filelock import FileLock

        self._source = source
        folder = paths.expanded(cache)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            builder = _builder(source.path, str(folder / "tfds"))
            with FileLock(folder / f"tfds-{source.path.replace('/', '-')}.lock"):  # so that one process downloads
                with _quiet() if source.path in _BUNDLED else contextlib.nullcontext():
                    builder.download_and_prepare(file_format="array_record")
        except UserError:
            raise
        except Exception as error:  # builders raise whatever their download raises
            raise UserError(
                f"tfds {source.path!r} could not be prepared: {one_line(error)}; check network and disk, and {folder / 'tfds'}"
            ) from None
        self.transcripts: bool = getattr(builder, "TRANSCRIPTS", False)
        if source.split.split("[")[0] not in builder.info.splits:
            raise UserError(f"tfds {source.path!r} has no split {source.split!r}{nearest(source.split, builder.info.splits)}")
        self._features: Mapping[str, Any] = builder.info.features
        nested.check_features(source, self._features)
        try:
            self._records = builder.as_data_source(split=source.split)
            count = len(self._records)
        except (ValueError, AssertionError) as error:
            raise UserError(f"tfds {source.path!r} split {source.split!r}: {one_line(error)}; give another split") from None
        if not count:
            raise UserError(f"tfds {source.path!r} split {source.split!r} is empty; give another split")

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Document:
        where = f"tfds {self._source.path}/{self._source.split}, record {index}"
        if not 0 <= index < len(self):
            raise IndexError(index)
        try:
            record = self._records[index]
        except (RuntimeError, ValueError) as error:
            raise CorruptRecord(f"{where}: corrupt ({one_line(error)}); {SKIP}") from None
        if all(value is None for value in record.values()):  # the record of a truncated file
            raise CorruptRecord(f"{where}: nothing there; {SKIP}")
        text = nested.text_of(record, self._features, self._source, where)
        name = record.get("id")
        key = name.decode(errors="backslashreplace") if isinstance(name, bytes) else f"{self._source.split}:{index}"
        return Document(key, text)
