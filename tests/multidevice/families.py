"""With 8 simulated devices: every family in miniature trains for 20 sharded steps and learns (see test_multidevice.py)."""

import importlib
import os
import pkgutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from cases import LENGTHS, start
from fixtures import rows

from lm import config, sharding
from lm.models import presets
from lm.models.miniature import tiny
from lm.models.presets.electra import ELECTRA_SMALL_GENERATOR

MESH = config.Mesh(data=2, fsdp=2, tensor=2)
# One preset of each architecture in a file; the others differ in size only.
EXTRA = {
    "gpt": ("GPT1", "GPT2", "GPT3_175B"),
    "llama": ("LLAMA_7B", "LLAMA31_8B", "MISTRAL_7B", "SMOLLM2_135M"),
    "gemma": ("GEMMA_2B", "GEMMA2_9B"),
    "falcon": ("FALCON_7B", "FALCON_40B"),
    "starcoder": ("STARCODER_15B", "STARCODER2_3B"),
    "electra": ("ELECTRA_SMALL", "ELECTRA_SMALL_GENERATOR"),
    "moe": ("MIXTRAL_8X7B", "GROK_1"),
    "t5": ("T5_SMALL", "FLAN_T5_SMALL"),
}


def models():
    for found in pkgutil.iter_modules(presets.__path__):
        values = vars(importlib.import_module(f"lm.models.presets.{found.name}"))
        first = [name for name, v in values.items() if isinstance(v, config.Model)][:1]  # a file of two encoders has none
        for name in EXTRA.get(found.name, first):
            model = values[name]
            if model.encoder is None or model.encoder.stem is None:  # what reads no text has recipes and tests of its own
                yield pytest.param(model, id=f"{found.name}.{name}")


FIRST, OF = (int(x) for x in os.environ.get("PART", "0/1").split("/"))  # this process's part of the families


@pytest.mark.parametrize("model", list(models())[FIRST::OF])
def test_a_family_trains_sharded(model):
    small = tiny(model, vocab_size=512)
    mesh = MESH
    if any(isinstance(b.ffn, config.Moe) for s in (small.encoder, small.decoder) if s for b in s.blocks.values()):
        mesh = replace(mesh, data=1, expert=2)
    objective, lengths = LENGTHS[small.architecture]
    if small.head.outputs:  # a discriminator: use any generator of the file
        generator = tiny(ELECTRA_SMALL_GENERATOR, vocab_size=512, table_width=small.embed.width or small.width)
        objective = config.ReplacedTokens(generator)
    data = rows(small.architecture, objective, **lengths)
    optimizer = config.Optimizer(learning_rate=3e-3, schedule=config.Schedule("constant", warmup=4))
    train = config.Train(steps=20, batch_size=8)
    run = config.Run(small, objective=objective, optimizer=optimizer, train=train, mesh=mesh)
    mesh, plan, step = start(run, data)
    losses = []
    with sharding.use(mesh):
        state, batch = plan.create(0), sharding.global_batch(data.rows, np.arange(8), mesh)
        for _ in range(20):  # on the same rows, to memorise them
            state, metrics = step(state, None, batch)
            losses.append(float(metrics["loss"]))
    assert losses[-1] < losses[0] - 0.3, losses
