"""Every field of every section says which values it takes, and the values just outside are refused by its name."""

import ast
import dataclasses
import importlib
import math
import pkgutil
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

import pytest

import experiments.study
from lm import config
from lm.config import resolve
from lm.config.ranges import INT32, LARGEST, SMALLEST, Range, Text, show
from lm.errors import UserError
from lm.models import presets
from lm.models.miniature import tiny


def sections(hint, found: dict) -> dict:
    """All dataclasses below a type, by name."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if hint.__name__ not in found:
            found[hint.__name__] = hint
            for member in typing.get_type_hints(hint, include_extras=True).values():
                sections(member, found)
    else:
        for member in typing.get_args(hint):
            sections(member, found)
    return found


SECTIONS = sections(config.Run, {})
FIELDS = [
    pytest.param(name, field, hint, id=f"{name}.{field}")
    for name, section in SECTIONS.items()
    for field, hint in typing.get_type_hints(section, include_extras=True).items()
]


def rules(hint) -> list[tuple[type, Range | Text | None]]:
    """The scalars that a field takes, each with its rule; None where there is none. Sections are not followed."""
    if typing.get_origin(hint) is Annotated:
        kind, *given = typing.get_args(hint)
        if typing.get_origin(kind) is Literal:
            return []
        return [(kind, rule) for rule in given]
    if typing.get_origin(hint) is Literal or dataclasses.is_dataclass(hint) or hint in (bool, type(None), ...):
        return []
    inner = typing.get_args(hint)
    return [rule for member in inner for rule in rules(member)] if inner else [(hint, None)]


def outside(kind, rule) -> list:
    """Values just outside of a rule."""
    if isinstance(rule, Text):
        return ["\0", "\udc80", *([""] if rule.least else [])]
    if kind is int:
        found = [rule.low - 1, rule.high + 1, 10**400, -(10**400)]
        return [value for value in found if value not in rule.also and value - 1 not in rule.also] + [False, 2.5]
    ends = [rule.low if rule.above else math.nextafter(rule.low, -1), rule.high if rule.below else rule.high * 1.001 + 0.001]
    return [*ends, -SMALLEST if rule.low == 0 else -1.0, math.nan, math.inf, -math.inf, 1e39, 1e-40, 10**400, True]


def as_field_takes(hint, value):
    """The value within a list, or as the name of something, or below a name that is one of a few, where the field is such."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Mapping and typing.get_origin(inner[0]) is Literal:
        return {typing.get_args(inner[0])[0]: as_field_takes(inner[1], value)}
    return (value,) if origin is tuple else {value: {}} if origin is Mapping else value


def test_sections_are_found():
    assert {"Run", "Rope", "Moe", "Denoise", "Part", "Source", "Schedule", "Mesh", "Pod", "Norm", "Finetune"} <= SECTIONS.keys()
    assert len(FIELDS) > 150


@pytest.mark.parametrize("name,field,hint", FIELDS)
def test_values_outside_of_a_fields_range_are_refused_by_its_name(name, field, hint):
    for kind, rule in rules(hint):
        assert rule is not None, f"{name}.{field} is any {kind.__name__}: give it a type of lm.config.ranges"
        for value in outside(kind, rule):
            if kind is int and (float, Range(0.0)) in rules(hint) and value == 2.5:
                continue  # steps, or a share of them
            with pytest.raises(UserError, match=rf"^{name}\.{field}\b") as error:
                resolve.build(hint, as_field_takes(hint, value), f"{name}.{field}")
            assert "\n" not in str(error.value) and len(str(error.value)) < 300


@pytest.mark.parametrize("name,field,hint", FIELDS)
def test_the_ends_of_a_range_are_taken(name, field, hint):
    for kind, rule in rules(hint):
        if isinstance(rule, Range):
            ends = [rule.low] * (not rule.above) + [rule.high] * (not rule.below) + [*rule.also]
            for value in ends:
                assert resolve.build(hint, as_field_takes(hint, kind(value)), "x") == as_field_takes(hint, kind(value))
    if typing.get_origin(hint) is Annotated and typing.get_origin(typing.get_args(hint)[0]) is Literal:
        hint = typing.get_args(hint)[0]  # with a note on one of the choices
    if typing.get_origin(hint) is Literal:
        for value in [*typing.get_args(hint)[0:1], "no such choice", None, 3, ["list"]]:
            if value == typing.get_args(hint)[0] or (value is None and "none" in typing.get_args(hint)):
                resolve.build(hint, value, "x")
                continue
            with pytest.raises(UserError, match="^x is "):
                resolve.build(hint, value, "x")


@pytest.mark.parametrize(
    "rule,value,words",
    [
        (Range(1, INT32), 0, " is too small: give 1 or more"),
        (Range(1, INT32), 2**31, " is too large: give 1 or more, at most 2,147,483,647"),
        (Range(0.0, 1.0), -0.5, " is too small: give 0 or more, at most 1"),
        (Range(1, 5), 6, " is too large: give 1 or more, at most 5"),
        (Range(0.0, 1.0, below=True), 1.0, " is too large: give 0 or more, less than 1"),
        (Range(0.0, above=True), 0.0, " is too small: give more than 0"),
        (Range(0.0), math.nan, " is no finite number: give 0 or more"),
        (Range(0.0), 1e39, " is infinite in float32: give 0 or more"),
        (Range(0.0), 1e-39, " is 0 in float32: give 0 or more"),
        (Range(0.0), LARGEST, None),
        (Range(1, also=(-1,), note=", or -1 for all"), -1, None),
        (Range(1, also=(-1,), note=", or -1 for all"), -2, " is too small: give 1 or more, or -1 for all"),
        (Text(), "", None),
        (Text(1), "", " is too short: give a text of 1 or more characters"),
        (Text(), "a\0b", " holds a zero byte: give a text without one"),
        (Text(), "\udcff", " has characters that are not UTF-8: give a text that is"),
        (Text(1), "naïve, 日本語", None),
    ],
)
def test_what_a_rule_says(rule, value, words):
    assert rule.wrong(value) == words


def test_show_cuts_what_is_long():
    assert show("a" * 500) == "'" + "a" * 96 + "..."
    assert show(10**5000) == "a number of thousands of digits"
    assert ast.literal_eval(show((1, "x"))) == (1, "x")


def models():
    """Every preset's models, by file and name."""
    for found in pkgutil.iter_modules(presets.__path__):
        for name, value in vars(importlib.import_module(f"lm.models.presets.{found.name}")).items():
            for model in value.values() if isinstance(value, dict) else [value]:
                if isinstance(model, config.Model):
                    yield f"{found.name}.{name}", model


def test_every_preset_and_its_miniature_are_within_the_ranges():
    assert len(list(models())) > 60
    for name, model in models():
        for one in (model, tiny(model, vocab_size=512)):
            assert resolve.build(config.Model, resolve.to_dict(one)) == one, name


@pytest.mark.parametrize(
    "path", sorted(Path(experiments.study.__file__).parent.glob("*/study.py")), ids=lambda p: p.parent.name
)
def test_every_cell_of_a_study_is_within_the_ranges(path):
    study = importlib.import_module(f"experiments.{path.parent.name}.study").study()
    for name, cell in study.cells.items():
        assert resolve.build(config.Run, resolve.to_dict(cell.run)) == cell.run, name
        for task in cell.tasks:
            assert resolve.build(experiments.study.Finetune, resolve.to_dict(task.settings)) == task.settings, name
