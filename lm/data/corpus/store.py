"""The token store: documents as one long row of token ids, chunked and checksummed, on disk or in a bucket.

    <path>/tokens        uint16 or uint32 [tokens]      all documents, one behind the other
    <path>/offsets       int64 [documents + 1]          where each begins; the last is the number of tokens
    <path>/byte_lengths  int64 [documents]              of each document's text in UTF-8, for bits per byte

Each is a Zarr v3 array whose chunks carry a CRC-32C; TensorStore reads it locally and from gs://. A flipped bit, a
chunk cut short and a missing chunk are errors that name the file.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lm.data.corpus.integrity import again
from lm.errors import UserError

CHUNK = 1 << 18  # tokens; 512 KiB as uint16
_FLUSH = 16 * CHUNK
_IN_MEMORY = 1 << 30  # bytes; larger stores are read chunk by chunk through a cache
_CACHE = 1 << 30


def _spec(path: str, name: str) -> dict[str, Any]:
    # A local path is no URL, in which `%41` would be an A and `#` the end.
    place = path.rstrip("/")
    kvstore = f"{place}/{name}/" if "://" in path else {"driver": "file", "path": f"{place}/{name}/"}
    return {
        "driver": "zarr3",
        "kvstore": kvstore,
        # Without these a lost chunk would read as zeros, without a word.
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,
    }


def _create(path: str, name: str, dtype: str, chunk: int) -> Any:
    import tensorstore as ts

    metadata = {
        "shape": [0],
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [chunk]}},
        "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
    }
    return ts.open(_spec(path, name) | {"metadata": metadata}, create=True, delete_existing=True).result()


def _append(array: Any, values: np.ndarray) -> Any:
    """`array` longer by `values`."""
    start = array.shape[0]
    array = array.resize(exclusive_max=[start + len(values)], expand_only=True).result()
    array[start:].write(values).result()
    return array


def write_store(path: str, documents: Iterable[tuple[np.ndarray, int]], *, vocab_size: int) -> None:
    """Writes documents, each its tokens (integers [n]) and the UTF-8 bytes of its text, as they come.

    Overwrites what is at `path` (an absolute folder or gs://...). Raises UserError when the disk is full.
    """
    dtype = np.dtype("uint16" if vocab_size <= 1 << 16 else "uint32")
    ends, sizes = [0], []
    try:
        tokens = _create(path, "tokens", dtype.name, CHUNK)
        waiting: list[np.ndarray] = []
        held = 0
        for ids, size in documents:
            ends.append(ends[-1] + len(ids))
            sizes.append(size)
            waiting.append(ids.astype(dtype))
            held += len(ids)
            if held >= _FLUSH:  # whole chunks, so that none is written twice
                row = np.concatenate(waiting)
                whole = held - held % CHUNK
                tokens = _append(tokens, row[:whole])
                waiting, held = [row[whole:]], held - whole
        if held:
            tokens = _append(tokens, np.concatenate(waiting))
        _append(_create(path, "offsets", "int64", CHUNK), np.array(ends, np.int64))
        sizes_array = _create(path, "byte_lengths", "int64", CHUNK)
        if sizes:
            _append(sizes_array, np.array(sizes, np.int64))
    except (ValueError, OSError) as error:
        raise _translate(error, path) from None


def _translate(error: Exception, path: str) -> Exception:
    """TensorStore's errors are ValueErrors with a status code in front."""
    message = " ".join(str(error).split()).split(" [tensorstore_spec")[0]
    if "RESOURCE_EXHAUSTED" in message or "No space left" in message:
        return UserError(f"no disk space at {path}; free some, or set data.cache to another disk")
    if message.startswith("NOT_FOUND") and "zarr.json" in message:
        return UserError(f"no token store at {path}; {_again(path)}")
    file = re.search(r'file "([^"]+)"', message)
    if file or message.startswith(("DATA_LOSS", "FAILED_PRECONDITION", "NOT_FOUND")):
        name = file[1] if file else path
        return UserError(f"corrupt token store: {name} ({message[-120:]}); {_again(path)}")
    return error


def _again(path: str) -> str:
    """The cure: a store lies in <cache>/<fingerprint>/<source>/<split>."""
    return again(Path(path).parents[1])


def _check_chunks(path: str, tokens: Any) -> None:
    """UserError for the first chunk that is missing or cut short, long before it would be read; reading checks its CRC."""
    chunk = tokens.chunk_layout.read_chunk.shape[0]
    size = chunk * tokens.dtype.numpy_dtype.itemsize + 4
    for i in range(-(-tokens.shape[0] // chunk)):
        file = Path(path) / "tokens" / "c" / str(i)
        try:
            found = file.stat().st_size
        except OSError:
            found = 0
        if found != size:
            raise UserError(f"corrupt token store: {file} ({found} of {size} bytes); {_again(path)}")


@dataclass(frozen=True)
class Store:
    """An open token store. Random access from any number of threads; nothing of it is ever written."""

    path: str
    offsets: np.ndarray  # int64 [documents + 1]
    byte_lengths: np.ndarray  # int64 [documents]
    _tokens: Any  # numpy [tokens] if it fits in memory, otherwise a TensorStore

    @classmethod
    def open(cls, path: str, *, in_memory: int = _IN_MEMORY) -> "Store":
        """Opens what `write_store` wrote; up to `in_memory` bytes are read, and so verified, at once.

        Raises UserError if there is no store, or a file of it is corrupt.
        """
        import tensorstore as ts

        context = ts.Context({"cache_pool": {"total_bytes_limit": _CACHE}})
        try:
            arrays = [ts.open(_spec(path, n), context=context).result() for n in ("offsets", "byte_lengths", "tokens")]
            offsets, sizes, tokens = arrays[0].read().result(), arrays[1].read().result(), arrays[2]
            if tokens.shape[0] * tokens.dtype.numpy_dtype.itemsize <= in_memory:
                tokens = tokens.read().result()
            elif "://" not in path:
                _check_chunks(path, tokens)
        except (ValueError, OSError) as error:
            raise _translate(error, path) from None
        if len(offsets) != len(sizes) + 1 or offsets[-1] != tokens.shape[0]:
            raise UserError(f"corrupt token store: {path} (its arrays disagree); {_again(path)}")
        return cls(path, offsets, sizes, tokens)

    @property
    def num_tokens(self) -> int:
        return int(self.offsets[-1])

    @property
    def num_documents(self) -> int:
        return len(self.byte_lengths)

    @property
    def num_bytes(self) -> int:
        """Of all documents' text in UTF-8."""
        return int(self.byte_lengths.sum())

    def read(self, starts: np.ndarray, length: int) -> np.ndarray:
        """int32 [n, length]: the tokens from each of `starts` (int [n]) on, over the ends of documents.

        Raises IndexError for a window that is not inside [0, num_tokens), UserError for a corrupt chunk.
        """
        starts = np.asarray(starts, np.int64)
        if starts.size and (starts.min() < 0 or starts.max() + length > self.num_tokens):
            raise IndexError(f"windows {starts.min()}..{starts.max()} + {length} outside of {self.num_tokens} tokens")
        if isinstance(self._tokens, np.ndarray):
            return self._tokens[starts[:, None] + np.arange(length)].astype(np.int32)
        out = np.empty((len(starts), length), np.int32)
        try:
            pending = [self._tokens[start : start + length].read() for start in starts.tolist()]
            for row, future in zip(out, pending, strict=True):
                row[:] = future.result()
        except (ValueError, OSError) as error:
            raise _translate(error, self.path) from None
        return out

    def document(self, index: int) -> np.ndarray:
        """int32 [n], one document with its bos and eos."""
        start, stop = self.offsets[index : index + 2].tolist()
        return self.read(np.array([start]), stop - start)[0]

    def tokens(self) -> np.ndarray:
        """int32 [num_tokens], all of them in memory."""
        return self.read(np.array([0]), self.num_tokens)[0]

    def share(self, share: float) -> "Store":
        """A store of so large a share of the documents, one at least, read into memory: a smaller share is part of a larger."""
        count = max(1, round(share * self.num_documents))
        chosen = np.sort(np.random.default_rng(0).permutation(self.num_documents)[:count])
        documents = [self.document(int(i)) for i in chosen]
        offsets = np.cumsum([0, *map(len, documents)]).astype(np.int64)
        return Store(self.path, offsets, self.byte_lengths[chosen], np.concatenate(documents))
