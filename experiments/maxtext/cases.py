"""The model, pod and batch that both sides compile, as arguments of each. Imports nothing."""

from dataclasses import dataclass

OURS = (
    "--config=configs/pod.py:llama2_7b_v5e",
    "--config.model.decoder.remat=full",
    "--config.model.decoder.keep=()",
    "--config.train.microbatches=1",
)
# Everything else is MaxText's default: float32 gradients and moments, blocks of 512 in the attention kernel.
THEIRS = (
    "model_name=llama2-7b",
    "compile_topology_num_slices=1",
    "per_device_batch_size=4",
    "max_target_length=4096",
    "dtype=bfloat16",
    "weight_dtype=float32",
    "attention=flash",
    "remat_policy=full",
    "scan_layers=true",
    "opt_type=adamw",
    "dataset_type=synthetic",
    "enable_checkpointing=false",
    "log_config=false",
    "skip_jax_distributed_system=true",
)


@dataclass(frozen=True)
class Case:
    topology: str  # our name of it; MaxText's is in `compile_topology`
    ours: tuple[str, ...]
    theirs: dict[str, tuple[str, ...]]  # variant -> arguments: the defaults, and an option of its documentation to save memory


def case(topology: str, name: str, layers: int, chips: int) -> Case:
    ours = (
        *OURS,
        f"--config.model.decoder.num_layers={layers}",
        f"--config.pod.topology={topology}",
        f"--config.mesh.fsdp={chips}",
        f"--config.train.batch_size={4 * chips}",
    )
    theirs = (*THEIRS, f"compile_topology={name}", f"base_num_decoder_layers={layers}", "override_model_config=true")
    return Case(
        topology,
        ours,
        {"maxtext": theirs, "maxtext_tiled": (*theirs, "num_vocab_tiling=8")},
    )


# Experts of a limited capacity on both sides, moved over an axis of their own, the four rows of a device one after the other.
# MaxText's default multiplies without a capacity, by a kernel whose FLOPs no analysis knows.
MIXTRAL = (
    *(word for word in THEIRS if not word.startswith(("model_name", "per_device_batch_size"))),
    "model_name=mixtral-8x7b",
    "per_device_batch_size=1",
    "gradient_accumulation_steps=4",
    "sparse_matmul=false",
    "capacity_factor=1.25",
    "ici_fsdp_parallelism=32",
    "ici_expert_parallelism=8",
    "allow_split_physical_axes=true",  # 32 x 8 of 16 x 16
    "compile_topology=v5e-256",
)
AS_THEIRS = ("model.decoder.remat=full", "model.decoder.keep=()", "mesh.fsdp=32", "mesh.tensor=1", "train.microbatches=4")

CASES = {
    "llama2_7b_2_layers_v5e_16": case("v5e:4x4", "v5e-16", 2, 16),
    "llama2_7b_v5e_256": case("v5e:16x16", "v5e-256", 32, 256),
    "mixtral_8x7b_v5e_256": Case(
        "v5e:16x16",
        ("--config=configs/pod.py:mixtral_8x7b_v5e", *(f"--config.{setting}" for setting in AS_THEIRS)),
        {"maxtext": MIXTRAL},
    ),
}
