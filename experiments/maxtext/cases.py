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


CASES = {
    "llama2_7b_2_layers_v5e_16": case("v5e:4x4", "v5e-16", 2, 16),
    "llama2_7b_v5e_256": case("v5e:16x16", "v5e-256", 32, 256),
}
