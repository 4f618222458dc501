"""Compares our tables of defaults with transformers' config classes."""

import dataclasses

import pytest

hf = pytest.importorskip("transformers")

from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

from lm.conversion.families import FAMILIES  # noqa: E402
from lm.conversion.settings import NEUTRAL, SILENT  # noqa: E402


@pytest.mark.parametrize("name", sorted(FAMILIES.keys() & CONFIG_MAPPING.keys()))  # all but LLaDA, whose code is not theirs
def test_defaults_are_those_of_their_config_class(name):
    """The table has every field of theirs that may change what a model computes, with its default."""
    theirs, ours = CONFIG_MAPPING[name], FAMILIES[name]
    shared = {f.name for f in dataclasses.fields(hf.PretrainedConfig)}
    fields = {f.name: f.default for f in dataclasses.fields(theirs) if f.name not in shared}
    wanted = {
        k: v
        for k, v in fields.items()
        if k in ours.defaults or not (SILENT.fullmatch(k) or k in NEUTRAL | {"is_decoder": (False,)})
    }
    assert ours.defaults == wanted
    old = {"n_embed": "hidden_size"} if name in ("bloom", "falcon") else {}
    assert ours.aliases == theirs.attribute_map | old
