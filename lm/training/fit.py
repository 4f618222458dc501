"""Whether a step fits the memory of its devices, and what would: for a dry run, and before the first step of a run.

A CPU kills a program that takes more memory than there is, without a word. A step is therefore compiled, which takes none, and
compared with the machine before it is run.
"""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import jax

from lm import config, sharding
from lm.config import resolve
from lm.data.corpus.prepare import Prepared
from lm.errors import UserError
from lm.training.advice import Candidate, Outcome, as_it_is, candidates, out_of_memory, remat_of, rows_of, search, smaller
from lm.training.assembly import bytes_a_device, capacity, check, computation, with_chosen_kernel
from lm.training.recipe import Computation, Parts, Recipe

GIB = 2**30
ROOM = 0.9  # of a device's memory that what is advised may take: a process holds more than its step
TRIES = 5  # candidates that are compiled, of either kind
TEMPORARIES, RESULTS = "temporaries, with activations (XLA)", "results and padding"
EXHAUSTED = "RESOURCE_EXHAUSTED"  # in errors of XLA where memory is short, on every platform


@dataclass(frozen=True)
class Needs:
    """Bytes that a step needs on a device, by kind, and that the device has (None: unknown)."""

    kinds: dict[str, int]
    capacity: int | None
    where: str

    @property
    def total(self) -> int:
        return sum(self.kinds.values())

    @property
    def outcome(self) -> Outcome:
        """For a search; its state is all that is there before the step."""
        held = sum(size for kind, size in self.kinds.items() if kind not in (TEMPORARIES, RESULTS))
        return Outcome(self.fits, float(self.total), float(held))

    @property
    def fits(self) -> bool:
        return self.capacity is None or self.total <= self.capacity

    def table(self) -> str:
        lines = [f"{size / GIB:>14,.3f}  {kind}" for kind, size in self.kinds.items()]
        known = "" if self.capacity is None else f" of {self.capacity / GIB:,.1f} that {self.where} has"
        end = "" if self.capacity is None else ": it fits" if self.fits else ": IT DOES NOT FIT"
        return "\n".join(["memory of a step, GiB on a device", *lines, f"{self.total / GIB:>14,.3f}  in all{known}{end}"])


def needs(made: Computation, lowered: Any = None) -> Needs:
    """What a step needs on each device of its mesh, from the program that it is compiled to here. `lowered`: the step, if it is
    traced already."""
    targets, devices = made.plan.targets(), made.mesh.local_devices
    parameters, frozen, batch = map(bytes_a_device, (targets.params, made.frozen, made.batch))
    kinds = {"parameters": parameters, "frozen, and in no checkpoint": frozen}
    kinds |= {"optimizer and the rest of the state": bytes_a_device(targets) - parameters, "batch": batch}
    held, limit = sum(kinds.values()), capacity(devices)
    try:
        found = (lowered or made.lower()).compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:  # a compiler for TPUs refuses what does not fit
        if (sizes := out_of_memory(str(error))) is None:
            raise
        kinds[TEMPORARIES], limit = int(sizes[0]) - held, int(sizes[1])
    else:
        kinds[TEMPORARIES] = found.temp_size_in_bytes + found.generated_code_size_in_bytes
        kinds[RESULTS] = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes - held
    return Needs({kind: size for kind, size in kinds.items() if size > 0}, limit, where(devices))


def where(devices: list[Any]) -> str:
    """Whose memory `capacity` is, as an error says it."""
    if devices[0].platform != "cpu":
        return f"the {devices[0].device_kind}"
    return "this machine" if len(devices) == 1 else f"one of this machine's {len(devices)} devices"


class FittedStep:
    """The step of a run, which is compiled at its first call. UserError with what would fit, if it needs more memory than a
    device has.

    The program is that of `parts.step` for these very arguments, which jax then finds, so that it is compiled once.
    """

    def __init__(self, parts: Parts, recipe: Recipe, say: Callable[[str], None]) -> None:
        self.parts, self.recipe, self.say = parts, recipe, say
        self.checked = False

    def __call__(self, state: Any, frozen: Any, batch: Any) -> Any:
        if not self.checked:
            found = needs(self.parts, self.parts.step.lower(state, frozen, batch))
            if not found.fits:
                self.say(f"a step needs {found.total / GIB:,.1f} GiB: looking for what fits")
                raise UserError(refusal(self.parts, self.recipe, found))
            self.checked = True
        return self.parts.step(state, frozen, batch)


def report(parts: Parts, recipe: Recipe) -> str:
    """The table of a step's memory, and what would fit if it does not."""
    found = needs(parts)
    return found.table() if found.fits else f"{found.table()}\n{refusal(parts, recipe, found)}"


def refusal(parts: Parts, recipe: Recipe, found: Needs) -> str:
    """The line that ends a run whose step does not fit."""
    assert found.capacity is not None
    flags = None if jax.process_count() > 1 else advise(parts, recipe, found)
    cure = f"add {flags}" if flags else "nothing near fits; take a smaller model, or more devices"
    has = f"{found.where} has {found.capacity / GIB:,.1f}"
    return f"out of memory: a step needs {found.total / GIB:,.1f} GiB on a device, and {has}: {cure}"


@contextmanager
def in_a_line() -> Generator[None]:
    """Turns XLA's error where memory ran out into a UserError."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if EXHAUSTED not in str(error):
            raise
        cause = str(error).strip().splitlines()[0].removeprefix(f"{EXHAUSTED}: ").rstrip(".")
        raise UserError(
            f"out of memory: {cause}; --dry_run says what a step needs: take more train.microbatches, fewer rows in "
            "evaluations (evaluate.batch_size), or a smaller model"
        ) from None


def advise(parts: Parts, recipe: Recipe, found: Needs) -> str | None:
    """The flags of the cheapest change of the config whose step fits; None if none is found.

    First what leaves the training as it is: microbatches, remat, and the axes of a mesh of several devices. Then a smaller
    batch, and shorter rows.
    """
    run, mesh, limit = parts.run, dict(parts.mesh.shape), (found.capacity or found.total) * ROOM
    remat = {} if run.train.init_from else remat_of(run)  # a saved model has no settings in the config
    states: dict[Any, float] = {}  # by the changes on which alone they depend

    def state(c: Candidate) -> float | None:
        other = resolve.replaced(run, c.changes)
        key = tuple(item for item in c.changes.items() if item[0] not in ("train.microbatches", *remat))
        try:  # heads may not divide over the mesh, and an objective may take no parts
            check(other, recipe, sharding.make_mesh(other.mesh))
            if key not in states:
                made = planned(other, recipe, parts.data)
                states[key] = float(bytes_a_device((made.plan.targets(), made.frozen, made.batch)))
        except UserError:
            return None
        return states[key]

    def tried(c: Candidate) -> Outcome:
        outcome = needs(planned(resolve.replaced(run, c.changes), recipe, parts.data)).outcome
        return replace(outcome, fits=outcome.peak <= limit)

    lengths = {f"data.{name}": n for name in ("encoder_length", "decoder_length") if (n := getattr(run.data, name))}
    alike = candidates(mesh, run.train.batch_size, run.train.microbatches, remat)
    others = smaller(run.train.batch_size, run.train.microbatches, remat, rows_of(mesh), lengths)
    settings: dict[str, Any] = dict(capacity=limit, state=state, attempt=tried, tries=TRIES)
    settings |= dict(first=as_it_is(run, mesh, remat, found.outcome))
    best = search(alike, **settings) or search(others, **settings)
    return best.flags if best else None


def planned(run: config.Run, recipe: Recipe, data: Prepared) -> Computation:
    """What a run computes on the devices that are here, with data that is prepared."""
    mesh = sharding.make_mesh(run.mesh)
    check(run, recipe, mesh)
    rows = recipe.rows(run, data)["train"]
    run = with_chosen_kernel(run, mesh, rows.lengths)
    return computation(run, check(run, recipe, mesh), mesh, rows.lengths, recipe.row(rows))
