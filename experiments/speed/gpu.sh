#!/usr/bin/env bash
# Training and decoding on one NVIDIA GPU, beside PyTorch's compiled step and transformers, in some five minutes: tokens/s, memory of
# the GPU, the card's name. Needs `pip install -e .[cuda13] torch transformers`. Writes gpu.json, gpu.md, gpu_generate.json and
# gpu_generate.md to the folder that is given, by default next to this file.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=${1:-$here}
cd "$here/../.."
export XLA_PYTHON_CLIENT_PREALLOCATE=false  # both contenders are in memory at once
python -c 'import jax; assert jax.default_backend() == "gpu", f"jax finds {jax.devices()}, and no GPU"'
python -m experiments.speed.run --workloads=G1,G2,G3,G4,G5 --dtypes=bfloat16 --contenders=torch_compiled,ours \
    --rounds=3 --steps=10 --out="$out/gpu.json"
python -m experiments.speed.generate --models=L135M --dtypes=bfloat16 --batches=1,32 --rounds=2 --out="$out/gpu_generate.json"
