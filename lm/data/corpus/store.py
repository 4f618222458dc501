"""The token store: the token ids of all documents in one array, chunked and checksummed, on disk or in a bucket.

    <path>/tokens        uint16 or uint32 [tokens]      the documents, concatenated
    <path>/offsets       int64 [documents + 1]          where each begins; the last is the number of tokens
    <path>/byte_lengths  int64 [documents]              of each document's text in UTF-8, for bits per byte
    <path>/loss          uint8 [tokens]                 1 where a token is a target; only for records
    <path>/labels        int64 [documents]              index of each record's class; of a judged answer whether it is good; of
                                                        two answers their margin, in float64; for no other records

Each is a Zarr v3 array whose chunks carry a CRC-32C; TensorStore reads it locally, from gs://, s3:// and https://. A flipped
bit, a truncated chunk and a missing chunk are errors that name the file.
"""

import math
import os
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.corpus.integrity import again
from lm.data.corpus.places import Url
from lm.errors import UserError

CHUNK = 1 << 18  # tokens; 512 KiB as uint16
_FLUSH = 16 * CHUNK
_IN_MEMORY = 1 << 30  # bytes; larger stores are read chunk by chunk through a cache
_ELSEWHERE = 1 << 26  # the same of stores in a bucket, of which a host reads its rows
_CACHE = 1 << 30
_AWAY = ("UNAVAILABLE", "PERMISSION_DENIED", "UNAUTHENTICATED", "DEADLINE_EXCEEDED", "ABORTED")
_BLOCK = 1 << 24  # tokens whose loss mask is read at a time


def _spec(path: str, name: str) -> dict[str, Any]:
    return {
        "driver": "zarr3",
        "kvstore": _kvstore(f"{path.rstrip('/')}/{name}/"),
        # Without these a missing chunk would silently read as zeros.
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,
    }


def _kvstore(folder: str) -> Any:
    """How TensorStore finds a folder. A local one is not written as a URL, in which `%41` would be an A and `#` the end."""
    scheme, _, rest = folder.partition("://") if "://" in folder else ("file", "", folder)
    if scheme in ("file", "memory"):
        return {"driver": scheme, "path": rest}
    endpoint = os.environ.get("AWS_ENDPOINT_URL")  # of a server other than Amazon's, as s3fs takes it
    if scheme == "s3" and endpoint:
        bucket, _, below = rest.partition("/")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        return {"driver": "s3", "bucket": bucket, "path": below, "endpoint": endpoint, "aws_region": region}
    return folder


def dtype(vocab_size: int) -> str:
    """The type of the tokens of so many ids."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


def _create(path: str, name: str, dtype: str, chunk: int, size: int = 0) -> Any:
    import tensorstore as ts

    metadata = {
        "shape": [size],
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk]}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
    }
    return ts.open(_spec(path, name) | {"metadata": metadata}, create=True, delete_existing=True).result()


def _append(array: Any, values: np.ndarray) -> Any:
    """Appends values; returns the longer array."""
    start = array.shape[0]
    array = array.resize(exclusive_max=[start + len(values)], expand_only=True).result()
    array[start:].write(values).result()
    return array


class _Appender:
    """An array that grows by appending. It is written in multiples of CHUNK, so that no chunk is written twice."""

    def __init__(self, path: str, name: str, dtype: str) -> None:
        self._array, self._dtype = _create(path, name, dtype, CHUNK), np.dtype(dtype)
        self._waiting: list[np.ndarray] = []
        self._held = 0

    def add(self, values: np.ndarray) -> None:
        self._waiting.append(values.astype(self._dtype))
        self._held += len(values)
        if self._held >= _FLUSH:
            row = np.concatenate(self._waiting)
            full = self._held - self._held % CHUNK
            self._array = _append(self._array, row[:full])
            self._waiting, self._held = [row[full:]], self._held - full

    def close(self) -> None:
        if self._held:
            self._array = _append(self._array, np.concatenate(self._waiting))


@dataclass(frozen=True)
class Entry:
    """A document to write."""

    ids: np.ndarray  # integers [n]
    num_bytes: int  # of its text in UTF-8
    loss: np.ndarray | None = None  # bool [n]: tokens that are targets; given for all documents of a store or for none
    label: int | float | None = (
        None  # index of the record's class, judgement or margin; given for all documents of a store or for none
    )


# A store whose tokens are written by many processes, in parts that begin at multiples of CHUNK: `create`, `fill`, `finish`.


def create(path: str, *, tokens: int, vocab_size: int, loss: bool) -> None:
    """Makes an empty store for so many tokens at `path`, and removes what is there."""
    with _translated(path):
        for name in ("loss", "labels"):
            _delete(path, name)
        _create(path, "tokens", dtype(vocab_size), CHUNK, tokens)
        if loss:
            _create(path, "loss", "uint8", CHUNK, tokens)


def fill(path: str, name: str, start: int, values: np.ndarray) -> None:
    """Writes a part of the array `name`, "tokens" or "loss", from `start` on, a multiple of CHUNK."""
    import tensorstore as ts

    with _translated(path):
        array = ts.open(_spec(path, name)).result()
        array[start : start + len(values)].write(values).result()


def finish(
    path: str, lengths: Iterable[np.ndarray], sizes: Iterable[np.ndarray], labels: Iterable[np.ndarray], label_dtype: str | None
) -> None:
    """Writes what a store knows of its documents, from arrays of a few of them at a time: tokens, bytes and labels of each."""
    with _translated(path):
        offsets, end = _Appender(path, "offsets", "int64"), 0
        offsets.add(np.zeros(1, np.int64))
        for some in lengths:
            offsets.add(end + np.cumsum(some))
            end += int(some.sum())
        offsets.close()
        for name, arrays, kind in (("byte_lengths", sizes, "int64"), ("labels", labels, label_dtype)):
            if kind is not None:
                column = _Appender(path, name, kind)
                for some in arrays:
                    column.add(some)
                column.close()


@contextmanager
def _translated(path: str) -> Generator[None]:
    try:
        yield
    except (ValueError, OSError) as error:
        raise _translate(error, path) from None


def _delete(path: str, name: str) -> None:
    import tensorstore as ts

    ts.KvStore.open(_spec(path, name)["kvstore"]).result().delete_range(ts.KvStore.KeyRange()).result()


def _translate(error: Exception, path: str) -> Exception:
    """The UserError for an error of TensorStore, a ValueError that begins with a status code; other errors as they are."""
    message = " ".join(str(error).split()).split(" [tensorstore_spec")[0]
    if "RESOURCE_EXHAUSTED" in message or "No space left" in message:
        return UserError(f"no disk space at {path}; free some, or set data.cache to another disk")
    if message.startswith("NOT_FOUND") and "zarr.json" in message:
        return UserError(f"no token store at {path}; {_again(path)}")
    if message.startswith(_AWAY):
        return UserError(f"{path} cannot be read now ({message[-160:]}); check the network and the access to it")
    file = re.search(r'file "([^"]+)"', message)
    if file or message.startswith(("DATA_LOSS", "FAILED_PRECONDITION", "NOT_FOUND")):
        name = file[1] if file else path
        return UserError(f"corrupt token store: {name} ({message[-120:]}); {_again(path)}")
    return error


def _again(path: str) -> str:
    """The end of an error message: how to prepare the data again. A store is in <cache>/<fingerprint>/<source>/<split>."""
    return again(path.rsplit("/", 2)[0])


def _check_chunks(path: str, name: str, array: Any) -> None:
    """Raises UserError for the first chunk that is missing or truncated, before training starts. Reading checks the CRC."""
    chunk = array.chunk_layout.read_chunk.shape[0]
    size = chunk * array.dtype.numpy_dtype.itemsize + 4
    for i in range(-(-array.shape[0] // chunk)):
        file = Path(path) / name / "c" / str(i)
        try:
            found = file.stat().st_size
        except OSError:
            found = 0
        if found != size:
            raise UserError(f"corrupt token store: {file} ({found} of {size} bytes); {_again(path)}")


def _copy_into(context: Any, path: str) -> None:
    """Copies fsspec's files in memory to TensorStore's, which has a memory of its own."""
    import tensorstore as ts

    folder = ts.KvStore.open(_kvstore(f"{path}/"), context=context).result()
    for file in Url(path).glob("**/*"):
        folder.write(str(file)[len(path) + 1 :], file.read_bytes()).result()


@dataclass(frozen=True)
class Store:
    """An open token store. Random access from any number of threads; nothing is ever written to it."""

    path: str
    offsets: np.ndarray  # int64 [documents + 1]
    byte_lengths: np.ndarray  # int64 [documents]
    _tokens: Any  # numpy [tokens] if it fits in memory, otherwise a TensorStore
    _loss: Any = None  # the same, uint8; None: every token has loss
    labels: np.ndarray | None = None  # int64 or float64 [documents]

    @classmethod
    def open(cls, path: str, *, in_memory: int | None = None, most: int | None = None) -> "Store":
        """Opens a finished store; arrays of tokens of up to `in_memory` bytes, or `most` if that is less, are read, and so
        verified, at once.

        Raises UserError if there is no store, or a file of it is corrupt.
        """
        import tensorstore as ts

        context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE}})
        if in_memory is None:
            in_memory = _ELSEWHERE if "://" in path else _IN_MEMORY
        in_memory = in_memory if most is None else min(in_memory, most)
        if path.startswith("memory://"):
            _copy_into(context, path)

        def read(name: str, *, in_memory: int | float = math.inf, optional: bool = False) -> Any:
            try:
                array = ts.open(_spec(path, name), context=context).result()
            except ValueError as error:
                if optional and str(error).startswith("NOT_FOUND"):
                    return None
                raise
            if array.shape[0] * array.dtype.numpy_dtype.itemsize <= in_memory:
                return array.read().result()
            if "://" not in path:
                _check_chunks(path, name, array)
            return array

        try:
            offsets, sizes, tokens = read("offsets"), read("byte_lengths"), read("tokens", in_memory=in_memory)
            loss, labels = read("loss", in_memory=in_memory, optional=True), read("labels", optional=True)
        except (ValueError, OSError) as error:
            raise _translate(error, path) from None
        disagree = len(offsets) != len(sizes) + 1 or offsets[-1] != tokens.shape[0]
        disagree |= loss is not None and loss.shape[0] != tokens.shape[0]
        disagree |= labels is not None and len(labels) != len(sizes)
        if disagree:
            raise UserError(f"corrupt token store: {path} (its arrays disagree); {_again(path)}")
        return cls(path, offsets, sizes, tokens, loss, labels)

    @property
    def num_tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def num_documents(self) -> int:
        return len(self.byte_lengths)

    @property
    def num_bytes(self) -> int:
        """Bytes of all documents' text in UTF-8."""
        return int(self.byte_lengths.sum())

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """int32 [n, length]: the tokens from each of `starts` (int [n]) on, across the ends of documents.

        Raises IndexError for a window that is not inside [0, num_tokens), UserError for a corrupt chunk.
        """
        starts = np.asarray(starts, np.int64)
        if starts.size and (starts.min() < 0 or starts.max() + length > self.num_tokens):
            raise IndexError(f"windows {starts.min()}..{starts.max()} + {length} outside of {self.num_tokens} tokens")
        if isinstance(self._tokens, np.ndarray):
            return self._tokens[starts[:, None] + np.arange(length)].astype(np.int32)
        rows = self._slices(self._tokens, starts, starts + length)
        return np.stack(rows).astype(np.int32) if rows else np.empty((0, length), np.int32)

    def _slices(self, array: Any, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """array[start:stop] for each pair, read concurrently."""
        pairs = zip(starts.tolist(), stops.tolist(), strict=True)
        if isinstance(array, np.ndarray):
            return [array[start:stop] for start, stop in pairs]
        try:
            pending = [array[start:stop].read() for start, stop in pairs]
            return [future.result() for future in pending]
        except (ValueError, OSError) as error:
            raise _translate(error, self.path) from None

    def document(self, index: int) -> np.ndarray:
        """int32 [n], one document with its bos and eos."""
        return self.documents(np.array([index]))[0]

    def documents(self, index: np.ndarray) -> list[np.ndarray]:
        """int32 [n] for each document of `index`."""
        return [ids.astype(np.int32) for ids in self._slices(self._tokens, self.offsets[index], self.offsets[index + 1])]

    def loss(self, index: np.ndarray) -> list[np.ndarray]:
        """bool [n] for each document of `index`: whether a token is a target. UserError for a store of texts."""
        return [mask.astype(bool) for mask in self._mask(self.offsets[index], self.offsets[index + 1])]

    def _mask(self, starts: np.ndarray, stops: np.ndarray) -> list[np.ndarray]:
        """int8 [stop - start] for each pair."""
        if self._loss is None:
            raise UserError(f"{self.path} is a store of texts, which has no loss mask; set format= of the source")
        return [mask.astype(np.int8) for mask in self._slices(self._loss, starts, stops)]

    def answers(self) -> np.ndarray:
        """int64 [answers, 2]: where each run of tokens with loss begins and ends (exclusive) among all tokens, in order.

        No run extends over the end of a record, because a record begins with a token without loss.
        """
        edges, before = [], 0
        for start in range(0, self.num_tokens, _BLOCK):
            mask = self._mask(np.array([start]), np.array([min(start + _BLOCK, self.num_tokens)]))[0]
            edges.append(np.flatnonzero(np.diff(mask, prepend=np.int8(before))) + start)
            before = int(mask[-1])
        ends = [self.num_tokens] if before else []
        return np.concatenate([*edges, ends]).astype(np.int64).reshape(-1, 2)

    def tokens(self) -> np.ndarray:
        """int32 [num_tokens], all of them in memory."""
        return self.read(np.array([0]), self.num_tokens)[0]

    def share(self, share: float) -> "Store":
        """A store of this share of the documents, at least one, in memory. They are drawn with a fixed seed, and a larger share
        contains a smaller one."""
        count = max(1, round(share * self.num_documents))
        return self.pick(np.sort(np.random.default_rng(0).permutation(self.num_documents)[:count]))

    def pick(self, chosen: np.ndarray) -> "Store":
        """A store of the documents with these numbers, int64 [n], in memory."""
        documents = self.documents(chosen)
        offsets = np.cumsum([0, *map(len, documents)]).astype(np.int64)
        loss = None if self._loss is None else np.concatenate(self.loss(chosen))
        labels = None if self.labels is None else self.labels[chosen]
        return Store(self.path, offsets, self.byte_lengths[chosen], np.concatenate(documents), loss, labels)


def shared(stores: Mapping[str, Store], share: float) -> dict[str, Store]:
    """`Store.share` of every store; the stores themselves for a share of 1."""
    return {name: store if share == 1 else store.share(share) for name, store in stores.items()}
