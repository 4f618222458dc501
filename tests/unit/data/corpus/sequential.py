"""The rule of `lm.data.corpus.groups`, one document after the other and in memory."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm import config
from lm.data.corpus import dedup


@dataclass(frozen=True)
class Dropped:
    index: int
    reason: str  # exact or near
    kept: int  # index of the earlier document that stays


def duplicates(signatures: Iterable[dedup.Signature], settings: config.Dedup) -> list[Dropped]:
    """The documents to drop, in order."""
    first: dict[bytes, int] = {}
    kept: dict[int, np.ndarray] = {}
    dropped: list[Dropped] = []
    threshold = settings.near
    lsh: Any = dedup._index(threshold, settings.permutations) if threshold is not None else None
    for index, signature in enumerate(signatures):
        earlier = first.get(signature.exact)
        if settings.exact and earlier is not None:
            dropped.append(Dropped(index, "exact", earlier))
            continue
        if threshold is not None and signature.near is not None:
            minhash = dedup._minhash(settings)
            minhash.hashvalues = signature.near
            alike = [i for i in lsh.query(minhash) if np.mean(kept[i] == signature.near) >= threshold]
            if alike:
                dropped.append(Dropped(index, "near", min(alike)))
                first.setdefault(signature.exact, min(alike))
                continue
            lsh.insert(index, minhash)
            kept[index] = signature.near
        first.setdefault(signature.exact, index)
    return dropped
