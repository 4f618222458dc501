"""Finds tensors whose names in a file differ from those that transformers writes today."""

import re
from collections.abc import Collection, Iterable

from lm.conversion.tables import Family

# Saved by older versions of their code, but not weights; no version reads them.
BUFFERS = re.compile(
    r".*(rotary_emb\.inv_freq|attn\.(masked_)?bias|attention\.masked_bias|position_ids)|.*layers\.\d+\.attention\.bias|"
    r"(model\.)?(en|de)coder\.version|decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight"
)
OLD = {"weight": "gamma", "bias": "beta"}  # of norms, in BERTs that were TensorFlow's


def named_in(family: Family, expected: Iterable[str], found: Collection[str]) -> dict[str, str]:
    """Maps each expected name to the name in the file, which may lack the family's prefix, use older names of norms, or be
    that of a tied copy if the file kept only the copy."""
    expected = set(expected)
    named = {key: spelled(family, key, found) for key in expected}
    stand_ins = [(spelled(family, a, found), b) for a, b in family.copies.items() if a not in expected]
    for stand_in, key in stand_ins:
        key = key if key in named else key.removeprefix(family.prefix)
        if key in named and named[key] not in found and stand_in in found:
            named[key] = stand_in
    return named


def spelled(family: Family, key: str, found: Collection[str]) -> str:
    """The name of a tensor in the file. If the tensor is missing, the name that it would have there."""
    bare = key.removeprefix(family.prefix)
    names = [key, bare, family.prefix + bare]
    names += [re.sub(r"LayerNorm\.(weight|bias)$", lambda m: f"LayerNorm.{OLD[m[1]]}", name) for name in names]
    fallback = key if any(k.startswith(family.prefix) for k in found) else bare
    return next((name for name in names if name in found), fallback)


def dropping(unknown: Collection[str], kept: Iterable[str]) -> str:
    """A regular expression for `--drop` that matches all of these tensors and none of `kept`.

    It names modules rather than tensors, and any layer rather than each, where that matches nothing else.
    """
    kept = set(kept)
    chosen = dict[str, None]()  # in order, each once
    for key in sorted(unknown):
        exact, module = re.escape(key), key.rpartition(".")[0]
        whole = re.escape(module) + r"\..*" if module else exact
        wider = (re.sub(r"\d+", r"\\d+", whole), whole, re.sub(r"\d+", r"\\d+", exact), exact)
        chosen[next(w for w in wider if w == exact or not any(re.fullmatch(w, k) for k in kept))] = None
    return "|".join(chosen)
