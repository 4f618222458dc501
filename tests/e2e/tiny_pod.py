"""A small decoder for eight chips: what the tests of `tpu.compile` compile. There is no text to train it on.

The argument is `causal`, or how a given model is trained further: `sft`, `lora` or `grpo`.
"""

from ml_collections import config_dict


def get_config(what="causal"):
    c = config_dict.ConfigDict()
    block = dict(
        attention=dict(num_heads=4),
        ffn=dict(hidden=1024, activation="silu", gated=True),
        norm=dict(kind="rms"),
    )
    decoder = dict(num_layers=2, blocks=dict(L=block), position=dict(kind="rope"), scan=True, remat="none")
    c.model = dict(vocab_size=2048, width=256, decoder=decoder, head=dict(tied=False), dtype="bfloat16")
    c.data = dict(decoder_length=256)
    c.objective = dict(kind="causal")
    c.optimizer = dict(name="adamw")
    c.train = dict(batch_size=16, microbatches=2)
    c.mesh = dict(data=1, fsdp=4, tensor=2)
    c.pod = dict(topology="v5e:2x4")
    if what == "causal":
        return c
    c.data.sources = dict(mine=dict(kind="jsonl", path="mine.jsonl", format="pair" if what == "grpo" else "messages"))
    c.data.packing = what != "grpo"
    c.train.init_from = "gs://bucket/model"
    c.recipe = dict(kind="finetune", how="text", length=128, answer=64)
    if what == "lora":
        c.adapter = dict(rank=4, base="nf4")
    if what == "grpo":
        c.recipe = dict(kind="policy", method="grpo", group=4, length=65, answer=64, prefix=False)
    return c
