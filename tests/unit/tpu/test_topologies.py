"""Parsing and formatting the names of slices."""

import pytest

from lm.errors import UserError
from tpu import topologies

# From Google's pages of each generation: the number counts cores on v2 to v4, v5p and TPU7x, chips on v5e and v6e.
NAMED = {
    "v2-8": "v2:2x2",
    "v3-32": "v3:4x4",
    "v3-256": "v3:8x16",
    "v4-8": "v4:2x2x1",
    "v4-128": "v4:4x4x4",
    "v5litepod-1": "v5e:1x1",
    "v5litepod-256": "v5e:16x16",
    "v5p-8": "v5p:2x2x1",
    "v5p-128": "v5p:4x4x4",
    "v5p-12288": "v5p:16x16x24",
    "v6e-16": "v6e:4x4",
    "tpu7x-16": "tpu7x:2x2x2",
}


@pytest.mark.parametrize(("accelerator", "topology"), NAMED.items())
def test_an_accelerator_type_names_a_topology_and_the_other_way(accelerator, topology):
    assert str(topologies.parse(accelerator)) == topology
    assert topologies.parse(topology).accelerator == accelerator


# As in MaxText 0.2.5's table, but for v3, of which it has none.
RINGS = {
    "v5e:16x16": (True, True, False),
    "v6e:8x16": (False, True, False),
    "v5e:8x8": (False, False, False),
    "v3:16x16": (False, False, False),
    "v3:32x32": (True, True, False),
    "v4:2x4x4": (False, False, False),
    "v5p:4x4x4": (True, True, True),
    "tpu7x:4x4x12": (True, True, True),
}


@pytest.mark.parametrize(("topology", "wrap"), RINGS.items())
def test_whose_ends_are_linked(topology, wrap):
    assert topologies.parse(topology).wrap == wrap


def test_all_listed_shapes_go_there_and_back():
    for generation, shapes in topologies.SHAPES.items():
        for chips, shape in shapes.items():
            there = topologies.Topology(generation, shape)
            assert there.standard and there.chips == chips and topologies.parse(there.accelerator) == there


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("v5litepod-512", "no such size"),
        ("v5e-256", "neither a shape"),
        ("v4-nine", "neither a shape"),
        ("v5e:16", "2 dimensions"),
        ("v9:2x2", "no generation"),
    ],
)
def test_what_names_no_topology_is_refused(text, says):
    with pytest.raises(UserError, match=says):
        topologies.parse(text)


def test_hosts_of_a_slice():
    of = {"v5e:2x4": 1, "v5e:4x4": 4, "v4:2x2x1": 1, "v4:2x2x2": 2, "v6e:1x1": 1, "v5e:16x16": 64}
    assert {text: topologies.parse(text).hosts for text in of} == of
    assert not topologies.parse("v5p:4x4x32").standard
