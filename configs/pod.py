"""Models of published sizes on TPU pods: `--config=configs/pod.py:NAME` for each NAME of PODS below.

    python -m tpu.compile --config=configs/pod.py:llama2_7b_v5e     # does it fit, how fast can it be at best: on a laptop
    python -m tpu.cost --config=configs/pod.py:llama2_7b_v5e        # FLOPs, days and chip-hours of its tokens
    python -m tpu.table                                             # compiles all of them: tpu/results/table.md
    python -m lm.train --config=configs/pod.py:llama2_7b_v5e --workdir=D --config.data.tokenizer.path=YOURS  # on the pod

Cost: see tpu.cost. Expected: tpu/results/table.md has the memory, the highest possible MFU and the bound of each; none was
trained. Pretraining uses C4 and a tokenizer that you provide; masked models need one with a mask token, span corruption 100
sentinels. What goes on from a model (`_grpo`) takes yours, by --config.train.init_from, and your records.
"""

from dataclasses import replace
from typing import Any

from ml_collections import config_dict

from lm import config
from lm.config import Alibi, Buckets, Model, resolve
from lm.errors import UserError, nearest
from lm.models.presets.bert import BERT_LARGE
from lm.models.presets.clip import VIT_B32 as CLIP_B32
from lm.models.presets.gpt import GPT3_175B
from lm.models.presets.griffin import recurrent_gemma
from lm.models.presets.llama import LLAMA2_7B, LLAMA3_8B, LLAMA3_70B, LLAMA31_8B, SMOLLM2_135M
from lm.models.presets.moe import GROK_1, MIXTRAL_8X7B
from lm.models.presets.palm import PALM_540B
from lm.models.presets.t5 import T5_11B

OBJECTIVES = {"decoder": "causal", "encoder": "masked", "encoder_decoder": "span_corruption"}


def stacks(model: Model) -> dict[str, config.Stack]:
    """Name -> stack of the model: "encoder", "decoder" or both."""
    return {name: stack for name in ("encoder", "decoder") if (stack := getattr(model, name))}


def kernel(model: Model) -> str:
    """Splash attention, unless the model needs what that kernel lacks: biases on the logits, dropout of the weights, or rows of
    other lengths than multiples of 128, such as those of pictures."""
    if model.encoder and model.encoder.stem:
        return "plain"
    biased = any(isinstance(stack.position, Buckets | Alibi) for stack in stacks(model).values())
    dropping = any(attention.dropout for stack in stacks(model).values() for attention in stack.attentions())
    return "plain" if biased or dropping else "splash"


def limited(model: Model, capacity: float = 1.25) -> Model:
    """The model with a limited expert capacity: tokens move to the experts' devices (GShard, arXiv 2006.16668).

    The capacity is 1.25 times an even share, as in Switch Transformer (arXiv 2101.03961, section 2.2). The released models
    have no limit; then tokens would stay and the kernels of all experts move.
    """
    blocks = {k: replace(b, ffn=replace(b.ffn, capacity=capacity)) for k, b in model.decoder.blocks.items()}
    return replace(model, decoder=replace(model.decoder, blocks=blocks))


def pod(
    *,
    model: Model,
    topology: str,
    mesh: dict[str, int],
    lengths: dict[str, int],
    rows: int,
    tokens: float,
    optimizer: dict,
    microbatches: int = 1,
    remat: str = "dots",
    keep: tuple[str, ...] = ("attention",),
    offload: tuple[str, ...] = (),
    z_loss: float = 0.0,
    objective: dict | None = None,
    recipe: dict | None = None,
    records: str = "text",
    adapter: dict | None = None,
    begun: str | None = "gs://YOURS/model",
) -> config_dict.ConfigDict:
    """The config of a run on a pod, with what all entries share: bfloat16 matmuls of float32 parameters, scanned layers
    that keep the results of matrix products and of attention for the backward pass, AdamW with a cosine schedule to a tenth,
    no samples.

    lengths: stack -> positions in a row.
    rows: rows per step.
    tokens: tokens that the first of `lengths` reads in the whole run.
    objective: None: that of OBJECTIVES.
    recipe: how a given model is trained further; None: pretraining.
    records: their format, if that is not "text". Those of conversations share rows.
    begun: what stands in place of the run or converted model that is trained further; None: there is none.
    """
    c = config_dict.ConfigDict()
    c.model = resolve.to_dict(shaped(model, remat, keep, offload))
    c.pod = dict(topology=topology, slices=mesh.get("slice", 1))
    c.mesh = dict(data=1) | mesh
    source = dict(kind="tfds", path="c4/en") if recipe is None else dict(kind="jsonl", path="records.jsonl", format=records)
    c.data = dict(
        sources={"c4" if recipe is None else "mine": source},
        packing=records == "messages",
        tokenizer=dict(vocab_size=model.vocab_size),
        **{f"{name}_length": length for name, length in lengths.items()},
    )
    c.objective = objective or dict(kind=OBJECTIVES[model.architecture])
    c.optimizer = dict(name="adamw", schedule=dict(kind="cosine", warmup=2000, final=0.1)) | optimizer
    steps = round(tokens / (rows * next(iter(lengths.values()))))
    c.train = dict(steps=steps, batch_size=rows, microbatches=microbatches, z_loss=z_loss)
    c.checkpoint = dict(every=1000)
    c.evaluate = dict(every=5000, rows=rows)
    c.log = dict(every=10, samples=())
    if recipe is not None:
        c.recipe, c.adapter, c.train.init_from = recipe, adapter, begun
    return c


def shaped(model: Model, remat: str, keep: tuple[str, ...], offload: tuple[str, ...] = ()) -> Model:
    """The model as it trains on a pod."""
    layers = dict(scan=True, remat=remat, keep=keep, offload=offload)
    scanned = {name: replace(stack, **layers) for name, stack in stacks(model).items()}
    return replace(model, dtype="bfloat16", kernel=kernel(model), **scanned)


def clip(pictures: Model, captions: Model, **settings: Any) -> dict[str, Any]:
    """An entry of two encoders, whose own models both begin from the seed."""
    captions = replace(shaped(captions, "dots", ("attention",)), kernel="plain")
    recipe = dict(kind="two_encoders", text=resolve.to_dict(captions))
    lengths = dict(encoder=pictures.encoder.stem.length, decoder=captions.decoder.position.max_length)
    return settings | dict(model=pictures, lengths=lengths, recipe=recipe, records="captioned", begun=None)


CONSTANT = dict(kind="constant", warmup=0)

LLAMA2 = dict(learning_rate=3e-4, eps=1e-5)  # arXiv 2307.09288, section 2.2; rows of 4,096 to 4M tokens, 2T in all
LLAMA3 = dict(schedule=dict(kind="cosine", warmup=8000, final=0.01))  # arXiv 2407.21783, section 3.4.1; rates: table 3
OURS = dict(learning_rate=2e-4)  # the training of these models is not published; rate and budget are ours

PODS = {
    # Eight chips, for trying things out.
    "smollm2_135m_v5e": dict(
        model=SMOLLM2_135M,
        topology="v5e:2x4",
        mesh=dict(fsdp=8),
        lengths=dict(decoder=2048),
        rows=64,
        tokens=1e10,
        optimizer=OURS,
    ),
    # Recurrent layers and local attention (arXiv 2404.07839: rows of 8,192 tokens, 2T in all), with one layer of attention more
    # than the 26 of the released model, so that the layers are nine repetitions of "RRA".
    "recurrentgemma_2b_v5e": dict(
        model=recurrent_gemma(27, 2560, 10, scale=50.5),
        topology="v5e:8x8",
        mesh=dict(fsdp=64),
        lengths=dict(decoder=8192),
        rows=128,
        tokens=2e12,
        optimizer=OURS,
        microbatches=2,
        remat="full",
        keep=("attention",),
    ),
    "llama2_7b_v5e": dict(
        model=LLAMA2_7B,
        topology="v5e:16x16",
        mesh=dict(fsdp=256),
        lengths=dict(decoder=4096),
        rows=1024,
        tokens=2e12,
        optimizer=LLAMA2,
        microbatches=4,
    ),
    # The same by masked diffusion (arXiv 2502.09992): an encoder, whose tokens all see each other.
    "llama2_7b_diffusion_v5e": dict(
        model=replace(LLAMA2_7B, encoder=LLAMA2_7B.decoder, decoder=None),
        topology="v5e:16x16",
        mesh=dict(fsdp=256),
        lengths=dict(encoder=4096),
        rows=1024,
        tokens=2e12,
        optimizer=LLAMA2,
        objective=dict(kind="masked_diffusion"),
        microbatches=4,
    ),
    # And by block diffusion (arXiv 2503.09573): a row holds 4,096 tokens of text, and their noised copy.
    "llama2_7b_blocks_v5e": dict(
        model=LLAMA2_7B,
        topology="v5e:16x16",
        mesh=dict(fsdp=64, tensor=4),
        lengths=dict(decoder=8192),
        rows=1024,
        tokens=4e12,
        optimizer=LLAMA2,
        microbatches=16,
        objective=dict(kind="block_diffusion", block=16),
    ),
    # v5p-128: 64 chips have room to keep the results of all matmuls, for a quarter of the rows at a time.
    "llama2_7b_v5p": dict(
        model=LLAMA2_7B,
        topology="v5p:4x4x4",
        mesh=dict(fsdp=64),
        lengths=dict(decoder=4096),
        rows=1024,
        tokens=2e12,
        optimizer=LLAMA2,
        microbatches=4,
    ),
    # v5p-1024: 512 chips.
    "llama3_70b_v5p": dict(
        model=LLAMA3_70B,
        topology="v5p:8x8x8",
        mesh=dict(fsdp=256, tensor=2),
        lengths=dict(decoder=8192),
        rows=1024,
        tokens=15e12,
        optimizer=LLAMA3 | dict(learning_rate=1.5e-4),
        microbatches=4,
    ),
    # Two v5e-256: 80 layers keep 10.7 GB for a row of 8,192 tokens, which is therefore sharded in four. What is kept waits in
    # the hosts' memory: their links are busy for 38 of a step's 39 seconds at best.
    "llama3_70b_v5e_x2": dict(
        model=LLAMA3_70B,
        topology="v5e:16x16",
        mesh=dict(slice=2, fsdp=16, sequence=4, tensor=4),
        lengths=dict(decoder=8192),
        rows=1024,
        tokens=15e12,
        optimizer=LLAMA3 | dict(learning_rate=1.5e-4),
        microbatches=32,
        remat="full",
        keep=("qkv", "attention", "ffn"),
        offload=("input", "qkv", "attention", "ffn"),
    ),
    # Rows of 131,072 tokens: section 3.4.2 of the same paper, about 800B tokens.
    "llama31_8b_128k_v5e": dict(
        model=LLAMA31_8B,
        topology="v5e:16x16",
        mesh=dict(fsdp=16, sequence=16),
        lengths=dict(decoder=131_072),
        rows=32,
        tokens=8e11,
        optimizer=LLAMA3 | dict(learning_rate=3e-4),
        microbatches=2,
        remat="full",
        keep=("attention",),
    ),
    # arXiv 2005.14165, table 2.1 and appendix B: 3.2M tokens a step, 300B in all, 375M of them warm-up.
    "gpt3_175b_v5p": dict(
        model=GPT3_175B,
        topology="v5p:8x8x8",
        mesh=dict(fsdp=512),
        lengths=dict(decoder=2048),
        rows=1536,
        tokens=300e9,
        optimizer=dict(learning_rate=6e-5, schedule=dict(kind="cosine", warmup=119, final=0.1)),
        microbatches=3,
    ),
    # arXiv 2204.02311, sections 4 and 5: two pods of 3,072 chips, 256 x 12 in each, and up to 2,048 rows. Its Adafactor is not
    # factored, which makes it Adam with rates relative to a matrix's size: 0.01 of 18,432 ** -0.5. 256,000 is not divisible by
    # twelve, so the vocabulary has 512 unused ids more.
    "palm_540b_v4_x2": dict(
        model=replace(PALM_540B, vocab_size=256_512),
        topology="v4:12x16x16",
        mesh=dict(slice=2, fsdp=256, tensor=12),
        lengths=dict(decoder=2048),
        rows=2048,
        tokens=780e9,
        optimizer=dict(learning_rate=7.4e-5, b2=0.99, schedule=dict(kind="rsqrt", warmup=10_000)),
        microbatches=4,
        z_loss=1e-4,
        remat="full",
        keep=("qkv", "attention", "ffn"),
    ),
    "mixtral_8x7b_v5e": dict(
        model=limited(MIXTRAL_8X7B),
        topology="v5e:16x16",
        mesh=dict(fsdp=8, expert=8, tensor=4),
        lengths=dict(decoder=4096),
        rows=1024,
        tokens=2e12,
        optimizer=OURS,
        microbatches=16,
        remat="full",
        keep=("qkv", "attention", "experts"),
    ),
    "grok1_v5p": dict(
        model=limited(GROK_1),
        topology="v5p:8x8x8",
        mesh=dict(fsdp=16, expert=8, tensor=4),
        lengths=dict(decoder=8192),
        rows=1024,
        tokens=2e12,
        optimizer=OURS,
        microbatches=8,
        remat="full",
        keep=("qkv", "attention", "experts"),
    ),
    # arXiv 1810.04805, section 3.1 and appendix A.2: 64 chips, 256 rows, a million steps. With two rows per device the
    # bound is HBM, whose traffic replicated optimizer states (data=128) would add to.
    "bert_large_v3": dict(
        model=BERT_LARGE,
        topology="v3:8x8",
        mesh=dict(data=8, fsdp=16),
        lengths=dict(encoder=512),
        rows=256,
        tokens=1e6 * 256 * 512,
        optimizer=dict(
            learning_rate=1e-4, b2=0.999, eps=1e-6, weight_decay=0.01, schedule=dict(kind="linear", warmup=10_000, final=0.0)
        ),
    ),
    # arXiv 1910.10683, sections 3.1 and 3.7: 2,048 rows of 512 tokens with targets of 114, a million steps, and a rate of 0.01
    # relative to a matrix's size: of 1024 ** -0.5.
    "t5_11b_v4": dict(
        model=T5_11B,
        topology="v4:4x8x8",
        mesh=dict(fsdp=32, tensor=8),
        lengths=dict(encoder=512, decoder=114),
        rows=2048,
        tokens=1e6 * 2048 * 512,
        optimizer=dict(
            name="adafactor", learning_rate=3e-4, weight_decay=0.0, clip=None, schedule=dict(kind="rsqrt", warmup=10_000)
        ),
        microbatches=2,
    ),
    # arXiv 2402.03300, section 4.2: 64 answers of up to 1,024 tokens to each question, 1,024 in a step, which is one update;
    # 144,000 questions.
    "llama3_8b_grpo_v5p": dict(
        model=LLAMA3_8B,
        topology="v5p:4x4x4",
        mesh=dict(fsdp=8, tensor=8),
        lengths=dict(decoder=2048),
        rows=1024,
        tokens=9000 * 1024 * 2048,
        optimizer=dict(learning_rate=1e-6, weight_decay=0.0, schedule=CONSTANT),
        recipe=dict(kind="policy", method="grpo", group=64, length=1025, answer=1024, kl_weight=0.04, prefix=False),
        records="pair",
        remat="full",
        keep=(),
    ),
    # Conversations, whose rows they share: rate and steps are those of arXiv 2407.21783, section 4.1.3; the rows are ours.
    "llama3_8b_sft_v5p": dict(
        model=LLAMA3_8B,
        topology="v5p:4x4x4",
        mesh=dict(fsdp=64),
        lengths=dict(decoder=4096),
        rows=256,
        tokens=9000 * 256 * 4096,
        optimizer=dict(learning_rate=1e-5),
        recipe=dict(kind="finetune", how="text", length=3072, answer=1024),
        records="messages",
    ),
    # The same by adapters over a base in NF4 (arXiv 2305.14314, whose rate this is), on eight chips.
    "llama3_8b_qlora_v5e": dict(
        model=LLAMA3_8B,
        topology="v5e:2x4",
        mesh=dict(fsdp=8),
        lengths=dict(decoder=4096),
        rows=64,
        tokens=9000 * 64 * 4096,
        optimizer=dict(learning_rate=2e-4, weight_decay=0.0),
        microbatches=4,
        recipe=dict(kind="finetune", how="text", length=3072, answer=1024),
        records="messages",
        adapter=dict(rank=16, base="nf4"),
        remat="full",
        keep=("qkv", "attention"),
    ),
    # arXiv 1910.10683, section 3.1.2: 128 rows of 512 tokens, 2^18 steps, and a rate of 0.001 relative to a matrix's size.
    "t5_11b_sft_v4": dict(
        model=T5_11B,
        topology="v4:4x4x4",
        mesh=dict(fsdp=8, tensor=8),
        lengths=dict(encoder=512, decoder=128),
        rows=128,
        tokens=2**18 * 128 * 512,
        optimizer=dict(name="adafactor", learning_rate=3e-5, weight_decay=0.0, clip=None, schedule=CONSTANT),
        recipe=dict(kind="finetune", how="text", length=512, answer=128),
        records="pair",
    ),
    # arXiv 2103.00020, sections 2.4 and 2.5 and table 18: 32,768 pairs a step, each compared with all others; 32 epochs of 400M
    # pairs. A picture is 49 patches and a class token.
    "clip_b32_v5e": clip(
        *CLIP_B32,
        topology="v5e:16x16",
        mesh=dict(fsdp=256),
        rows=32_768,
        tokens=32 * 400e6 * 50,
        optimizer=dict(
            learning_rate=5e-4, b2=0.98, eps=1e-6, weight_decay=0.2, schedule=dict(kind="cosine", warmup=2000, final=0.0)
        ),
    ),
}


def get_config(name: str = "llama2_7b_v5e") -> config_dict.ConfigDict:
    if name not in PODS:
        raise UserError(f"configs/pod.py has no {name}{nearest(name, PODS)}")
    return pod(**PODS[name])
