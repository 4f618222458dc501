"""Reads a Hugging Face config.json so that no key goes unnoticed.

A missing key has the default of transformers' own config class. A key that the family does not read must be purely
descriptive or hold the value that we compute with anyway; any other key stops the conversion by name.
"""

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from lm import config
from lm.config import Model
from lm.errors import UserError, nearest

# Keys that do not affect what a model computes in evaluation: training, generation, labels, provenance.
SILENT = re.compile(
    r"architectures|model_type|transformers_version|(_?name_or|_name_or)_path|(torch_)?dtype|use_cache|.*_token_ids?|"
    r".*_token_index|initializer_(range|factor|cutoff_factor)|init_std|.*dropout.*|.*_pdrop|.*layerdrop|output_.*|"
    r"return_dict.*|tokenizer_class|task_specific_params|id2label|label2id|_?num_labels|problem_type|finetuning_task|"
    r"gradient_checkpointing|pretraining_tp|summary_.*|classifier_.*|classif_dropout|forced_.*|chunk_size_feed_forward|"
    r"_?attn_implementation.*|_?experts_implementation.*|_flash_attn_2_enabled|use_flash_attn|flash_attn|fused_dense|"
    r"max_length|min_length|max_new_tokens|num_beams|num_beam_groups|num_return_sequences|early_stopping|do_sample|"
    r"temperature|top_[kp]|typical_p|(repetition|length|diversity)_penalty|(encoder_)?no_repeat_ngram_size|bad_words_ids|"
    r"(begin_)?suppress_tokens|remove_invalid_values|exponential_decay_length_penalty|prefix|cross_attention_hidden_size|"
    r"tie_encoder_decoder|transformers\.js_config|torchscript|use_bfloat16|tf_legacy_loss|n_special|"
    r"predict_special_tokens|is_llama_config|auto_map|_commit_hash|language|model_max_length|unsloth_(version|fixed)|"
    r"directionality|pooler_(fc_size|num_attention_heads|num_fc_layers|size_per_head|type)|inference_runner|"
    r"runner_max_sequence_length|pre_allocate_kv_cache|validate_runner_input|cache_implementation|save_step|"
    r"router_(aux_loss_coef|jitter_noise)|generator_size|max_sequence_length|max_batch_size|pad_key_length|"
    r"(scale_)?attention_softmax_in_fp32"
)

# Keys that can change what a model computes, with the values that do not.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "add_cross_attention": (False,),
    "apply_residual_connection_post_layernorm": (False,),
    "attention_bias": (False,),
    "attention_multiplier": (1.0,),
    "bias": (False,),
    "embedding_multiplier": (1.0,),
    "is_encoder_decoder": (False,),
    "logit_scale": (1.0,),
    "logits_scaling": (1.0,),
    "mlp_bias": (False,),
    "pruned_heads": ({},),
    "qk_layernorm": (False,),
    "residual_multiplier": (1.0,),
    "rope_interleaved": (False,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "scale_attn_weights": (True,),
    "tie_weights_": (True,),
    "use_bidirectional_attention": (False,),
    "use_qk_norm": (False,),
    "use_sliding_window": (False,),
}
MAX_SIZE = 2**31 - 1  # the largest index of 32 bits
TRUNK = re.compile(
    r"(?!.*(LMHead|DoubleHeads)).*Model|.*For(Sequence|Token)Classification|.*For(QuestionAnswering|MultipleChoice)"
)


class Hf:
    """The values of a config.json, each checked for its type and range when it is asked for.

    `keys` are the names of the file's tensors, `defaults` the values of missing keys, `aliases` other names of keys.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        keys: Iterable[str],
        defaults: Mapping[str, Any] | None = None,
        aliases: Mapping[str, str] | None = None,
    ):
        self.values, self.keys, self.defaults, self._used = dict(values), frozenset(keys), defaults or {}, set[str]()
        for alias, name in (aliases or {}).items():
            if self.values.get(alias) is None:
                continue
            value = self.values.pop(alias)
            if self.values.setdefault(name, value) != value:
                raise UserError(f"config.json has {name}={self.values[name]!r} and {alias}={value!r}, which are one setting")

    def __call__(self, name: str, *default: Any) -> Any:
        """The value in the file, else the family's default, else `default`; nothing is checked."""
        self._used.add(name)
        if name in self.values:
            return self.values[name]
        if name in self.defaults:
            return self.defaults[name]
        if not default:
            raise UserError(f"config.json has no {name}{nearest(name, self.values)}")
        return default[0]

    def count(self, name: str, *default: Any, least: int = 1) -> int:
        """An integer from `least` on."""
        value = self(name, *default)
        if type(value) is not int or not least <= value <= MAX_SIZE:
            raise UserError(f"config.json: {name}={value!r} must be an integer from {least} to {MAX_SIZE}")
        return value

    def count_or_none(self, name: str, *default: Any) -> int | None:
        return None if self(name, *default) is None else self.count(name, *default)

    def parts(self, name: str) -> int:
        """A number of layers or experts: no more than the file has tensors, since each has at least one."""
        value = self.count(name)
        if value > max(len(self.keys), 1):
            raise UserError(f"config.json says {name}={value}, but the weights are {len(self.keys)} tensors in all")
        return value

    def number(self, name: str, *default: Any, least: float | None = None) -> float:
        """A finite number: positive, or at least `least` if that is given."""
        value = self(name, *default)
        fine = type(value) in (int, float) and math.isfinite(value) and (value > 0 if least is None else value >= least)
        if not fine:
            raise UserError(
                f"config.json: {name}={value!r} must be a finite number {'above 0' if least is None else 'of 0 or more'}"
            )
        return float(value)

    def eps(self, name: str) -> float:
        return self.number(name, least=0.0)

    def number_or_none(self, name: str, *default: Any) -> float | None:
        return None if self(name, *default) is None else self.number(name, *default)

    def flag(self, name: str, *default: bool) -> bool:
        value = self(name, *default)
        if type(value) is not bool:
            raise UserError(f"config.json: {name}={value!r} must be true or false")
        return value

    def only(self, name: str, *allowed: Any) -> Any:
        """The value, which must be one of `allowed`. The first is the default if the family's table has none."""
        value = self(name, allowed[0])
        value = allowed[0] if value is None and not allowed[0] else value
        if value not in allowed:
            known = " or ".join(repr(a) for a in allowed)
            raise UserError(f"config.json: {name}={value!r} is not implemented, only {known}")
        return value

    def agrees(self, name: str, value: Any) -> None:
        """Raises UserError unless the key, which repeats another, is missing, null or equal to `value`."""
        self._used.add(name)
        if self.values.get(name) not in (None, value):
            raise UserError(f"config.json: {name}={self.values[name]!r} contradicts the rest of it, which means {value!r}")

    def labels(self) -> int:
        """The number of a classifier's outputs, which transformers omits when it is 2."""
        named = self("id2label", None)
        return (
            len(named) if isinstance(named, Mapping) and named else self.count("num_labels", self.values.get("_num_labels", 2))
        )

    def has(self, ending: str) -> bool:
        """Whether the name of any tensor ends with `ending`."""
        return any(key.endswith(ending) for key in self.keys)

    @property
    def architecture(self) -> str:
        named = self.values.get("architectures")
        return str(named[0]) if isinstance(named, list) and named else ""

    @property
    def has_head(self) -> bool:
        """Whether the file has a separate matrix for the logits."""
        return any(self.has(f"{name}.weight") for name in ("lm_head", "embed_out"))

    @property
    def is_trunk(self) -> bool:
        """Whether `architectures` names a class without logits over the vocabulary, and the file has no matrix for them."""
        return not self.has_head and TRUNK.fullmatch(self.architecture) is not None

    def check_all_used(self, model: Model | None = None) -> None:
        """Raises UserError if there are keys that were not read and may change what `model` computes."""
        neutral = {**NEUTRAL, **(_implied(model) if model else {})}

        def passes(name: str, value: Any) -> bool:
            known = name in self._used or SILENT.fullmatch(name)
            return bool(known) or value is None or name in neutral and value in neutral[name]

        if left := [n for n, v in self.values.items() if not passes(n, v)]:
            unread = ", ".join(f"{n}={self.values[n]!r}" for n in left)
            raise UserError(f"config.json has attributes that are not implemented for this family: {unread}")


def _implied(model: Model) -> dict[str, tuple[Any, ...]]:
    """Keys that the family does not read, with the values that agree with the model."""
    stack = model.decoder or model.encoder
    assert stack
    blocks = [stack.blocks[letter] for letter in stack.letters()]
    heads = [b.attention for b in blocks if b.attention is not None and b.mixer is None]

    def kind(b: config.Block) -> str:
        if b.mixer is not None or b.attention is None:
            return "linear_attention"
        return "sliding_attention" if b.attention.window else "full_attention"

    implied: dict[str, tuple[Any, ...]] = {
        "alibi": (isinstance(stack.position, config.Alibi),),
        "is_decoder": (False,) if model.decoder is None else (False, True),
        "layer_types": ([kind(b) for b in blocks],),
    }
    if heads:
        implied |= {"head_dim": (heads[0].size(model.width),), "num_key_value_heads": (heads[0].kv_heads,)}
    return implied
