"""What a sweep varies, from `--over KEY=VALUES`, and the settings that a search tries.

    optimizer.learning_rate=log(1e-4,1e-2)       drawn, evenly in the logarithm
    optimizer.learning_rate=log(1e-4,1e-2,5)     five values, the ends among them: 1e-4, 3.162e-4, ...
    model.decoder.blocks.L.dropout=uniform(0,0.3)
    train.batch_size=8,16                        these values

Imports no jax, and Optuna only where settings are drawn.
"""

import ast
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lm.config import Run, resolve
from lm.errors import UserError, nearest

RANGES = ("log", "uniform")
EXAMPLE = "optimizer.learning_rate=log(1e-4,1e-2) or train.batch_size=8,16"
DIGITS = 4  # significant ones of a drawn number, so that a command line can be read
TRIES = 100  # draws for each setting that is still missing, before a space counts as exhausted


@dataclass(frozen=True)
class Axis:
    """One key of the config. Its `values` are tried, or numbers between `low` and `high` are drawn."""

    key: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    whole: bool = False  # the key takes ints alone

    def distribution(self) -> Any:
        """Of Optuna. Choices are drawn by their index, since Optuna takes only some types of values."""
        from optuna import distributions

        if self.values:
            return distributions.IntDistribution(0, len(self.values) - 1)
        if self.whole:
            return distributions.IntDistribution(int(self.low), int(self.high), log=self.log)
        return distributions.FloatDistribution(self.low, self.high, log=self.log)

    def value(self, drawn: Any) -> Any:
        """The config's value for what the distribution gave."""
        if self.values:
            return self.values[drawn]
        return int(drawn) if self.whole else min(max(float(f"{drawn:.{DIGITS}g}"), self.low), self.high)


def parse(text: str, file: str, overrides: Mapping[str, str]) -> Axis:
    """The axis of an `--over`. UserError unless the config takes each of its values, and for a range both ends."""
    key, equals, given = text.partition("=")
    key = key.removeprefix("config.")
    if not (key and equals and given.strip()):
        raise UserError(f"--over {text}: give KEY=VALUES, such as {EXAMPLE}")
    name, bounds, count = _range(key, given.strip())
    if not name:
        axis = Axis(key, _values(key, given.strip()))
    else:
        whole = _takes_only_ints(key, bounds, file, overrides)
        low, high = bounds if whole else map(float, bounds)
        axis = Axis(key, (), low, high, name == "log", whole)
        axis = axis if count is None else Axis(key, _spread(axis, count), log=name == "log", whole=whole)
    for value in axis.values or (axis.value(axis.low), axis.value(axis.high)):
        made(file, overrides, {key: value})
    return axis


def made(file: str, overrides: Mapping[str, str], values: Mapping[str, Any]) -> Run:
    """The run with these values, exactly as `lm.train` makes it of the flags that `flags` writes."""
    try:
        return resolve.load(file, dict(overrides) | {key: written(value) for key, value in values.items()})
    except UserError as error:
        raise UserError(f"--over {', '.join(f'{k}={written(v)}' for k, v in values.items())}: {error}") from None


def written(value: Any) -> str:
    """The text of a value that a flag reads back as this value."""
    return value if isinstance(value, str) and resolve.literal(value) == value else repr(value)


def command(file: str, flags: Mapping[str, str]) -> list[str]:
    """The words that train a config with these flags."""
    return ["python", "-m", "lm.train", f"--config={file}", *(f"--config.{key}={text}" for key, text in flags.items())]


def _range(key: str, given: str) -> tuple[str, tuple[float, float], int | None]:
    """("log", (low, high), count or None); the name is "" for a list of values. UserError for a range that is none."""
    found = re.fullmatch(r"([A-Za-z_]\w*)\s*\((.*)\)", given)
    if not found:
        return "", (0, 0), None
    name, said = found[1], f"--over {key}={given}"
    if name not in RANGES:
        raise UserError(f"{said}: there is no range '{name}'{nearest(name, RANGES)}")
    numbers = [resolve.literal(part.strip()) for part in found[2].split(",")]
    if len(numbers) not in (2, 3) or not all(type(x) in (int, float) and math.isfinite(x) for x in numbers):
        raise UserError(f"{said} is no range: give its ends, such as {name}(1e-4,1e-2), or {name}(1e-4,1e-2,5) for five values")
    low, high, count = (*numbers, None)[:3]
    if low >= high:
        raise UserError(
            f"{said} begins at {low:g} and ends at {high:g}: give the smaller end first, or one value as a --config flag"
        )
    if name == "log" and low <= 0:
        raise UserError(f"{said} begins at {low:g}, which has no logarithm: begin above 0, or give uniform({low:g},{high:g})")
    if count is not None and (type(count) is not int or count < 2):
        raise UserError(f"{said}: the third number is how many values are tried: give an int of 2 or more")
    return name, (low, high), count


def _values(key: str, given: str) -> tuple[Any, ...]:
    """The values of a list, in its order. UserError for one that is given twice, or alone."""
    try:
        whole = ast.literal_eval(f"({given},)")  # values may be tuples or dicts, which have commas of their own
    except (ValueError, SyntaxError):
        whole = tuple(resolve.literal(part.strip()) for part in given.split(","))
    texts = [repr(value) for value in whole]
    if twice := next((text for text in texts if texts.count(text) > 1), None):
        raise UserError(f"--over {key}={given} has {twice} twice: leave one out")
    if len(whole) < 2:
        raise UserError(f"--over {key}={given} has one value: give it as --config.{key}={given}, or more values")
    return whole


def _takes_only_ints(key: str, bounds: tuple[float, float], file: str, overrides: Mapping[str, str]) -> bool:
    """Whether a config takes the ends of a range as ints alone. UserError if these are not."""
    between = bounds[0] + (bounds[1] - bounds[0]) * math.sqrt(0.5)  # no whole number
    try:
        made(file, overrides, {key: float(between)})
    except UserError as refused:
        if "must be int" not in str(refused):
            raise
        if all(type(end) is int for end in bounds):
            return True
        raise UserError(f"--over {key}: config.{key} takes whole numbers: give whole ends, such as log(8,64)") from None
    return False


def _spread(axis: Axis, count: int) -> tuple[Any, ...]:
    """`count` values from end to end, evenly spaced on the axis."""
    space = np.geomspace if axis.log else np.linspace
    drawn = [axis.value(round(x) if axis.whole else x) for x in space(axis.low, axis.high, count).tolist()]
    return tuple(dict.fromkeys(drawn))


def grid(axes: Sequence[Axis]) -> list[dict[str, Any]]:
    """All combinations, the last axis the fastest. UserError for an axis without values."""
    for axis in axes:
        if not axis.values:
            kind = "log" if axis.log else "uniform"
            raise UserError(
                f"--over {axis.key} is a range, and a grid needs values: give {kind}({axis.low:g},{axis.high:g},5) for five "
                "of them, or leave out --search=grid"
            )
    return [dict(zip([a.key for a in axes], values, strict=True)) for values in itertools.product(*(a.values for a in axes))]


def drawn(axes: Sequence[Axis], count: int, seed: int) -> list[dict[str, Any]]:
    """`count` different settings, drawn by Optuna: a function of axes and seed, and those of a smaller count come first.
    UserError if there are fewer."""
    optuna = library()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    of = {axis.key: axis.distribution() for axis in axes}
    found: dict[str, dict[str, Any]] = {}
    for _ in range(TRIES * count):
        if len(found) == count:
            break
        params = study.ask(of).params
        values = {axis.key: axis.value(params[axis.key]) for axis in axes}
        found.setdefault(repr(values), values)
    if len(found) < count:
        raise UserError(f"--trials={count}: --over has {len(found)} settings in all; give fewer trials, or --search=grid")
    return list(found.values())


def library() -> Any:
    """Optuna, which keeps its messages to itself. UserError if it is not installed."""
    try:
        import optuna
    except ImportError as error:
        raise UserError(f"settings are drawn by Optuna, which is missing ({error}): pip install -e '.[sweep]'") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
