"""Every package of a plain installation has a permissive licence, and stands in docs/licences.md."""

from pathlib import Path

import pytest

from tests.licences import PACKAGE, permissive, required

PAGE = (Path(__file__).parents[2] / "docs/licences.md").read_text(encoding="utf-8")


def test_a_plain_installation_needs_permissive_licences_alone():
    found = required(PACKAGE)
    assert {"jax", "flax", "numpy"} <= found.keys()
    assert {name: words for name, words in found.items() if not permissive(words)} == {}
    assert [name for name in found if f"\n| {name} |" not in PAGE] == []


@pytest.mark.parametrize(
    "words,answer",
    [
        ("MIT OR GPL-3.0-only", True),
        ("MIT AND GPL-3.0-only", False),
        ("Mozilla Public License 2.0 (MPL 2.0)", False),
        ("not declared; its file begins: MIT License", False),
        ("BSD-3-Clause AND 0BSD AND MIT AND Zlib AND CC0-1.0", True),
        ("unknown", False),
    ],
)
def test_what_is_permissive(words, answer):
    assert permissive(words) is answer
