"""One model of several: a weighted sum of their parameters, whose weights add up to 1.

    average (model soups, arXiv 2203.05482)         1/n of each of n models; or other shares
    task vectors (arXiv 2212.04089)                 base + sum of scale (model - base): the base has the rest, 1 - sum of scales
    a run's last checkpoints                        1/n of each

Models must compute the same function of their parameters and have the same tokenizer.
"""

import hashlib
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from lm import atomic, checkpoint, paths, saved, untrusted
from lm.conversion import files, folders
from lm.conversion.tables import canonical, differences
from lm.data import chat
from lm.errors import UserError
from lm.models.transformer import abstract_params


def average(
    target: str,
    sources: Sequence[str],
    *,
    weights: Sequence[float] | None = None,
    base: str | None = None,
    last: int | None = None,
) -> str:
    """Writes the sum of the models in `sources` to a new folder like a converted model's. Returns a one-line summary.

    weights: of each source, None: all 1. Without a `base` they are shares, of any sum; with one, the scales of task vectors.
    last: of the only source, a run, average so many of its last checkpoints instead.
    """
    start, new = time.perf_counter(), paths.local(target, name="the target")
    if last is not None and len(sources) != 1:
        raise UserError(f"--last={last} averages the last checkpoints of one run, and {len(sources)} are given: give one")
    models = (
        [saved.open(source, name="SRC") for source in sources] if last is None else saved.last(sources[0], last, name="SRC")
    )
    given = [1.0] * len(models) if weights is None else list(weights)
    if len(given) != len(models) or not all(map(math.isfinite, given)):
        raise UserError(f"--weights are {given}: give a finite number for each of the {len(models)} models")
    if base is not None:
        models, shares = [saved.open(base, name="--base"), *models], [1.0 - math.fsum(given), *given]
    elif (total := math.fsum(given)) > 0:
        shares = [weight / total for weight in given]
    else:
        raise UserError(
            f"--weights={given} are shares, and their sum is not above 0: give others, or a --base that they add to"
        )
    check_alike(models)
    about = " + ".join(f"{share:.4g} of {_name(model)}" for share, model in zip(shares, models, strict=True))
    return write(new, models[0], lambda: combined(models, shares), about, start)


def write(target: Path, source: saved.Saved, make: Callable[[], Any], about: str, start: float) -> str:
    """Writes the parameters that `make` returns to a new folder like a converted model's, with the model and the tokenizer of
    `source`. Returns a one-line summary, which says what it is `about`, and the seconds since `start`."""
    with atomic.new_folder(target) as folder:
        params = make()
        (kept := folder / "hf").mkdir()
        carried = carry_tokenizer(source, kept)
        checkpoint.save_params(folder, source.model, params)
    return folders.summary(params, about, carried, target, start)


def combined(models: Sequence[saved.Saved], shares: Sequence[float]) -> dict[str, Any]:
    """The weighted sum of their parameters as NumPy arrays, added up in float64 and rounded once to the first one's dtypes.

    So n times 1/n of a model is that model to the bit, as is 1 of one and 0 of another.
    """
    total, like = None, None
    for model, share in zip(models, shares, strict=True):
        params = model.params()
        like = jax.tree.map(lambda x: x.dtype, params) if like is None else like
        if share:  # 0 times a number that is not finite is none
            part = jax.tree.map(lambda x, s=share: np.asarray(x, np.float64) * s, params)
            total = part if total is None else jax.tree.map(lambda a, b: np.add(a, b, out=a), total, part)
    assert total is not None, "shares add up to 1"
    return jax.tree.map(lambda x, dtype: x.astype(dtype), total, like)


def check_alike(models: Sequence[saved.Saved]) -> None:
    """UserError unless all models have the same shapes, compute the same function and read the same tokens."""
    first = models[0]
    for other in models[1:]:
        if found := differences(canonical(first.model), canonical(other.model)):
            raise UserError(f"{_name(first)} and {_name(other)} are different models: model.{found[0]}")
        ours, theirs = _shapes(first), _shapes(other)
        if apart := sorted(name for name in ours | theirs if ours.get(name) != theirs.get(name)):
            raise UserError(
                f"{_name(first)} and {_name(other)} have different parameters: {apart[0]} has {ours.get(apart[0], 'none')} and "
                f"{theirs.get(apart[0], 'none')}; only models of one shape, and one setting of scan, are averaged"
            )
        if (own := _tokenizer(first)) != (its := _tokenizer(other)):
            raise UserError(
                f"{_name(first)} and {_name(other)} have different tokenizers ({own}, {its}): an id is another token in "
                "each, so their parameters cannot be added"
            )


def carry_tokenizer(source: saved.Saved, kept: Path) -> list[str]:
    """Copies the tokenizer of a run or a converted model to the folder `kept`, with what else a converted model carries; of a
    run with adapters also the config.json of the converted model under it, and of a run on conversations its chat template.
    Returns the names of the files."""
    if source.step is None:
        with folders.local(source.folder / "hf") as theirs:
            carried = files.carry(theirs, kept) if theirs.exists() else []
            if (theirs / "config.json").exists():  # tells `to_hf` which family this is
                (kept / "config.json").write_bytes(untrusted.inside(theirs, "config.json").read_bytes())
            return carried
    if source.run is not None and source.run.adapter is not None:
        if (settings := source.base().carried("config.json")) is not None:
            (kept / "config.json").write_bytes(settings)
    proto = source.tokenizer_bytes()
    assert proto is not None, "a run has one"
    name = "tokenizer.json" if proto.lstrip()[:1] == b"{" else "tokenizer.model"
    carried = {name: proto, **chat.files(source)}
    for file, data in carried.items():
        (kept / file).write_bytes(data)
    return list(carried)


def _shapes(model: saved.Saved) -> dict[str, tuple[int, ...]]:
    return {path: x.shape for path, x in flatten_dict(abstract_params(model.model), sep="/").items()}


def _name(model: saved.Saved) -> str:
    return str(model.folder) if model.step is None else f"{model.folder} (step {model.step})"


def _tokenizer(model: saved.Saved) -> str | None:
    proto = model.tokenizer_bytes()
    return None if proto is None else hashlib.sha256(proto).hexdigest()[:8]
