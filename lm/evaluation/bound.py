"""The likelihood bound of masked diffusion on texts, in nats: by the sum over the number of masks, and by sampling it.

For a text of n tokens the bound is the sum over k = 1..n of 1/k times the mean loss of k masked tokens, over which tokens they
are (`lm.objectives.masked_diffusion`). The sum takes n forward passes, and only which tokens are masked is drawn; sampling
draws k as well, with a weight of n/k. Both are unbiased: their difference checks either.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm import config
from lm.data.rows import blank, pack, stack
from lm.evaluation.spans import row_scores
from lm.models.positions import check_positions
from lm.models.transformer import Transformer
from lm.objectives import Lengths, Vocabulary
from lm.objectives.masked_diffusion import noised, shifted

# Of a text's tokens, int [n]: (masked ones, weight of their nats, number of their stratum) for each forward pass.
Draw = Callable[[np.ndarray, int, np.random.Generator], Iterator[tuple[np.ndarray, float, int]]]


@dataclass(frozen=True)
class Bound:
    """Nats of N texts, float64 [N], and their tokens, int64 [N]. `error` is the standard error of the sum of the nats, from the
    draws of masks alone; nan where no number of masks was drawn twice."""

    nats: np.ndarray
    tokens: np.ndarray
    error: float

    @property
    def nats_per_token(self) -> float:
        return float(self.nats.sum() / self.tokens.sum())


def each_number(tokens: np.ndarray, draws: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, float, int]]:
    """All numbers k of masks, each with `draws` sets of masked tokens, or with all of them where there are no more: these have
    stratum 0, and no error."""
    n = len(tokens)
    for k in range(1, n + 1):
        every = math.comb(n, k) <= draws
        drawn = itertools.combinations(tokens.tolist(), k) if every else (_some(tokens, k, rng) for _ in range(draws))
        sets: list[Any] = list(drawn)
        yield from ((np.array(chosen), 1 / k / len(sets), 0 if every else k) for chosen in sets)


def any_number(tokens: np.ndarray, draws: int, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, float, int]]:
    """`draws` numbers of masks, each with one set of masked tokens."""
    n = len(tokens)
    for k in rng.integers(1, n + 1, draws if n else 0).tolist():
        yield _some(tokens, k, rng), n / k / draws, 1


def _some(tokens: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(tokens)[:k]


def bound(
    model: Transformer,
    params: Any,
    c: config.MaskedDiffusion,
    vocabulary: Vocabulary,
    texts: Sequence[np.ndarray],
    draw: Draw,
    *,
    draws: int = 1,
    seed: int = 0,
    batch_size: int = 64,
) -> Bound:
    """The bound of each text (int32 [n], with bos and eos where it has them), by `each_number` or `any_number`."""
    rng = np.random.default_rng(seed)
    special: dict[str, Any] = dict(mask_id=vocabulary.mask_id, bos=vocabulary.bos_id, time_steps=c.time_steps)
    decoder, size = model.config.encoder is None, max(map(len, texts))
    if decoder:  # the first token is only read, as in training
        counted = [np.arange(1, len(text)) for text in texts]
        lengths, ask = Lengths(None, size, prefix=True, types=c.time_steps), shifted
    else:
        counted = [np.flatnonzero(text != vocabulary.bos_id) for text in texts]
        lengths, ask = Lengths(size, None, types=c.time_steps), lambda e: e
    never = np.arange(model.config.vocab_size) == vocabulary.mask_id  # written, as in training
    check_positions(model.config, lengths.encoder, lengths.decoder, cure="take shorter texts")
    drawn = ((i, *one) for i, tokens in enumerate(counted) for one in draw(tokens, draws, rng))
    groups: list[tuple[int, int]] = []  # text and stratum of each forward pass
    values: list[np.ndarray] = []
    while part := list(itertools.islice(drawn, batch_size)):
        rows = [pack([ask(noised(texts[i], chosen, weight, **special))], lengths) for i, chosen, weight, _ in part]
        rows += [blank(lengths)] * (batch_size - len(rows))  # keeps the shape of the batch
        groups += [(i, stratum) for i, _, _, stratum in part]
        values.append(np.asarray(row_scores(model, params, stack(rows), never)[0], float)[: len(part)])
    each, nats = np.array(groups), np.concatenate(values)
    tokens = np.array([len(tokens) for tokens in counted])
    return Bound(np.bincount(each[:, 0], nats, minlength=len(texts)), tokens, math.sqrt(_variance(nats, each)))


def _variance(values: np.ndarray, groups: np.ndarray) -> float:
    """Of the sum of the values, each of which is one of the independent draws of its group, int [N, 2]. Groups of stratum 0
    have none; nan where another has a single value."""
    drawn = groups[:, 1] > 0
    if not drawn.any():
        return 0.0
    _, group = np.unique(groups[drawn], axis=0, return_inverse=True)
    group, mine = group.ravel(), values[drawn]
    count = np.bincount(group)
    if count.min() < 2:
        return math.nan
    deviations = mine - (np.bincount(group, mine) / count)[group]
    return float(np.sum(count / (count - 1) * np.bincount(group, deviations**2)))
