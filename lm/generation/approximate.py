"""Approximate search among vectors by cosine, with hnswlib (arXiv 1603.09320).

build(vectors, path)               float32 [N, D] -> a file
nearest(path, query, count)        int [count]: numbers of vectors, the nearest first
"""

from pathlib import Path
from typing import Any

import numpy as np

from lm.errors import UserError

LINKS, BREADTH, SEED = 32, 200, 0  # M and ef_construction of the paper


def build(vectors: np.ndarray, path: Path) -> None:
    """Writes an index of the vectors. One thread adds them in their order, so that the same vectors give the same index."""
    index = _hnswlib().Index(space="cosine", dim=vectors.shape[1])
    index.init_index(max_elements=len(vectors), M=LINKS, ef_construction=BREADTH, random_seed=SEED)
    index.add_items(vectors, np.arange(len(vectors)), num_threads=1)
    index.save_index(str(path))


def nearest(path: Path, query: np.ndarray, count: int, *, vectors: int) -> np.ndarray:
    """The numbers of the `count` vectors, of as many as `vectors`, that are nearest to the query, float32 [D], as far as the
    index finds them. The file must be known to be one that `build` wrote: hnswlib trusts it."""
    index = _hnswlib().Index(space="cosine", dim=len(query))
    index.load_index(str(path), max_elements=vectors)
    count = min(count, vectors)
    index.set_ef(max(BREADTH, 2 * count))
    labels, _ = index.knn_query(query[None], k=count, num_threads=1)
    return labels[0].astype(np.int64)


def _hnswlib() -> Any:
    try:
        import hnswlib  # ty: ignore[import-not-found]  # a compiled module without types
    except ImportError as error:
        raise UserError(f"--approximate needs hnswlib ({error}): pip install -e '.[index]'") from None
    return hnswlib
