"""Searches for a faster setting of a run that fits its pod: the backward pass computes less again, and keeps more, on the
devices or in their host's memory, where the optimizer's moments can make room for it. No jax.

What a setting keeps, computes again and sends is reckoned from the config, and the few that promise most are compiled.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lm import config
from lm.config import resolve
from lm.flops import Flops
from lm.training.advice import flags, rows_of
from tpu.report import Report
from tpu.topologies import Topology

TRIES = 6  # settings that are compiled
PARTS, TENSOR = (1, 2, 3, 4, 6, 8, 12, 16), (1, 2, 4)  # factors on the number of microbatches, and on the axis "tensor"
ROOM = 1.1  # of the memory: what is reckoned beyond it is not tried
LANES = 128  # elements to which a head's vector is padded in memory
GAIN = 0.99  # a setting is tried if a step is reckoned to take at most this share of the best one's time

# Moments of a parameter, in float32: Muon has a second one of those that are no matrices. Adafactor's do not wait on the host.
MOMENTS = {"adamw": 2, "lion": 1, "muon": 1}

# (remat, keep) of a stack, from the one that keeps least.
SETTINGS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("full", ()),
    ("full", ("attention",)),
    ("full", ("qkv", "attention")),
    ("full", ("attention", "experts")),
    ("full", ("qkv", "attention", "experts")),
    ("full", ("qkv", "attention", "ffn")),
    ("dots", ("attention",)),
    ("dots", ("attention", "experts")),
)


@dataclass(frozen=True)
class Setting:
    """A change of a config, with what is reckoned of a step on one device."""

    changes: Mapping[str, Any] = field(hash=False)  # "train.microbatches": 4
    seconds: float
    peak: float  # bytes

    @property
    def flags(self) -> str:
        return flags(self.changes)


def settings(run: config.Run, report: Report, topology: Topology, lengths: Mapping[str, int], forward: Flops) -> list[Setting]:
    """All settings that may be faster than the one of the report, which was compiled, and may fit; fastest first.

    lengths: stack -> positions of a row. forward: of a step. None of a model with other layers than attention and feed-forward,
    whose memory is not reckoned.
    """
    blocks = [block for stack in _stacks(run).values() for block in stack.blocks.values()]
    if any(block.mixer is not None or block.attention is None or block.ffn is None for block in blocks):
        return []
    of = Reckoned(run, report, topology, lengths, forward)
    limit, best = ROOM * report.hbm.capacity, (report.roofline.step_s or math.inf) * GAIN
    found = [s for changes in _changes(run, report.mesh) if (s := of.setting(changes)).peak <= limit and s.seconds <= best]
    order = lambda s: (round(s.seconds, 3), s.changes.get("mesh.tensor", 0), s.changes.get("train.microbatches", 0), s.peak)
    return sorted(found, key=order)


def _changes(run: config.Run, mesh: Mapping[str, int]) -> Iterator[dict[str, Any]]:
    stacks, seen = _stacks(run), set[str]()
    ffns = [block.ffn for stack in stacks.values() for block in stack.blocks.values()]
    absent = {"experts"} if not any(isinstance(ffn, config.Moe) for ffn in ffns) else set()
    absent |= {"ffn"} if not any(isinstance(ffn, config.Mlp) for ffn in ffns) else set()
    for remat, keep in SETTINGS:
        if absent & {*keep}:
            continue
        for tensor, away, state in itertools.product(TENSOR, (False, True), waiting(run.optimizer)):
            if mesh["fsdp"] % tensor or (away and remat == "dots"):  # results of products have no names to be moved by
                continue
            offload = ("input", *keep) if away else ()
            sizes = {**mesh, "fsdp": mesh["fsdp"] // tensor, "tensor": mesh["tensor"] * tensor}
            for parts in (run.train.microbatches * n for n in PARTS):
                if run.train.batch_size % (parts * rows_of(sizes)):
                    continue
                changes: dict[str, Any] = {}
                for name, stack in stacks.items():
                    changes |= {f"model.{name}.remat": remat} if stack.remat != remat else {}
                    changes |= {f"model.{name}.keep": keep} if stack.keep != keep else {}
                    changes |= {f"model.{name}.offload": offload} if {*stack.offload} != {*offload} else {}
                changes |= {f"mesh.{axis}": n for axis, n in sizes.items() if n != mesh[axis]}
                changes |= {"train.microbatches": parts} if parts != run.train.microbatches else {}
                changes |= {"optimizer.offload": state} if state != run.optimizer.offload else {}
                if changes and repr(changes) not in seen:
                    seen.add(repr(changes))
                    yield changes


def waiting(c: config.Optimizer) -> list[tuple[str, ...]]:
    """What of the optimizer's can wait on the host: with and without its moments."""
    others = tuple(name for name in c.offload if name != "moments")
    return [others, ("moments", *others)] if c.name in MOMENTS else [c.offload]


def _stacks(run: config.Run) -> dict[str, config.Stack]:
    both = {"encoder": run.model.encoder, "decoder": run.model.decoder}
    return {name: stack for name, stack in both.items() if stack is not None and stack.remat != "none"}


class Reckoned:
    """Reckons settings from one that was compiled: memory beyond what layers keep stays, and each microbatch sends as much.

    Moments that wait on the host are on the device in the update alone, when no layer keeps anything, beside the parameters,
    their gradients, and the parameters that become of them. Nothing hides their way there and back.
    """

    def __init__(self, run: config.Run, report: Report, topology: Topology, lengths: Mapping[str, int], forward: Flops) -> None:
        self.run, self.report, self.lengths, self.forward = run, report, lengths, forward
        self.chip, self.devices = topology.chip, topology.devices * report.slices
        self.state = sum((report.hbm.parameters, report.hbm.optimizer, report.hbm.batch, report.hbm.frozen))
        size = 2 if run.model.param_dtype == "bfloat16" else 4
        self.float32 = report.hbm.parameters * 4 / size  # bytes of one number of each parameter
        self.moments = MOMENTS.get(run.optimizer.name, 0) * self.float32
        self.rest = report.hbm.peak - self.state - self.kept(run, report.mesh)  # gathered parameters, gradients, scratch
        executed = report.flops.executed or report.flops.model
        self.other = executed - report.flops.model - self.again(run)  # capacity of experts, padding of heads

    def setting(self, changes: Mapping[str, Any]) -> Setting:
        run: config.Run = resolve.replaced(self.run, changes)
        mesh = dict(self.report.mesh) | {k.removeprefix("mesh."): v for k, v in changes.items() if k.startswith("mesh.")}
        compute = (self.report.flops.model + self.again(run) + self.other) / self.devices
        roof, parts = self.report.roofline, run.train.microbatches / self.report.microbatches
        split = mesh["tensor"] / self.report.mesh["tensor"]
        ici = (roof.ici_s or 0) * parts / split + (self._between_heads(run, mesh) if split > 1 else 0)
        dcn = (roof.dcn_s or 0) * parts
        # What waits on the host is sent there and comes back.
        host = 2 * run.train.microbatches * self.kept(run, mesh, on_host=True) / (self.chip.host_bandwidth / self.chip.devices)
        seconds = max(compute / (self.chip.flops / self.chip.devices), ici, roof.hbm_s or 0, dcn, host)
        gradients = self.report.hbm.parameters if parts > 1 and self.report.microbatches == 1 else 0
        moved = self.moments * (("moments" in run.optimizer.offload) - ("moments" in self.run.optimizer.offload))
        seconds += (roof.update_s or 0) + 2 * moved / (self.chip.host_bandwidth / self.chip.devices)
        peak, state = self.state + self.rest + gradients + self.kept(run, mesh) - moved, self.state - moved
        update = state + self.moments + 2 * self.float32 if "moments" in run.optimizer.offload else 0.0
        return Setting(changes, seconds, max(peak, update))

    def kept(self, run: config.Run, mesh: Mapping[str, int], *, on_host: bool = False) -> float:
        """Bytes that a device keeps of a microbatch's layers, in its own memory or in the host's."""
        total, size = 0.0, 2 if run.model.dtype == "bfloat16" else 4
        for name, stack in _stacks(run).items():
            tokens = run.train.batch_size * self.lengths[name] / (run.train.microbatches * rows_of(mesh) * mesh["sequence"])
            parts = [self._kept_of(run.model, stack, stack.blocks[x], mesh) for x in stack.letters()]
            total += size * tokens * sum(n for of in parts for name, n in of.items() if (name in stack.offload) == on_host)
        return total

    def _kept_of(
        self, model: config.Model, stack: config.Stack, block: config.Block, mesh: Mapping[str, int]
    ) -> dict[str, float]:
        """Elements a token, by the names of `lm.config.Stack.offload`; "dots" has what is kept without a name."""
        width, head, ffn, cut = model.width, block.attention.size(model.width), block.ffn, mesh["tensor"]
        qkv = (block.attention.num_heads + 2 * block.attention.kv_heads) * head / cut
        each = ffn.expert if isinstance(ffn, config.Moe) else ffn
        hidden = each.hidden * (1 + each.gated) / cut
        attention = block.attention.num_heads * max(head, LANES) / cut
        # Of attention's products "dots" keeps the result too; no gradient reads that of the feed-forward.
        found = {"qkv": (1 + block.cross) * qkv, "attention": (1 + block.cross) * attention}
        if isinstance(ffn, config.Moe):
            found["experts"] = ffn.top_k * (ffn.capacity or 1.0) * (hidden + width)
        else:
            found["ffn"] = hidden
        parts = {"input": float(width)} | {name: n for name, n in found.items() if name in stack.keep}
        if stack.remat == "dots":
            parts["dots"] = (1 + block.cross) * width + sum(found.get(n, 0) for n in ("qkv", "ffn") if n not in stack.keep)
        return parts

    def again(self, run: config.Run) -> float:
        """FLOPs of a step that the backward pass computes again, over all devices."""
        total = 0.0
        stacks = _stacks(run)
        for stack in stacks.values():
            block = stack.blocks[stack.pattern[0]]
            heads, kv = block.attention.num_heads, block.attention.kv_heads
            qkv = (heads + 2 * kv) / (2 * heads + 2 * kv)
            part = 0.0 if stack.remat == "dots" else 1.0 - ("qkv" in stack.keep) * qkv
            # Of attention's two products its backward pass repeats one; without it, the forward pass is repeated as well.
            twice = 1.0 if run.model.kernel == "plain" else 1.5
            attention = self.forward.attention * (0.5 if "attention" in stack.keep else twice)
            share = self.forward.projections * part + attention
            if isinstance(block.ffn, config.Moe):
                share += self.forward.ffn * ("experts" not in stack.keep)
            elif stack.remat == "full" and "ffn" not in stack.keep:  # of the last product no gradient reads the result
                share += self.forward.ffn * ((1 + block.ffn.gated) / (2 + block.ffn.gated))
            total += share / len(stacks)
        return total

    def _between_heads(self, run: config.Run, mesh: Mapping[str, int]) -> float:
        """Seconds in which the devices of the axis "tensor" exchange a step's activations: sums after attention and after the
        feed-forward, forward, again and backward, each sent twice."""
        total = 0.0
        for name, stack in _stacks(run).items():
            tokens = run.train.batch_size * self.lengths[name] / (rows_of(mesh) * mesh["sequence"])
            ffns = [stack.blocks[letter].ffn for letter in stack.letters()]
            sums = sum(1 + (f.top_k * (f.capacity or 1) if isinstance(f, config.Moe) else 1) for f in ffns)
            total += 2 * 3 * sums * tokens * run.model.width * 2
        return total / (2 * self.chip.link_bandwidth / self.chip.devices)


def search(
    found: list[Setting], report: Report, attempt: Callable[[Setting], Report | None], tries: int = TRIES
) -> Setting | None:
    """The fastest of the settings that are compiled, if it is faster than the report's and fits; None otherwise.

    attempt: compiles one; None if the config refuses it.
    """
    best, least, failed = None, report.roofline.step_s or math.inf, []
    for setting in found:
        if not tries or setting.seconds > least * GAIN:
            break
        if any(setting.peak >= peak for peak in failed):
            continue
        tried = attempt(setting)
        if tried is None:
            continue
        tries -= 1
        if not tried.fits:
            failed.append(setting.peak)
        elif tried.roofline.step_s and tried.roofline.step_s < least:
            best, least = setting, tried.roofline.step_s
    return best
