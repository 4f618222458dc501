"""Token stores for tests, written as a preparation writes them."""

from collections.abc import Iterable

import numpy as np

from lm.data.corpus import store
from lm.data.corpus.store import Entry


def write_store(path: str, documents: Iterable[Entry], *, vocab_size: int) -> None:
    """Writes these documents, at least one, and overwrites what is at `path`."""
    every = list(documents)
    masks = [one.loss for one in every if one.loss is not None]
    labels = np.array([one.label for one in every if one.label is not None])
    tokens = np.concatenate([one.ids for one in every])
    store.create(path, tokens=len(tokens), vocab_size=vocab_size, loss=bool(masks))
    store.fill(path, "tokens", 0, tokens.astype(store.dtype(vocab_size)))
    if masks:
        store.fill(path, "loss", 0, np.concatenate(masks).astype(np.uint8))
    column = lambda values: [np.array(values, np.int64)]
    lengths, sizes = column([len(one.ids) for one in every]), column([one.num_bytes for one in every])
    store.finish(path, lengths, sizes, [labels], str(labels.dtype) if len(labels) else None)
