"""Trees: bracketed text to nodes and ids and back; the arrays of a row; one line names what is wrong with a text."""

import numpy as np
import pytest

from lm.data import trees
from lm.data.corpus import listops
from lm.types import TreeSizes

BOS, EOS = 1, 2


@pytest.mark.parametrize(
    "text, read, children",
    [
        ("((the film) works)", ("the", "film", None, "works", None), (0, 0, 2, 0, 2)),
        ("[MAX 2 [MIN 4 7] ]", ("2", "4", "7", "MIN", "MAX"), (0, 0, 0, 2, 2)),
        ("((a))", ("a",), (0,)),
        ("(a ((b c)) [NOT d])", ("a", "b", "c", None, "d", "NOT", None), (0, 0, 0, 2, 0, 1, 3)),
    ],
)
def test_brackets_are_nodes_in_postfix_order(text, read, children):
    assert trees.parse(text) == trees.Nodes(read, children)
    assert trees.parse(trees.written(trees.parse(text))) == trees.parse(text)


def test_the_sentiment_treebanks_form_has_a_label_in_each_bracket():
    nodes, label = trees.parse_labelled("(3 (2 a) (1 (2 b) (0 [c])))")
    assert (trees.written(nodes), label) == ("(a (b -LSB-c-RSB-))", "3")
    assert trees.words(nodes) == ["a", "b", "-LSB-c-RSB-"]


@pytest.mark.parametrize(
    "text, fault",
    [
        ("(a b", "a bracket is not closed"),
        ("((a b", "2 brackets are not closed"),
        ("(a b))", "')' at character 5 closes no bracket"),
        ("(a b]", "']' at character 4 closes no bracket"),
        ("(a ())", "nothing is in the bracket that ')' at character 4 closes"),
        ("[MAX ]", "nothing is in the bracket"),
        ("a b", "2 trees side by side"),
        ("", "is no tree"),
    ],
)
def test_a_text_that_is_no_tree_is_named(text, fault):
    with pytest.raises(trees.InvalidTree, match="(?s).*" + fault.replace("(", r"\(").replace(")", r"\)").replace("]", r"\]")):
        trees.parse(text)


@pytest.mark.parametrize(
    "text, fault",
    [("(3 (a) b)", "nothing follows the label"), ("(3 (() b))", "character 4 has no label"), ("3 (2 a)", "outside of all")],
)
def test_so_is_a_bracket_without_a_label(text, fault):
    with pytest.raises(trees.InvalidTree, match=fault):
        trees.parse_labelled(text)


def test_ids_keep_the_tree_and_words_of_several_pieces_are_nodes():
    tree, pieces = trees.parse("((x y) [OP z x])"), {"x": [5], "y": [6, 7], "z": [8], "OP": [9]}
    ids = trees.to_ids(tree, [np.array(pieces[word]) for word in trees.words(tree)], BOS, EOS)
    found = trees.of_ids(ids, BOS, EOS)
    assert found == trees.Nodes((5, 6, 7, BOS, BOS, 8, 5, 9, BOS), (0, 0, 0, 2, 2, 0, 0, 2, 2))
    assert trees.sequence(found, BOS, EOS).tolist() == [5, 6, 7, 9, 8, 5, EOS]
    with pytest.raises(trees.InvalidTree, match="operator 'OP' is 2 tokens"):
        trees.to_ids(trees.parse("[OP a b]"), [np.array([9, 9]), np.array([5]), np.array([6])], BOS, EOS)


def test_shapes_over_a_sequence():
    tokens = np.arange(10, 15)
    assert trees.over(tokens, "right", 1) == trees.Nodes((*range(10, 15), 1, 1, 1, 1), (0,) * 5 + (2,) * 4)
    read = [10, 11, 1, 12, 1, 13, 14, 1, 1]
    assert trees.over(tokens, "balanced", 1) == trees.Nodes(tuple(read), (0, 0, 2, 0, 2, 0, 0, 2, 2))
    assert trees.over(tokens[:1], "balanced", 1) == trees.over(tokens[:1], "right", 1) == trees.Nodes((10,), (0,))
    balanced, right = (trees.arrays(trees.over(np.arange(64), shape, 0)).children for shape in ("balanced", "right"))
    assert (trees.heights(balanced).max(), trees.heights(right).max()) == (6, 63)


def test_folded_and_shuffled():
    tree = trees.Nodes((7, 8, 9, 4, 5), (0, 0, 0, 0, 4))
    assert trees.folded(tree, 2) == trees.Nodes((7, 8, 5, 9, 5, 4, 5), (0, 0, 2, 0, 2, 0, 2))
    assert trees.folded(tree, 4) == tree
    other = trees.shuffled(trees.over(np.arange(20, 40), "balanced", 1))
    assert other == trees.shuffled(trees.over(np.arange(20, 40), "balanced", 1))
    assert other.children == trees.over(np.arange(20), "balanced", 1).children
    leaves = [word for word, count in zip(other.read, other.children, strict=True) if not count]
    assert leaves != sorted(leaves) == list(range(20, 40))


def test_the_arrays_of_a_row():
    """Two trees, ((7 8) 9) and (5 (6 4)), in steps of two nodes."""
    two = [trees.arrays(trees.parse(text)) for text in ("((7 8) 9)", "(5 (6 4))")]
    row = trees.joined(two, 12, TreeSizes(3, 2, 2))
    none = [-1, -1]
    expected = [none, none, [0, 1], none, [2, 3], none, none, none, [6, 7], [5, 8], none, none]
    assert row.children.tolist() == expected
    assert row.steps.tolist() == [[2, 8], [4, 9], none]
    assert row.slots.tolist() == [-1, -1, 0, -1, 2, -1, -1, -1, 1, 3, -1, -1]
    assert row.edges.tolist() == [0, 1, 4, 5, -1, 6, 2, 3, 7, -1, -1, -1]
    with pytest.raises(ValueError, match="takes 2 steps of 2 nodes, and has room for 1"):
        trees.joined(two, 12, TreeSizes(1, 2, 2))
    levels = trees.together([trees.levels(tree.children) for tree in two])
    assert levels.tolist() == [2, 2]
    assert trees.fitting([levels, np.array([1, 1, 1])], 2) == TreeSizes(4, 1, 2)


# ---------------------------------------------------------------------------------------------------------- ListOps


@pytest.mark.parametrize(
    "text, value",
    [
        ("[MAX 2 9 [MIN 4 7] 0]", 9),
        ("[SM 8 [MED 1 5 6] 4]", 7),
        ("[MED 1 2 5 8]", 3),
        ("[MIN [MAX 3 4] [SM 9 9]]", 4),
        ("[MED [MED 0 5] 9]", 5),
    ],
)
def test_values_of_expressions(text, value):
    assert listops.value(trees.parse(text)) == value


def test_values_are_those_that_numpy_finds():
    """MED as `int(numpy.median)`, which the published generator (github.com/nyu-mll/spinn) takes."""

    def recursive(nodes):
        done = []
        for word, count in zip(nodes.read, nodes.children, strict=True):
            values = [done.pop() for _ in range(count)][::-1]
            of = {"MAX": np.max, "MIN": np.min, "MED": np.median, "SM": lambda v: np.sum(v) % 10}
            done.append(int(of[word](values)) if count else int(word))
        return done.pop()

    for index in range(300):
        record = listops.expression(3, index)
        assert record.label == str(recursive(trees.parse(record.tree)))


def test_expressions_are_functions_of_seed_and_index():
    some = [listops.expression(0, index) for index in range(200)]
    assert some == [listops.expression(0, index) for index in range(200)] and some != [
        listops.expression(1, i) for i in range(200)
    ]
    nodes = [trees.parse(record.tree) for record in some]
    assert max(len(one.read) for one in nodes) <= listops.MOST
    assert max(trees.heights(trees.arrays(one).children).max() for one in nodes) == listops.DEPTH
    assert max(max(one.children) for one in nodes) == listops.ARGUMENTS
    assert len({record.label for record in some}) == 10
