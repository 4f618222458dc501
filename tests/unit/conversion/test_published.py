"""config.json files of well-known checkpoints, as published: keys that only describe pass, keys that change the model stop the
conversion, and values out of bounds stop it before memory is allocated.
"""

import importlib
import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from lm.config import Alibi, Attention, Block, Head, Mlp, Model, Norm, Rope, Stack
from lm.conversion import describe
from lm.conversion.families import FAMILIES
from lm.conversion.settings import NEUTRAL
from lm.conversion.tables import canonical, read_model
from lm.errors import UserError

PUBLISHED = json.loads((Path(__file__).parent / "published.json").read_text())
PRESETS = {  # our presets of the same models
    "bert-base-uncased": "bert.BERT_BASE",
    "a dump of transformers 2": "bert.BERT_BASE",
    "roberta-base": "roberta.ROBERTA_BASE",
    "distilbert-base-uncased": "distilbert.DISTILBERT",
    "electra-small-generator": "electra.ELECTRA_SMALL_GENERATOR",
    "ModernBERT-base": "modernbert.MODERNBERT_BASE",
    "gpt2": "gpt.GPT2",
    "openai-gpt": "gpt.GPT1",
    "opt-125m": "opt.OPT_125M",
    "pythia-70m": "neox.PYTHIA_70M",
    "gpt-j-6b": "gptj.GPTJ_6B",
    "phi-2": "phi.PHI2",
    "falcon-7b": "falcon.FALCON_7B",
    "bloom-560m": "bloom.BLOOM_560M",
    "llama-7b": "llama.LLAMA_7B",
    "Llama-3.1-8B": "llama.LLAMA31_8B",
    "SmolLM2-135M": "llama.SMOLLM2_135M",
    "Mistral-7B-v0.1": "llama.MISTRAL_7B",
    "Mixtral-8x7B-v0.1": "moe.MIXTRAL_8X7B",
    "Qwen3-0.6B": "qwen.QWEN3_0_6B",
    "OLMo-2-1124-7B": "olmo.OLMO2_7B",
    "gemma-2b": "gemma.GEMMA_2B",
    "gemma-2-2b": "gemma.GEMMA2_2B",
    "t5-small": "t5.T5_SMALL",
    "flan-t5-small": "t5.FLAN_T5_SMALL",
    "bart-base": "bart.BART_BASE",
    "LLaDA-8B-Base": "llada.LLADA_8B",
}
HEADS = {
    "bert": "cls.predictions.bias",
    "roberta": "lm_head.bias",
    "xlm-roberta": "lm_head.bias",
    "distilbert": "vocab_projector.bias",
    "electra": "generator_lm_head.bias",
    "modernbert": "head.dense.weight",
}
# One of each family.
BASES = {said["model_type"]: name for name, said in reversed(PUBLISHED.items())}


def taken(said: dict) -> Model:
    """Reads a config.json as if its file had enough tensors, with a head's if its class has a head."""
    return read_model(FAMILIES[said["model_type"]], said, keys_of(said))


def keys_of(said: dict) -> list[str]:
    keys = [f"decoder.{i}" for i in range(2000)]
    headed = not said.get("architectures", [""])[0].endswith("BartModel")
    return keys + ([HEADS.get(said["model_type"], "lm_head.weight")] if headed else [])


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_the_models_of_their_papers(name):
    model = taken(PUBLISHED[name])
    assert model.width in (PUBLISHED[name].get(k) for k in ("hidden_size", "n_embd", "dim", "d_model", "n_embed"))
    if name in PRESETS:
        file, preset = PRESETS[name].split(".")
        wanted = getattr(importlib.import_module(f"lm.models.presets.{file}"), preset)
        head = wanted.head if name != "bart-base" else None  # BartModel, which has none
        assert canonical(model) == canonical(replace(wanted, head=head))


DESCRIBES = dict(
    torchscript=True,
    use_bfloat16=True,
    pruned_heads={},
    n_special=3,
    is_llama_config=True,
    tie_weights_=True,
    rope_interleaved=False,
    tf_legacy_loss=False,
    finetuning_task="mnli",
    top_k=50,
    length_penalty=1.0,
    auto_map={"AutoModel": "m.M"},
)


@pytest.mark.parametrize("family", BASES)
def test_what_describes_only_never_blocks(family):
    said = PUBLISHED[BASES[family]]
    assert taken(said | DESCRIBES) == taken(said)


CHANGES = {name: not values[0] if isinstance(values[0], bool) else 0.5 for name, values in NEUTRAL.items()} | {
    "pruned_heads": {"1": [0, 2]},
    "is_decoder": True,
    "layer_types": ["chunked_attention"],
    "hidden_act": "quick_gelu",
    "position_embedding_type": "relative_key",
    "quantization_config": {"bits": 4},
    "rope_scaling": {"rope_type": "yarn", "factor": 4.0},
    "frobnicate": 3,
}


@pytest.mark.parametrize("family", BASES)
def test_what_changes_the_model_changes_ours_or_stops_by_name(family):
    """A neutral value passes; any other is refused by name or changes the model."""
    said = PUBLISHED[BASES[family]]
    model = taken(said)
    for name, values in NEUTRAL.items():
        if name not in FAMILIES[family].defaults | said:
            assert taken(said | {name: values[0]}) == model, name
    for name, value in CHANGES.items():
        same = FAMILIES[family].defaults.get(name) == value or name == "is_decoder" and model.decoder
        if name in IGNORED.get(family, ()) or same:
            assert canonical(taken(said | {name: value})) == canonical(model)
            continue
        try:
            changed = taken(said | {name: value})
        except UserError as error:
            assert name in str(error) or name in ("rope_scaling", "tie_weights_"), name
        else:
            assert canonical(changed) != canonical(model), name


# Keys that their code does not read in these families; and this Qwen3 has no layers beyond `max_window_layers`.
IGNORED = {
    "qwen3": ("use_sliding_window",),
    "modernbert": ("position_embedding_type",),
    "t5": ("is_encoder_decoder",),
    "bart": ("is_encoder_decoder",),
    "gemma2": ("hidden_act",),
}


def model_of(name: str, **changes) -> Model:
    return taken(PUBLISHED[name] | changes)


def without(name: str, *keys: str, **changes) -> Model:
    return taken({k: v for k, v in (PUBLISHED[name] | changes).items() if k not in keys})


def test_a_causal_bert_is_not_read_as_one_that_sees_both_sides():
    for name in ("bert-base-uncased", "roberta-base", "electra-small-generator"):
        with pytest.raises(UserError, match="is_decoder=True"):
            model_of(name, is_decoder=True)


def test_gemmas_activation_is_the_one_its_code_reads():
    act = lambda m: m.decoder.blocks["L"].ffn.activation
    assert act(model_of("gemma-2b", hidden_act="gelu")) == "gelu_tanh"  # as released files mean it
    assert act(model_of("gemma-2b", hidden_act="relu")) == "relu"
    assert act(without("gemma-2b", "hidden_act")) == "gelu_tanh"
    assert act(model_of("gemma-2b", hidden_activation="gelu_new")) == "gelu_tanh"  # the same by another name
    with pytest.raises(UserError, match="hidden_activation='relu' contradicts"):
        model_of("gemma-2b", hidden_activation="relu")
    assert act(model_of("gemma-2-2b", hidden_act="relu")) == "gelu_tanh"
    assert act(model_of("gemma-2-2b", hidden_activation="silu")) == "silu"


def test_only_families_that_turn_a_part_of_a_head_read_how_much():
    fraction = lambda m: m.decoder.position.fraction
    assert fraction(model_of("TinyLlama-1.1B", partial_rotary_factor=0.5)) == 1.0
    assert fraction(model_of("starcoder2-3b", partial_rotary_factor=0.5)) == 1.0
    assert fraction(model_of("phi-2", partial_rotary_factor=0.5)) == 0.5
    assert fraction(without("phi-2", "partial_rotary_factor")) == 0.5
    assert fraction(model_of("phi-2", rope_parameters=dict(partial_rotary_factor=0.2))) == 0.2
    assert fraction(without("pythia-70m", "rotary_pct")) == 0.25
    for inside, beside in ((0.5, 1.0), (1.0, 0.5)):  # scaled, their code fails
        scaling = dict(type="linear", factor=2.0) | (dict(partial_rotary_factor=inside) if inside < 1 else {})
        with pytest.raises(UserError, match="partial_rotary_factor=0.5"):
            model_of("TinyLlama-1.1B", rope_scaling=scaling, partial_rotary_factor=beside)
    # And a model that turns a part is not written as one of the others.
    tiny = lambda fraction: Model(
        61,
        64,
        decoder=Stack(
            2, {"L": Block(Attention(4), Mlp(96, "silu", gated=True), Norm("rms"))}, position=Rope(fraction=fraction)
        ),
        head=Head(tied=False),
    )
    assert describe(tiny(1.0))[0] == "llama"
    with pytest.raises(UserError, match="no Hugging Face family"):
        describe(tiny(0.5))


def test_gemma2_without_windows_is_written_with_a_window_that_no_layer_has():
    """transformers builds the windowed mask even if no layer uses it, and fails if `sliding_window` is null."""
    model = model_of("gemma-2-2b", layer_types=["full_attention"] * 26)
    family, said = describe(model, "gemma2")
    assert said["sliding_window"] and set(said["layer_types"]) == {"full_attention"}
    for name in ("gemma-2-2b", "Qwen3-0.6B"):
        local = dict(layer_types=["sliding_attention"] * PUBLISHED[name]["num_hidden_layers"], sliding_window=None)
        with pytest.raises(UserError, match="sliding_window"):
            model_of(name, **local)


def test_bart_with_any_activation_goes_back():
    for theirs, ours in (("gelu_new", "gelu_tanh"), ("relu", "relu"), ("swish", "silu")):
        one = dict(encoder_layers=1, decoder_layers=1, num_hidden_layers=1, architectures=["BartForConditionalGeneration"])
        model = model_of("bart-base", activation_function=theirs, **one)
        assert model.decoder.blocks["L"].ffn.activation == ours
        assert taken(describe(model, "bart")[1] | {"model_type": "bart"}).encoder == model.encoder


def test_modernberts_and_gpts_activations_are_named_as_theirs():
    model = model_of("ModernBERT-base", classifier_activation="gelu_new")
    assert model.head.transform == "gelu_tanh"
    assert taken(describe(model, "modernbert")[1] | {"model_type": "modernbert"}).head == model.head
    with pytest.raises(UserError, match="classifier_activation='mish'"):
        model_of("ModernBERT-base", classifier_activation="mish")
    assert without("openai-gpt", "afn") == model_of("openai-gpt")
    with pytest.raises(UserError, match="afn='gelu_new'"):  # which their code does not know
        model_of("openai-gpt", afn="gelu_new")
    assert without("gpt2", "activation_function") == model_of("gpt2")


def test_t5_says_its_feed_forward_twice():
    assert without("flan-t5-small", "dense_act_fn", "is_gated_act") == model_of("flan-t5-small")
    assert without("flan-t5-small", "feed_forward_proj") == model_of("flan-t5-small")
    assert model_of("flan-t5-small", dense_act_fn="gelu_pytorch_tanh") == model_of("flan-t5-small")
    with pytest.raises(UserError, match="dense_act_fn='relu' contradicts"):
        model_of("flan-t5-small", dense_act_fn="relu")
    with pytest.raises(UserError, match="feed_forward_proj"):
        model_of("t5-small", feed_forward_proj="linear-relu")


HOSTILE = {
    "gpt2": [
        ("n_head", 0, "n_head=0"),
        ("n_head", 7, "num_heads=7 does not divide width=768"),
        ("n_head", True, "n_head=True"),
        ("n_layer", 1_000_000_000, "n_layer=1000000000, but the weights are 2001 tensors"),
        ("n_layer", 10**30, "integer"),
        ("n_layer", -1, "n_layer=-1"),
        ("n_embd", 0, "n_embd=0"),
        ("n_embd", 768.0, "n_embd=768.0"),
        ("n_positions", None, "n_positions=None"),
        ("vocab_size", "50257", "vocab_size='50257'"),
        ("layer_norm_epsilon", float("nan"), "layer_norm_epsilon=nan"),
        ("layer_norm_epsilon", -1e-5, "layer_norm_epsilon"),
        ("tie_word_embeddings", "false", "tie_word_embeddings='false'"),
        ("hidden_size", 512, "n_embd=768 and hidden_size=512"),
        ("activation_function", ["gelu"], "activation_function=['gelu']"),
    ],
    "roberta-base": [
        ("pad_token_id", None, "pad_token_id=None"),
        ("pad_token_id", -1, "pad_token_id=-1"),
        ("max_position_embeddings", 2, "max_position_embeddings=2"),
    ],
    "pythia-70m": [
        ("rotary_pct", 0.11, "turns 7 of a head's 64 dimensions"),
        ("rotary_pct", 0.0, "rotary_pct=0.0"),
        ("rope_theta", 500.0, "rope_theta=500.0 contradicts"),
    ],
    "Mixtral-8x7B-v0.1": [
        ("num_local_experts", 10**9, "num_local_experts=1000000000"),
        ("num_experts", 4, "num_experts=4"),
        ("num_key_value_heads", 3, "num_kv_heads=3 does not divide num_heads=32"),
        ("rope_theta", float("inf"), "rope_theta=inf"),
    ],
    "Llama-3.1-8B": [
        ("rope_scaling", {"rope_type": "llama3", "factor": "8"}, "factor='8'"),
        ("head_dim", 15, "turns 15 of a head's 15 dimensions"),
    ],
    "Qwen3-0.6B": [("layer_types", ["full_attention"], "a list of 28"), ("max_window_layers", -1, "max_window_layers")],
    "gpt-j-6b": [
        ("rotary_dim", 63, "turns 63 of a head's 256 dimensions"),
        ("rotary_dim", 258, "rotary_dim=258 is larger than a head's 256"),
        ("rotary_dim", None, "rotary_dim=None"),
        ("rotary", False, "rotary=False"),
    ],
    "falcon-7b": [("alibi", True, "alibi=True"), ("new_decoder_architecture", None, "new_decoder_architecture=None")],
}


@pytest.mark.parametrize("name,key,value,said", [(n, *case) for n, cases in HOSTILE.items() for case in cases])
def test_values_out_of_all_bounds_are_one_line(name, key, value, said):
    with pytest.raises(UserError) as error:
        model_of(name, **{key: value})
    assert said in str(error.value) and "\n" not in str(error.value)


ODD = [None, True, 0, -1, 2**40, 0.5, float("nan"), "x", [], [1], [None], {}, {"full_attention": 5}, [{}]]
SETTINGS = {"rope_scaling", "rope_parameters", "layer_types", "id2label", "architectures", "num_labels", "head_dim"} | set(
    NEUTRAL
)


@pytest.mark.parametrize("name", BASES.values())
def test_a_value_of_any_type_is_read_or_refused(name):
    """It raises nothing but UserError."""
    said, keys = PUBLISHED[name], keys_of(PUBLISHED[name])
    for key in sorted(SETTINGS | FAMILIES[said["model_type"]].defaults.keys() | said.keys()):
        for value in ODD:
            try:
                model = read_model(FAMILIES[said["model_type"]], said | {key: value}, keys)
            except UserError as error:
                assert "\n" not in str(error)
            except Exception as error:
                raise AssertionError(f"{key}={value!r} gives {error!r}") from error
            else:
                assert isinstance(model, Model)
    for inner in ("full_attention", "sliding_attention", "rope_type", "type", "factor", "rope_theta", "partial_rotary_factor"):
        for value in ODD:
            for key in ("rope_parameters", "rope_scaling"):
                with suppress(UserError):
                    taken(said | {key: {inner: value}})


def test_falcons_that_transformers_fails_on_are_refused():
    for change in (dict(num_ln_in_parallel_attn=4), dict(parallel_attn=False)):
        with pytest.raises(UserError, match="is no Falcon that transformers runs"):
            model_of("falcon-7b", new_decoder_architecture=True, **change)
    assert model_of("falcon-7b", new_decoder_architecture=True).decoder.blocks["L"].parallel == "separate"


def test_alibi_is_what_bloom_has():
    assert isinstance(model_of("bloom-560m", alibi=True).decoder.position, Alibi)
    with pytest.raises(UserError, match="alibi=False"):
        model_of("bloom-560m", alibi=False)


def test_a_preset_whose_stack_turns_its_full_layers_is_written():
    """ModernBERT's preset gives rotary positions for the stack, and others for the local layers."""
    modernbert = importlib.import_module("lm.models.presets.modernbert").MODERNBERT_BASE
    said = describe(modernbert, "modernbert")[1]
    assert said["rope_parameters"]["full_attention"]["rope_theta"] == 160_000.0


def test_gptj_keeps_its_rotary_dim():
    """The quotient 26 / 46 times 46 is less than 26, in float64."""
    model = model_of("gpt-j-6b", n_embd=46 * 16, rotary_dim=26)
    assert describe(model)[1]["rotary_dim"] == 26
