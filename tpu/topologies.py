"""TPU chips and slices as data, and Google's names for them. No jax."""

import math
import re
from dataclasses import dataclass

from lm.errors import UserError, nearest

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """A generation of TPUs. Figures are per chip, from Google's system architecture pages; bandwidths of links are per
    direction, from v4 on as measured in "How to Scale Your Model" (jax-ml.github.io/scaling-book), about 10% below Google's
    figures.
    """

    flops: float  # dense bf16 FLOP/s
    hbm: float  # bytes
    usable: float  # bytes of it available to XLA, summed over the chip's devices, from libtpu 0.0.42's out-of-memory errors
    hbm_bandwidth: float  # bytes/s
    links: int  # to neighbours on the torus
    link_bandwidth: float  # bytes/s per link and direction
    accelerator: str  # prefix of its accelerator types: "v5litepod" of v5litepod-256
    counted: int  # what the number in an accelerator type counts per chip: 2 cores or 1 chip
    devices: int = 1  # JAX devices per chip
    chips_a_host: int = 4
    dcn_bandwidth: float = 6.25e9  # bytes/s to other slices: a share of the host's 200 Gbit/s if Google gives no figure
    host_bandwidth: float = 16e9  # bytes/s to the host's memory and from it, over PCIe ("How to Scale Your Model", chapter 2)


# A pod of 256 shares 6.4 Tbit/s to other slices (v5e), or 25.6 (v6e).
CHIPS = {
    "v2": Chip(46e12, 16 * GIB, 2 * 7.48 * GIB, 716e9, 4, 62e9, "v2", 2, devices=2),
    "v3": Chip(123e12, 32 * GIB, 2 * 15.48 * GIB, 900e9, 4, 82e9, "v3", 2, devices=2),
    "v4": Chip(275e12, 32 * GIB, 30.75 * GIB, 1228e9, 6, 45e9, "v4", 2),
    "v5e": Chip(197e12, 16 * GIB, 15.75 * GIB, 819e9, 4, 45e9, "v5litepod", 1, dcn_bandwidth=3.125e9),
    "v5p": Chip(459e12, 95 * GIB, 95.74 * GIB, 2765e9, 6, 90e9, "v5p", 2),
    "v6e": Chip(918e12, 32 * GIB, 31.25 * GIB, 1638e9, 4, 90e9, "v6e", 1, dcn_bandwidth=12.5e9, host_bandwidth=32e9),
    "tpu7x": Chip(2307e12, 192 * GIB, 2 * 94.75 * GIB, 7380e9, 6, 90e9, "tpu7x", 2, devices=2),
}
ALONE = {"v5e": 8, "v6e": 8}  # chips of the largest single-host slice, if that is more than chips_a_host

POD = {"v2": 16, "v3": 32, "v5e": 16, "v6e": 16}  # chips along each of the two dimensions of a full pod

# The default shape of each number of chips, from Google's page of each generation.
_OLD = "2x2 4x4 4x8 8x8 8x16 16x16 16x32 32x32"
_FLAT = "1x1 2x2 2x4 4x4 4x8 8x8 8x16 16x16"
_SOLID = (
    "2x2x1 2x2x2 2x2x4 2x4x4 4x4x4 4x4x8 4x4x12 4x8x8 4x4x20 4x8x12 4x4x28 8x8x8 4x12x12 4x8x20 8x8x12 8x8x16 "
    "8x12x16 12x12x12 8x16x16 12x16x16 16x16x16 16x16x24"
)
_LISTED = {"v2": _OLD, "v3": _OLD, "v4": _SOLID, "v5e": _FLAT, "v5p": _SOLID, "v6e": _FLAT, "tpu7x": "1x1x1 " + _SOLID}
# Generation -> chips -> shape: {"v5e": {256: (16, 16), ...}}
SHAPES = {
    generation: {math.prod(shape): shape for shape in (tuple(map(int, text.split("x"))) for text in listed.split())}
    for generation, listed in _LISTED.items()
}


@dataclass(frozen=True)
class Topology:
    """A slice: `Topology("v5e", (16, 16))`."""

    generation: str
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        return CHIPS[self.generation]

    @property
    def chips(self) -> int:
        return math.prod(self.shape)

    @property
    def devices(self) -> int:
        """The number of JAX devices."""
        return self.chips * self.chip.devices

    @property
    def hosts(self) -> int:
        return 1 if self.chips <= ALONE.get(self.generation, 0) else -(-self.chips // self.chip.chips_a_host)

    @property
    def wrap(self) -> tuple[bool, bool, bool]:
        """Which dimensions wrap around, always three: a 2D slice has False for the third.

        In 3D all do if the slice consists of 4x4x4 cubes (Google's page of v5p); in 2D those that span the full pod.
        """
        if len(self.shape) == 3:
            a, b, c = (all(n % 4 == 0 for n in self.shape),) * 3
        else:
            (a, b), c = (n == POD[self.generation] for n in self.shape), False
        return a, b, c

    @property
    def standard(self) -> bool:
        """Whether it is the default shape of its number of chips, so that its accelerator type identifies it."""
        return SHAPES[self.generation].get(self.chips) == self.shape

    @property
    def accelerator(self) -> str:
        """The accelerator type of gcloud's TPU commands: "v5litepod-256"."""
        return f"{self.chip.accelerator}-{self.chips * self.chip.counted}"

    def __str__(self) -> str:
        return f"{self.generation}:{'x'.join(map(str, self.shape))}"


def parse(text: str) -> Topology:
    """Parses `v5e:16x16`, or the accelerator type of a default shape, `v5litepod-256`. Raises UserError for anything else."""
    if ":" not in text:
        return _of_accelerator(text)
    generation, _, shape = text.partition(":")
    if generation not in CHIPS:
        raise UserError(f"topology '{text}': no generation '{generation}'{nearest(generation, CHIPS)}")
    dims = 3 if CHIPS[generation].links == 6 else 2
    if not re.fullmatch(r"\d+(x\d+)*", shape) or shape.count("x") != dims - 1 or "0" in shape.split("x"):
        example = "x".join(["4"] * dims)
        raise UserError(f"topology '{text}': {generation} has {dims} dimensions, as in '{generation}:{example}'")
    return Topology(generation, tuple(int(n) for n in shape.split("x")))


def _of_accelerator(text: str) -> Topology:
    name, _, number = text.partition("-")
    of = {chip.accelerator: generation for generation, chip in CHIPS.items()}
    if name not in of or not number.isdecimal():
        raise UserError(f"topology '{text}': it is neither a shape ('v5e:16x16') nor an accelerator type ('v5litepod-256')")
    listed = {str(Topology(of[name], shape).accelerator): shape for shape in SHAPES[of[name]].values()}
    if text not in listed:
        raise UserError(f"topology '{text}': no such size{nearest(text, listed)}")
    return Topology(of[name], listed[text])
