"""XLA's flags for TPUs as data: value, reason and source. libtpu reads them from LIBTPU_INIT_ARGS. No jax.

Few flags are set: asynchronous collectives are on by default, and a flag that was not measured on one's own model is a guess.
libtpu ends the process at a name that it does not know, so a test checks each of them with libtpu.
"""

from dataclasses import dataclass

MAXTEXT = "AI-Hypercomputer/maxtext, benchmarks/xla_flags_library.py and its recipes"


@dataclass(frozen=True)
class Flag:
    name: str
    value: str
    why: str
    source: str
    generations: tuple[str, ...] = ("v4", "v5e", "v5p", "v6e")  # on which the source uses it
    slices: int = 1  # minimum number of slices

    def __str__(self) -> str:
        return f"--{self.name}={self.value}"


FLAGS = (
    Flag(
        "xla_tpu_scoped_vmem_limit_kib",
        "98304",
        "a fusion may use 96 of the 128 MiB of vector memory: larger tiles, fewer transfers from HBM",
        MAXTEXT,
        generations=("v6e",),
    ),
    Flag(
        "xla_tpu_enable_async_collective_fusion_fuse_all_gather",
        "true",
        "fsdp: the gather of a layer's parameters runs inside the fusions of the layer before",
        MAXTEXT,
    ),
    Flag(
        "xla_tpu_enable_async_collective_fusion_multiple_steps",
        "true",
        "fsdp: such a gather may be spread over several fusions",
        MAXTEXT,
    ),
    Flag(
        "xla_tpu_overlap_compute_collective_tc",
        "true",
        "fsdp: matmuls and collectives overlap on the tensor core",
        MAXTEXT,
    ),
    Flag("xla_enable_async_all_gather", "true", "fsdp: gathers start before their results are needed", MAXTEXT),
    Flag(
        "xla_jf_spmd_threshold_for_windowed_einsum_mib",
        "1000000",
        "fsdp on small slices: gathers parameters before a matmul, instead of splitting it into one part per device and "
        "writing its partial sums for each; the best time of smollm2_135m_v5e with two layers falls from 42 to 28 ms",
        "python -m tpu.compile, with and without",
    ),
    Flag(
        "xla_tpu_enable_data_parallel_all_reduce_opt",
        "true",
        "several slices: gradients cross the data-centre network during the backward pass",
        MAXTEXT,
        slices=2,
    ),
    Flag(
        "xla_tpu_data_parallel_opt_different_sized_ops",
        "true",
        "several slices: the same for reductions of different sizes",
        MAXTEXT,
        slices=2,
    ),
)

AVOID = {
    "xla_tpu_spmd_rng_bit_generator_unsafe": "random bits would depend on the sharding of an array: a run would differ on "
    "another mesh, and after a restart on another pod",
}


def flags_for(generation: str, slices: int = 1) -> tuple[Flag, ...]:
    """The flags of a run on `slices` slices of this generation; none if no source measured any for it."""
    return tuple(flag for flag in FLAGS if generation in flag.generations and slices >= flag.slices)


def init_args(generation: str, slices: int = 1) -> str:
    """The value of LIBTPU_INIT_ARGS."""
    return " ".join(map(str, flags_for(generation, slices)))
