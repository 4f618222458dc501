"""Finds tensors whose names in a file differ from those that transformers writes today."""

import re
from collections.abc import Collection, Iterable

from lm.conversion.tables import Family

# Buffers that older versions of their code saved: not weights, and no version reads them.
BUFFERS = re.compile(
    r".*(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.masked_bias|position_ids)|.*layers\.\d+\.attention\.bias|"
    r"(model\.)?(en|de)coder\.version|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
)
TF_NORM = {"weight": "gamma", "bias": "beta"}  # norms of BERT checkpoints that came from TensorFlow


def names_in_file(family: Family, expected: Iterable[str], stored: Collection[str]) -> dict[str, str]:
    """Maps each expected name to the name in the file.

    The file may lack the family's prefix, use older names of norms, or have kept only the tied copy of a tensor.
    """
    expected = set(expected)
    named = {key: name_in_file(family, key, stored) for key in expected}
    stand_ins = [(name_in_file(family, a, stored), b) for a, b in family.copies.items() if a not in expected]
    for stand_in, key in stand_ins:
        key = key if key in named else key.removeprefix(family.prefix)
        if key in named and named[key] not in stored and stand_in in stored:
            named[key] = stand_in
    return named


def name_in_file(family: Family, key: str, stored: Collection[str]) -> str:
    """Returns the tensor's name in the file; if the tensor is missing, the name that it would have there."""
    short = key.removeprefix(family.prefix)
    names = [key, short, family.prefix + short]
    names += [re.sub(r"LayerNorm\.(weight|bias)$", lambda m: f"LayerNorm.{TF_NORM[m[1]]}", name) for name in names]
    fallback = key if any(k.startswith(family.prefix) for k in stored) else short
    return next((name for name in names if name in stored), fallback)


def drop_pattern(unknown: Collection[str], kept: Iterable[str]) -> str:
    """Returns a regular expression for `--drop` that matches all of `unknown` and none of `kept`.

    It names modules instead of tensors, and any layer instead of each, where that matches nothing else.
    """
    kept = set(kept)
    chosen = dict[str, None]()  # an ordered set
    for key in sorted(unknown):
        exact, module = re.escape(key), key.rpartition(".")[0]
        in_module = re.escape(module) + r"\..*" if module else exact
        wider = (re.sub(r"\d+", r"\\d+", in_module), in_module, re.sub(r"\d+", r"\\d+", exact), exact)
        chosen[next(w for w in wider if w == exact or not any(re.fullmatch(w, k) for k in kept))] = None
    return "|".join(chosen)
