"""Every preset at its full published size, by `eval_shape`: nothing is allocated.

Counts are compared exactly with the numbers in this file and with transformers' model of the same sizes (on torch's meta
device), and, where no weights were released, with the digits that the paper prints.
"""

import dataclasses
import importlib
import math
import pkgutil

import jax
import pytest

from lm import config
from lm.models import presets
from lm.models.presets import (
    bart,
    bert,
    bloom,
    clip,
    distilbert,
    electra,
    falcon,
    gemma,
    gpt,
    gptj,
    griffin,
    lamda,
    llada,
    llama,
    mamba2,
    minilm,
    modernbert,
    moe,
    neox,
    olmo,
    opt,
    palm,
    phi,
    qwen,
    roberta,
    starcoder,
    t5,
    vaswani,
    vit,
    whisper,
)
from lm.models.transformer import Transformer, boxed_params

# Builders: each returns transformers' model with the sizes of a preset.


def parts(model: config.Model) -> tuple[config.Stack, config.Attention, int]:
    trunk = model.decoder or model.encoder
    block = trunk.blocks[trunk.letters()[-1]]
    return trunk, block.attention, block.ffn.hidden


def sizes(model: config.Model) -> dict:
    """Returns the sizes that most configs of transformers have, under their usual names."""
    trunk, attention, hidden = parts(model)
    names = dict(hidden_size=model.width, num_hidden_layers=trunk.num_layers, intermediate_size=hidden)
    return names | dict(vocab_size=model.vocab_size, num_attention_heads=attention.num_heads)


def their_mixtral(t, model: config.Model):
    ffn = model.decoder.blocks["L"].ffn
    dense = dataclasses.replace(model.decoder.blocks["L"], ffn=ffn.expert)
    model = dataclasses.replace(model, decoder=dataclasses.replace(model.decoder, blocks={"L": dense}))
    experts = dict(num_local_experts=ffn.num_experts, num_experts_per_tok=ffn.top_k)
    return t.MixtralForCausalLM(t.MixtralConfig(**grouped(model), **experts))


def grouped(model: config.Model) -> dict:
    _, attention, _ = parts(model)
    kv_heads = attention.num_kv_heads or attention.num_heads
    heads = dict(num_key_value_heads=kv_heads, head_dim=attention.size(model.width))
    return sizes(model) | heads | dict(tie_word_embeddings=model.head.tied)


def their_recurrent_gemma(t, model):
    attention, mixer = model.decoder.blocks["A"].attention, model.decoder.blocks["R"].mixer
    names = dict(hidden_size=model.width, num_hidden_layers=model.decoder.num_layers, vocab_size=model.vocab_size)
    names |= dict(num_attention_heads=attention.num_heads, num_key_value_heads=attention.kv_heads, conv1d_width=mixer.conv)
    hidden = 2 * model.decoder.blocks["A"].ffn.hidden
    return t.RecurrentGemmaForCausalLM(t.RecurrentGemmaConfig(intermediate_size=hidden, **names))


def their_mamba2(t, model):
    mixer = model.decoder.blocks["L"].mixer
    names = dict(hidden_size=model.width, num_hidden_layers=model.decoder.num_layers, vocab_size=model.vocab_size)
    names |= dict(num_heads=mixer.num_heads(model.width), head_dim=mixer.head_dim, state_size=mixer.state)
    return t.Mamba2ForCausalLM(t.Mamba2Config(n_groups=mixer.groups, tie_word_embeddings=True, **names))


def their_whisper(t, model):
    encoder, attention, hidden = model.encoder, model.encoder.blocks["L"].attention, model.encoder.blocks["L"].ffn.hidden
    heads = dict(encoder_attention_heads=attention.num_heads, decoder_attention_heads=attention.num_heads)
    layers = dict(encoder_layers=encoder.num_layers, decoder_layers=model.decoder.num_layers)
    names = dict(d_model=model.width, encoder_ffn_dim=hidden, decoder_ffn_dim=hidden, vocab_size=model.vocab_size)
    return t.WhisperForConditionalGeneration(t.WhisperConfig(**names, **heads, **layers, num_mel_bins=encoder.stem.bands))


def gpt_sizes(model: config.Model) -> dict:
    trunk, attention, _ = parts(model)
    names = dict(n_embd=model.width, n_layer=trunk.num_layers, n_head=attention.num_heads)
    return names | dict(vocab_size=model.vocab_size, n_positions=trunk.position.max_length)


def their_gptj(t, model):
    trunk, attention, _ = parts(model)
    names = dict(n_embd=model.width, n_layer=trunk.num_layers, n_head=attention.num_heads)
    return t.GPTJForCausalLM(t.GPTJConfig(vocab_size=model.vocab_size, **names))


def their_falcon(t, model):
    new = model.decoder.blocks["L"].parallel == "separate"
    kv_heads = model.decoder.blocks["L"].attention.num_kv_heads
    names = sizes(model) | dict(new_decoder_architecture=new, num_kv_heads=kv_heads)
    del names["intermediate_size"]  # four times the width
    return t.FalconForCausalLM(t.FalconConfig(**names))


def their_bloom(t, model):
    trunk, attention, _ = parts(model)
    names = dict(hidden_size=model.width, n_layer=trunk.num_layers, n_head=attention.num_heads)
    return t.BloomForCausalLM(t.BloomConfig(vocab_size=model.vocab_size, **names))


def their_roberta(t, model):
    names = sizes(model) | dict(max_position_embeddings=514, type_vocab_size=1)
    return t.RobertaForMaskedLM(t.RobertaConfig(**names))


def their_distilbert(t, model):
    trunk, attention, hidden = parts(model)
    names = dict(dim=model.width, n_layers=trunk.num_layers, n_heads=attention.num_heads, hidden_dim=hidden)
    return t.DistilBertForMaskedLM(t.DistilBertConfig(vocab_size=model.vocab_size, **names))


def their_electra(t, model):
    cls = t.ElectraForPreTraining if model.head.outputs == 1 else t.ElectraForMaskedLM
    return cls(t.ElectraConfig(embedding_size=model.embed.width or model.width, **sizes(model)))


def their_t5(t, model):
    trunk, attention, hidden = parts(model)
    names = dict(d_model=model.width, num_layers=trunk.num_layers, num_heads=attention.num_heads, d_ff=hidden)
    gated = "relu" if model.head.tied else "gated-gelu"
    names |= dict(vocab_size=model.vocab_size, d_kv=attention.head_dim, feed_forward_proj=gated)
    theirs = t.T5ForConditionalGeneration(t.T5Config(**names))
    if not model.head.tied:  # transformers always ties it; the released checkpoints have an untied head
        theirs.lm_head = type(theirs.lm_head)(model.width, model.vocab_size, bias=False)
    return theirs


def their_bart(t, model):
    trunk, attention, hidden = parts(model)
    names = dict(d_model=model.width, max_position_embeddings=trunk.position.max_length, vocab_size=model.vocab_size)
    for side in ("encoder", "decoder"):
        names |= {f"{side}_layers": trunk.num_layers, f"{side}_attention_heads": attention.num_heads}
        names |= {f"{side}_ffn_dim": hidden}
    return t.BartForConditionalGeneration(t.BartConfig(**names))


def image_sizes(model: config.Model) -> dict:
    """Sizes of an encoder of patches or of captions, under transformers' names."""
    trunk, _, _ = parts(model)
    names = sizes(model) | (dict(projection_dim=model.head.outputs) if model.head.outputs else {})
    if trunk.stem is None:
        return names | dict(max_position_embeddings=trunk.position.max_length)
    return names | dict(patch_size=trunk.stem.size, image_size=trunk.stem.image)


def their_vit(t, model):
    names = {k: v for k, v in image_sizes(model).items() if k not in ("vocab_size", "projection_dim")}
    return t.ViTForImageClassification(t.ViTConfig(num_labels=model.head.outputs, **names))


def their_clip(t, model):
    names = image_sizes(model)
    if model.decoder:
        return t.CLIPTextModelWithProjection(t.CLIPTextConfig(**names))
    del names["vocab_size"]
    return t.CLIPVisionModelWithProjection(t.CLIPVisionConfig(**names))


def plain(kind: str, head: str = "ForCausalLM", of=grouped):
    """Returns the builder of a family whose config takes the keys that `of(model)` returns."""
    return lambda t, model: getattr(t, kind + head)(getattr(t, f"{kind}Config")(**of(model)))


# family: (transformers' builder or None, {name: (preset, parameters)}); the smallest size first
FAMILIES = {
    "gpt1": (plain("OpenAIGPT", "LMHeadModel", gpt_sizes), {"openai-gpt": (gpt.GPT1, 116_534_784)}),
    "gpt2": (
        plain("GPT2", "LMHeadModel", gpt_sizes),
        {
            "gpt2": (gpt.GPT2, 124_439_808),
            "gpt2-medium": (gpt.GPT2_MEDIUM, 354_823_168),
            "gpt2-large": (gpt.GPT2_LARGE, 774_030_080),
            "gpt2-xl": (gpt.GPT2_XL, 1_557_611_200),
        },
    ),
    "gpt3": (  # counted as a GPT-2 of that shape: banded attention has no parameters
        plain("GPT2", "LMHeadModel", gpt_sizes),
        {
            "gpt3-small": (gpt.GPT3_SMALL, 125_226_240),
            "gpt3-medium": (gpt.GPT3_MEDIUM, 355_871_744),
            "gpt3-large": (gpt.GPT3_LARGE, 760_300_032),
            "gpt3-xl": (gpt.GPT3_XL, 1_315_723_264),
            "gpt3-2.7b": (gpt.GPT3_2_7B, 2_651_553_280),
            "gpt3-6.7b": (gpt.GPT3_6_7B, 6_658_404_352),
            "gpt3-13b": (gpt.GPT3_13B, 12_853_386_240),
            "gpt3-175b": (gpt.GPT3_175B, 174_604_259_328),
            "codex-12b": (gpt.CODEX_12B, 12_853_509_120),
        },
    ),
    "palm": (
        None,
        {
            "palm-8b": (palm.PALM_8B, 8_632_012_800),
            "palm-62b": (palm.PALM_62B, 62_495_662_080),
            "palm-540b": (palm.PALM_540B, 540_356_474_880),
        },
    ),
    "lamda": (None, {"lamda-137b": (lamda.LAMDA_137B, 137_702_158_336)}),
    "llada": (plain("Llama"), {"llada-8b": (llada.LLADA_8B, 8_015_581_184)}),
    "falcon": (
        their_falcon,
        {
            "falcon-7b": (falcon.FALCON_7B, 6_921_720_704),
            "falcon-40b": (falcon.FALCON_40B, 41_303_293_952),
            "falcon-180b": (falcon.FALCON_180B, 178_557_088_768),
        },
    ),
    "llama": (
        plain("Llama"),
        {
            "llama-7b": (llama.LLAMA_7B, 6_738_415_616),
            "llama-13b": (llama.LLAMA_13B, 13_015_864_320),
            "llama-33b": (llama.LLAMA_33B, 32_528_943_616),
            "llama-65b": (llama.LLAMA_65B, 65_285_660_672),
            "orca-13b": (llama.ORCA_13B, 13_015_874_560),
            "llama-2-7b": (llama.LLAMA2_7B, 6_738_415_616),
            "llama-2-13b": (llama.LLAMA2_13B, 13_015_864_320),
            "llama-2-70b": (llama.LLAMA2_70B, 68_976_648_192),
            "llama-3-8b": (llama.LLAMA3_8B, 8_030_261_248),
            "llama-3-70b": (llama.LLAMA3_70B, 70_553_706_496),
            "llama-3.1-8b": (llama.LLAMA31_8B, 8_030_261_248),
            "llama-3.1-70b": (llama.LLAMA31_70B, 70_553_706_496),
            "llama-3.1-405b": (llama.LLAMA31_405B, 405_853_388_800),
        },
    ),
    "mixtral": (their_mixtral, {"mixtral-8x7b": (moe.MIXTRAL_8X7B, 46_702_792_704)}),
    "grok": (None, {"grok-1": (moe.GROK_1, 315_684_820_992)}),
    "mistral": (plain("Mistral"), {"mistral-7b-v0.1": (llama.MISTRAL_7B, 7_241_732_096)}),
    "smollm2": (
        plain("Llama"),
        {
            "smollm2-135m": (llama.SMOLLM2_135M, 134_515_008),
            "smollm2-360m": (llama.SMOLLM2_360M, 361_821_120),
            "smollm2-1.7b": (llama.SMOLLM2_1_7B, 1_711_376_384),
        },
    ),
    "qwen3": (
        plain("Qwen3"),
        {
            "qwen3-0.6b": (qwen.QWEN3_0_6B, 596_049_920),
            "qwen3-1.7b": (qwen.QWEN3_1_7B, 1_720_574_976),
            "qwen3-4b": (qwen.QWEN3_4B, 4_022_468_096),
            "qwen3-8b": (qwen.QWEN3_8B, 8_190_735_360),
            "qwen3-14b": (qwen.QWEN3_14B, 14_768_307_200),
            "qwen3-32b": (qwen.QWEN3_32B, 32_762_123_264),
        },
    ),
    "olmo2": (
        plain("Olmo2"),
        {
            "olmo-2-1b": (olmo.OLMO2_1B, 1_484_916_736),
            "olmo-2-7b": (olmo.OLMO2_7B, 7_298_617_344),
            "olmo-2-13b": (olmo.OLMO2_13B, 13_716_198_400),
            "olmo-2-32b": (olmo.OLMO2_32B, 32_234_279_936),
        },
    ),
    "gemma": (
        plain("Gemma"),
        {"gemma-2b": (gemma.GEMMA_2B, 2_506_172_416), "gemma-7b": (gemma.GEMMA_7B, 8_537_680_896)},
    ),
    "gemma2": (
        plain("Gemma2"),
        {
            "gemma-2-2b": (gemma.GEMMA2_2B, 2_614_341_888),
            "gemma-2-9b": (gemma.GEMMA2_9B, 9_241_705_984),
            "gemma-2-27b": (gemma.GEMMA2_27B, 27_227_128_320),
        },
    ),
    "recurrent_gemma": (
        their_recurrent_gemma,
        {
            "recurrentgemma-2b": (griffin.RECURRENTGEMMA_2B, 2_682_862_080),
            "recurrentgemma-9b": (griffin.RECURRENTGEMMA_9B, 8_579_977_216),
        },
    ),
    "mamba2": (
        their_mamba2,
        {
            "mamba2-130m": (mamba2.MAMBA2_130M, 128_989_632),
            "mamba2-370m": (mamba2.MAMBA2_370M, 368_346_624),
            "mamba2-780m": (mamba2.MAMBA2_780M, 780_161_280),
            "mamba2-1.3b": (mamba2.MAMBA2_1_3B, 1_343_757_312),
            "mamba2-2.7b": (mamba2.MAMBA2_2_7B, 2_702_599_680),
        },
    ),
    "gptj": (their_gptj, {"gpt-j-6b": (gptj.GPTJ_6B, 6_050_882_784)}),
    "phi": (plain("Phi", of=sizes), {"phi-2": (phi.PHI2, 2_779_683_840)}),
    "neox": (
        plain("GPTNeoX", of=sizes),
        {
            "pythia-14m": (neox.PYTHIA_14M, 14_067_712),
            "pythia-31m": (neox.PYTHIA_31M, 30_494_720),
            "pythia-70m": (neox.PYTHIA_70M, 70_426_624),
            "pythia-160m": (neox.PYTHIA_160M, 162_322_944),
            "pythia-410m": (neox.PYTHIA_410M, 405_334_016),
            "pythia-1b": (neox.PYTHIA_1B, 1_011_781_632),
            "pythia-1.4b": (neox.PYTHIA_1_4B, 1_414_647_808),
            "pythia-2.8b": (neox.PYTHIA_2_8B, 2_775_208_960),
            "pythia-6.9b": (neox.PYTHIA_6_9B, 6_857_302_016),
            "pythia-12b": (neox.PYTHIA_12B, 11_846_072_320),
            "gpt-neox-20b": (neox.NEOX_20B, 20_554_567_680),
        },
    ),
    "starcoder": (
        plain("GPTBigCode", of=gpt_sizes),
        {"starcoder": (starcoder.STARCODER_15B, 15_517_456_384)},
    ),
    "starcoder2": (
        plain("Starcoder2"),
        {
            "starcoder2-3b": (starcoder.STARCODER2_3B, 3_030_371_328),
            "starcoder2-7b": (starcoder.STARCODER2_7B, 7_173_923_840),
            "starcoder2-15b": (starcoder.STARCODER2_15B, 15_957_889_024),
        },
    ),
    "bloom": (
        their_bloom,
        {
            "bloom-560m": (bloom.BLOOM_560M, 559_214_592),
            "bloom-1b1": (bloom.BLOOM_1B1, 1_065_314_304),
            "bloom-1b7": (bloom.BLOOM_1B7, 1_722_408_960),
            "bloom-3b": (bloom.BLOOM_3B, 3_002_557_440),
            "bloom-7b1": (bloom.BLOOM_7B1, 7_069_016_064),
            "bloom": (bloom.BLOOM_176B, 176_247_271_424),
            "bloomberggpt-50b": (bloom.BLOOMBERG_50B, 50_558_868_480),
        },
    ),
    "opt": (
        lambda t, m: t.OPTForCausalLM(t.OPTConfig(**sizes(m), ffn_dim=parts(m)[2], word_embed_proj_dim=m.width)),
        {
            "opt-125m": (opt.OPT_125M, 125_239_296),
            "opt-1.3b": (opt.OPT_1_3B, 1_315_758_080),
            "opt-2.7b": (opt.OPT_2_7B, 2_651_596_800),
            "opt-6.7b": (opt.OPT_6_7B, 6_658_473_984),
            "opt-13b": (opt.OPT_13B, 12_853_473_280),
            "opt-30b": (opt.OPT_30B, 29_974_540_288),
            "opt-66b": (opt.OPT_66B, 65_719_701_504),
            "opt-175b": (opt.OPT_175B, 174_604_468_224),
        },
    ),
    "bert": (
        plain("Bert", "ForMaskedLM", sizes),
        {
            "bert-base-uncased": (bert.BERT_BASE, 109_514_298),
            "bert-large-uncased": (bert.BERT_LARGE, 335_174_458),
        },
    ),
    "small bert": (
        plain("Bert", "ForMaskedLM", sizes),
        {
            f"bert-{name}": (bert.BERT_SMALL[name], count)
            for name, count in {
                "L2_H128": 4_416_698,
                "L2_H256": 9_622_074,
                "L2_H512": 22_490_426,
                "L2_H768": 38_635_578,
                "L4_H128": 4_813_242,
                "L4_H256": 11_201_594,
                "L4_H512": 28_795_194,
                "L4_H768": 52_811_322,
                "L6_H128": 5_209_786,
                "L6_H256": 12_781_114,
                "L6_H512": 35_099_962,
                "L6_H768": 66_987_066,
                "L8_H128": 5_606_330,
                "L8_H256": 14_360_634,
                "L8_H512": 41_404_730,
                "L8_H768": 81_162_810,
                "L10_H128": 6_002_874,
                "L10_H256": 15_940_154,
                "L10_H512": 47_709_498,
                "L10_H768": 95_338_554,
                "L12_H128": 6_399_418,
                "L12_H256": 17_519_674,
                "L12_H512": 54_014_266,
                "L12_H768": 109_514_298,
            }.items()
        },
    ),
    "roberta": (
        their_roberta,
        {
            "roberta-base": (roberta.ROBERTA_BASE, 124_697_433),
            "roberta-large": (roberta.ROBERTA_LARGE, 355_412_057),
        },
    ),
    "distilbert": (their_distilbert, {"distilbert-base-uncased": (distilbert.DISTILBERT, 66_985_530)}),
    "electra": (
        their_electra,
        {
            "electra-small-discriminator": (electra.ELECTRA_SMALL, 13_549_057),
            "electra-base-discriminator": (electra.ELECTRA_BASE, 109_483_009),
            "electra-large-discriminator": (electra.ELECTRA_LARGE, 335_142_913),
            "electra-small-generator": (electra.ELECTRA_SMALL_GENERATOR, 13_546_682),
            "electra-base-generator": (electra.ELECTRA_BASE_GENERATOR, 33_740_602),
            "electra-large-generator": (electra.ELECTRA_LARGE_GENERATOR, 51_295_290),
        },
    ),
    "minilm": (plain("Bert", "Model", sizes), {"all-MiniLM-L6-v2": (minilm.MINILM_L6, 22_713_216)}),
    "modernbert": (
        plain("ModernBert", "ForMaskedLM", sizes),
        {
            "ModernBERT-base": (modernbert.MODERNBERT_BASE, 149_655_232),
            "ModernBERT-large": (modernbert.MODERNBERT_LARGE, 395_881_664),
        },
    ),
    "t5": (
        their_t5,
        {
            "t5-small": (t5.T5_SMALL, 60_506_624),
            "t5-base": (t5.T5_BASE, 222_903_552),
            "t5-large": (t5.T5_LARGE, 737_668_096),
            "t5-3b": (t5.T5_3B, 2_851_598_336),
            "t5-11b": (t5.T5_11B, 11_307_321_344),
        },
    ),
    "t5 1.1": (
        their_t5,
        {
            "flan-t5-small": (t5.FLAN_T5_SMALL, 76_961_152),
            "flan-t5-base": (t5.FLAN_T5_BASE, 247_577_856),
            "flan-t5-large": (t5.FLAN_T5_LARGE, 783_150_080),
            "flan-t5-xl": (t5.FLAN_T5_XL, 2_849_757_184),
            "flan-t5-xxl": (t5.FLAN_T5_XXL, 11_135_332_352),
        },
    ),
    "bart": (
        their_bart,
        {"bart-base": (bart.BART_BASE, 139_420_416), "bart-large": (bart.BART_LARGE, 406_291_456)},
    ),
    "whisper": (
        their_whisper,
        {
            "whisper-tiny": (whisper.WHISPER_TINY, 37_760_640),
            "whisper-base": (whisper.WHISPER_BASE, 72_593_920),
            "whisper-small": (whisper.WHISPER_SMALL, 241_734_912),
            "whisper-medium": (whisper.WHISPER_MEDIUM, 763_857_920),
            "whisper-large": (whisper.WHISPER_LARGE, 1_543_304_960),
            "whisper-large-v3": (whisper.WHISPER_LARGE_V3, 1_543_490_560),
            "whisper-large-v3-turbo": (whisper.WHISPER_LARGE_V3_TURBO, 808_878_080),
        },
    ),
    "vit": (
        their_vit,
        {
            "vit-b16": (vit.VIT_B16, 86_567_656),
            "vit-b32": (vit.VIT_B32, 88_224_232),
            "vit-l16": (vit.VIT_L16, 304_326_632),
            "vit-h14": (vit.VIT_H14, 632_045_800),
        },
    ),
    "clip-pictures": (
        their_clip,
        {
            "clip-b32-pictures": (clip.VIT_B32[0], 87_849_216),
            "clip-b16-pictures": (clip.VIT_B16[0], 86_192_640),
            "clip-l14-pictures": (clip.VIT_L14[0], 303_966_208),
        },
    ),
    "clip-captions": (
        their_clip,
        {
            "clip-b32-captions": (clip.VIT_B32[1], 63_428_096),
            "clip-l14-captions": (clip.VIT_L14[1], 123_650_304),
        },
    ),
    "vaswani": (
        None,
        {
            "transformer-base": (vaswani.VASWANI_BASE, 63_045_632),
            "transformer-big": (vaswani.VASWANI_BIG, 214_171_648),
        },
    ),
}
PUBLISHED = {name: entry for _, members in FAMILIES.values() for name, entry in members.items()}
BUILDERS = {name: builder for builder, members in FAMILIES.values() for name in members if builder}
SMALLEST = {family: next(iter(members)) for family, (_, members) in FAMILIES.items()}

# What a paper prints, and the largest difference: half a unit of the last digit, or what the comment explains.
PRINTED = {
    "recurrentgemma-2b": (2.68e9, 5e6),  # arXiv 2404.07839, table 1
    "recurrentgemma-9b": (8.58e9, 5e6),
    "gpt3-small": (125e6, 0.5e6),  # arXiv 2005.14165, table D.1: table 2.1 is rounded further, and 175.0B is 174.6B
    "gpt3-medium": (356e6, 0.5e6),
    "gpt3-large": (760e6, 0.5e6),
    "gpt3-xl": (1_320e6, 5e6),
    "gpt3-2.7b": (2_650e6, 5e6),
    "gpt3-6.7b": (6_660e6, 5e6),
    "gpt3-13b": (12_850e6, 5e6),
    "gpt3-175b": (174_600e6, 50e6),
    "grok-1": (314e9, 2e9),  # xAI's own sizes give 315.7 billion
    "codex-12b": (12e9, 1e9),  # cut off, not rounded: GPT-3 13B has 12.85B
    "palm-8b": (8.63e9, 0.005e9),
    "palm-62b": (62.50e9, 0.005e9),
    "palm-540b": (540.35e9, 0.007e9),  # without the 2.2M scales of norms
    "lamda-137b": (137e9 + 32_000 * 8192, 0.5e9),  # 137B does not include the embeddings
    "bloomberggpt-50b": (50.6e9, 0.05e9),
    # Table 1 of arXiv 2212.04356 prints 39M, 74M, 244M, 769M and 1550M, up to 3 % more than the released files hold.
    "whisper-tiny": (39e6, 0.035 * 39e6),
    "whisper-base": (74e6, 0.02 * 74e6),
    "whisper-small": (244e6, 0.01 * 244e6),
    "whisper-medium": (769e6, 0.01 * 769e6),
    "whisper-large": (1550e6, 0.01 * 1550e6),
    # Table 1 of arXiv 2010.11929 prints 86M, 307M and 632M.
    "vit-b16": (86e6, 1e6),
    "vit-l16": (307e6, 3e6),
    "vit-h14": (632e6, 0.5e6),
    "transformer-base": (65e6, 2e6),  # "about 37,000" tokens
    "transformer-big": (213e6, 2e6),
}


def num_parameters(model: config.Model, *, scan: bool = True) -> int:
    """Counts parameters, with scanned layers where the pattern allows it, so that a deep model traces as fast as one group."""
    stacks = {name: getattr(model, name) for name in ("encoder", "decoder")}
    scanned = {n: s and dataclasses.replace(s, scan=scan and s.num_layers % len(s.pattern) == 0) for n, s in stacks.items()}
    params = boxed_params(Transformer(dataclasses.replace(model, **scanned)))
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_count(name):
    model, published = PUBLISHED[name]
    assert num_parameters(model) == published


@pytest.mark.parametrize("name", BUILDERS)
def test_as_many_parameters_as_transformers(name):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model, published = PUBLISHED[name]
    with torch.device("meta"):
        theirs = BUILDERS[name](transformers, model)
    assert sum(p.numel() for p in theirs.parameters()) == published


@pytest.mark.parametrize(
    ("pair", "published"), [(clip.VIT_B32, 151_277_313), (clip.VIT_B16, 149_620_737), (clip.VIT_L14, 427_616_513)]
)
def test_clip_is_two_encoders_and_a_scale(pair, published):
    """The released CLIPModels, whose files have these many parameters."""
    assert sum(map(num_parameters, pair)) + 1 == published


@pytest.mark.parametrize("name", PRINTED)
def test_as_many_parameters_as_printed(name):
    printed, within = PRINTED[name]
    assert abs(PUBLISHED[name][1] - printed) <= within


def test_every_preset_is_counted():
    counted = {id(model) for model, _ in PUBLISHED.values()}
    for found in pkgutil.iter_modules(presets.__path__):
        for name, value in vars(importlib.import_module(f"lm.models.presets.{found.name}")).items():
            for model in value.values() if name == "BERT_SMALL" else [value]:
                assert not isinstance(model, config.Model) or id(model) in counted, f"{found.name}.{name}"


@pytest.mark.parametrize("family", FAMILIES)
def test_unrolled_is_as_large(family):
    """Unrolled and scanned models have as many parameters; two repetitions of the pattern suffice to show it."""
    model, _ = PUBLISHED[SMALLEST[family]]
    stacks = {name: getattr(model, name) for name in ("encoder", "decoder")}
    short = {n: s and dataclasses.replace(s, num_layers=min(s.num_layers, 2 * len(s.pattern))) for n, s in stacks.items()}
    model = dataclasses.replace(model, **short)
    assert num_parameters(model, scan=False) == num_parameters(model)
