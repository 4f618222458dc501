"""Trees on the host: from bracketed text to nodes in postfix order, and from these to the arrays of `lm.types.Tree`.

A tree is two lists in postfix order, children before their parent and the root last: what is read at each node, and how many
children it has.

    ((the film) works)      the  film  -  works  -          [MAX 2 [MIN 4 7] ]      2  4  7  MIN  MAX
    children                0    0     2  0      2                                  0  0  0  2    2

Round brackets are nodes without a word, square ones begin with an operator (ListOps, arXiv 1804.06028). A round bracket around
one word or one bracket adds no node.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lm.errors import UserError
from lm.types import Tree, TreeSizes

Shape = Literal["balanced", "right"]  # of a tree over a sequence that has none: halves, or the first word beside all others
_MOST = 4096  # nodes of a tree, so that a file that is none is refused soon
STEP = 2  # nodes that take as long as what a step takes besides its nodes (experiments/trees/README.md)
_TOKEN = re.compile(r"[()\[\]]|[^\s()\[\]]+")
_LABELLED = re.compile(r"[()]|[^\s()]+")
_CLOSES = {"(": ")", "[": "]"}
_SPELT = str.maketrans({"[": "-LSB-", "]": "-RSB-"})  # square brackets of a text, as the Penn treebank spells them


class InvalidTree(UserError):
    """A text that is no tree. The message says what is wrong and where."""


@dataclass(frozen=True)
class Nodes:
    """A tree in postfix order. `read` has words or ids; None, or an id that stands for it, where nothing is read."""

    read: tuple[Any, ...]
    children: tuple[int, ...]  # of each node


# ----------------------------------------------------------------------------------------------------------- as text


def parse(text: str) -> Nodes:
    """The tree of a bracketed text, with words and operators as they are written. Raises InvalidTree."""
    read: list[str | None] = []
    children: list[int] = []
    open_: list[list[Any]] = [["", None, 0]]  # bracket, operator, children so far

    def add(word: str | None, count: int) -> None:
        read.append(word)
        children.append(count)
        open_[-1][2] += 1

    tokens = _split(_TOKEN, text)
    for at, token in tokens:
        if token in _CLOSES:
            open_.append([token, None, 0])
        elif token in _CLOSES.values():
            bracket, operator, count = open_.pop()
            if not open_ or _CLOSES[bracket] != token:
                raise InvalidTree(f"{token!r} at character {at} closes no bracket")
            if not count:
                raise InvalidTree(f"nothing is in the bracket that {token!r} at character {at} closes")
            if bracket == "(" and count == 1:
                open_[-1][2] += 1
            else:
                add(operator, count)
        elif open_[-1][0] == "[" and open_[-1][1] is None and not open_[-1][2]:
            open_[-1][1] = token
        else:
            add(token, 0)
    return _whole(read, children, open_)


def parse_labelled(text: str) -> tuple[Nodes, str]:
    """The tree of a text whose round brackets each begin with a label, and the root's label (the Stanford Sentiment Treebank,
    https://nlp.stanford.edu/sentiment). The labels of the other nodes are not kept. Raises InvalidTree.

    (3 (2 a) (1 (2 b) (0 c)))    (a (b c)), 3
    """
    label, bare, depth = "", False, 0
    inner: list[str] = []
    tokens = _split(_LABELLED, text)
    for at, token in tokens:
        if token == "(":
            begun, name = next(tokens, (at, ")"))
            if name in "()":
                raise InvalidTree(f"the bracket at character {begun} has no label")
            label, bare = label or name, True
            depth += 1
            inner.append("(")
            continue
        if not depth:
            raise InvalidTree(f"{token[:20]!r} at character {at} is outside of all brackets")
        if token == ")" and bare:
            raise InvalidTree(f"nothing follows the label in the bracket that is closed at character {at}")
        bare = False
        depth -= token == ")"
        inner.append(token.translate(_SPELT))
    return parse(" ".join(inner)), label


def _split(pattern: re.Pattern[str], text: str) -> Iterator[tuple[int, str]]:
    return ((found.start(), found.group()) for found in pattern.finditer(text))


def _whole(read: list[str | None], children: list[int], open_: list[list[Any]]) -> Nodes:
    if len(open_) > 1:
        raise InvalidTree(f"{len(open_) - 1} brackets are not closed" if len(open_) > 2 else "a bracket is not closed")
    if open_[0][2] != 1:
        what = "is no tree" if not read else f"has {open_[0][2]} trees side by side: put one bracket around them"
        raise InvalidTree(f"it {what}")
    if len(read) > _MOST:
        raise InvalidTree(f"it has {len(read):,} nodes, and {_MOST:,} are the most")
    return Nodes(tuple(read), tuple(children))


def written(tree: Nodes) -> str:
    """The bracketed text of a tree, which `parse` reads back."""
    done: list[str] = []
    for word, count in zip(tree.read, tree.children, strict=True):
        if not count:
            done.append(str(word))
            continue
        inside = done[len(done) - count :]
        del done[len(done) - count :]
        done.append(f"({' '.join(inside)})" if word is None else f"[{' '.join([word, *inside])}]")
    return done[0]


def words(tree: Nodes) -> list[str]:
    """All words, in the order of the text: an operator before its arguments."""
    return [str(word) for word, what in _walk(tree) if what != "closes" and word is not None]


def _walk(tree: Nodes) -> list[tuple[Any, Literal["leaf", "opens", "closes"]]]:
    """What is read at each node and where, in the order of the text; an inner node's is there twice."""
    done: list[list[tuple[Any, Literal["leaf", "opens", "closes"]]]] = []
    for word, count in zip(tree.read, tree.children, strict=True):
        if not count:
            done.append([(word, "leaf")])
            continue
        inside = [one for part in done[len(done) - count :] for one in part]
        del done[len(done) - count :]
        done.append([(word, "opens"), *inside, (word, "closes")])
    return done[0]


# ------------------------------------------------------------------------------------------------------------ as ids


def to_ids(tree: Nodes, pieces: Sequence[np.ndarray], bos: int, eos: int) -> np.ndarray:
    """A tree of words as ids, int32 [n]: bos opens a bracket and eos closes it, since no text has them; an empty bracket comes
    before an operator. `pieces` are the ids of all words, in the order of `words`; a word of several is a node over them.
    InvalidTree for an operator of several pieces.

    ((7 8) 9)    bos bos 7 8 eos 9 eos        [5 7 8]    bos bos eos 5 7 8 eos
    """
    found = iter(pieces)
    out: list[int] = []
    for word, what in _walk(tree):
        if what == "closes":
            out.append(eos)
        elif word is None:
            out.append(bos)
        else:
            ids = next(found).tolist()
            if what == "leaf":
                out += ids if len(ids) == 1 else [bos, *ids, eos]
            elif len(ids) == 1:
                out += [bos, bos, eos, *ids]
            else:
                raise InvalidTree(
                    f"operator {word!r} is {len(ids)} tokens of this tokenizer, and a node reads one: set "
                    "--config.data.tokenizer.kind=word"
                )
    return np.array(out, np.int32)


def of_ids(ids: np.ndarray, bos: int, eos: int) -> Nodes:
    """The tree that `to_ids` made these ids of. Nodes without a word read bos."""
    read: list[int] = []
    children: list[int] = []
    open_: list[list[int]] = [[bos, 0]]  # what is read there, children so far
    at, tokens = 0, ids.tolist()
    while at < len(tokens):
        token = tokens[at]
        if token == bos:
            operates = tokens[at + 1 : at + 3] == [bos, eos]
            open_.append([tokens[at + 3] if operates else bos, 0])
            at += 3 * operates
        else:
            word, count = (token, 0) if token != eos else open_.pop()
            read.append(word)
            children.append(count)
            open_[-1][1] += 1
        at += 1
    return Nodes(tuple(read), tuple(children))


def sequence(tree: Nodes, bos: int, eos: int) -> np.ndarray:
    """What a model that reads no trees reads, int32 [n]: an operator before its arguments, and eos after them; nodes without a
    word are left out.

    ((7 8) 9)    7 8 9        [5 7 [6 8 9] ]    5 7 6 8 9 eos eos
    """
    return np.array([eos if what == "closes" else word for word, what in _walk(tree) if word != bos], np.int32)


def over(tokens: np.ndarray, shape: Shape, inner: int) -> Nodes:
    """A tree over a sequence, [n] with n at least 1, whose 2 n - 1 nodes have two children or none; inner nodes read `inner`.

    balanced    ((a b) (c d))       right    (a (b (c d)))
    """
    read: list[int] = []
    children: list[int] = []

    def add(first: int, stop: int) -> None:
        if stop - first == 1:
            read.append(int(tokens[first]))
            children.append(0)
            return
        middle = (first + stop + 1) // 2
        add(first, middle)
        add(middle, stop)
        read.append(inner)
        children.append(2)

    if shape == "balanced":
        add(0, len(tokens))
        return Nodes(tuple(read), tuple(children))
    more = len(tokens) - 1
    return Nodes((*tokens.tolist(), *[inner] * more), (*[0] * len(tokens), *[2] * more))


def folded(tree: Nodes, most: int) -> Nodes:
    """The tree with at most `most` children, 2 or more, at a node: one with more is repeated over its first ones.

    [5 7 8 9], most 2    [5 [5 7 8] 9]
    """
    done: list[tuple[list[Any], list[int]]] = []
    for word, count in zip(tree.read, tree.children, strict=True):
        parts = done[len(done) - count :] if count else []
        del done[len(done) - count :]
        read: list[Any] = []
        children: list[int] = []
        have = 0
        for inside, counts in parts:
            if have == most:
                read.append(word)
                children.append(most)
                have = 1
            read += inside
            children += counts
            have += 1
        done.append(([*read, word], [*children, have]))
    return Nodes(tuple(done[0][0]), tuple(done[0][1]))


def shuffled(tree: Nodes) -> Nodes:
    """The same shape with what is read at its leaves in another order, and so at its inner nodes: a control in which the tree
    says nothing about the order of the words. The order is a function of the tree alone."""
    rng = np.random.default_rng([*(abs(int(word)) for word in tree.read), len(tree.read)])
    read, count = np.array(tree.read), np.array(tree.children)
    for some in (np.flatnonzero(count == 0), np.flatnonzero(count > 0)):
        read[some] = read[rng.permutation(some)]
    return Nodes(tuple(read.tolist()), tree.children)


# --------------------------------------------------------------------------------------------------------- as arrays


def arrays(tree: Nodes) -> Tree:
    """A tree of n nodes on its own: `children` int32 [n, C] for its own C; the other arrays, a row's, are empty."""
    children, waiting = np.full((len(tree.read), max(1, *tree.children)), -1, np.int32), list[int]()
    for node, count in enumerate(tree.children):
        if count:
            children[node, :count] = waiting[len(waiting) - count :]
            del waiting[len(waiting) - count :]
        waiting.append(node)
    return Tree(children, *np.zeros((3, 0), np.int32))


def heights(children: np.ndarray) -> np.ndarray:
    """int32 [n]: how many nodes are below each on the longest way, 0 at leaves; parents come after their children."""
    out = [-1] * (len(children) + 1)  # the last is that of no child, -1
    for node, below in enumerate(children.tolist()):
        out[node] = 1 + max(out[k] for k in below)
    return np.array(out[:-1], np.int32)


def levels(children: np.ndarray) -> np.ndarray:
    """int64 [height]: how many nodes have height 1, 2, ..."""
    return np.bincount(heights(children), minlength=1)[1:]


def num_steps(levels: np.ndarray, width: int) -> int:
    """How many steps of at most `width` nodes, all of one height, a row with these `levels` takes."""
    return int((-(-levels // width)).sum())


def joined(parts: Sequence[Tree], length: int, sizes: TreeSizes) -> Tree:
    """The trees of a row's pieces, one after the other, as those of a row of `length` nodes. A step's nodes have one height, so
    that their children are in earlier steps. ValueError if they do not fit."""
    children, begin = np.full((length, sizes.children), -1, np.int32), 0
    for part in parts:
        count, most = part.children.shape
        children[begin : begin + count, :most] = np.where(part.children < 0, -1, part.children + begin)
        begin += count
    height = heights(children)
    inner = np.flatnonzero(height)
    inner = inner[np.argsort(height[inner], kind="stable")]
    count = np.bincount(height, minlength=1)[1:]
    if (needed := num_steps(count, sizes.width)) > sizes.steps:
        raise ValueError(f"a row takes {needed} steps of {sizes.width} nodes, and has room for {sizes.steps}")
    within = np.arange(len(inner)) - np.repeat(np.cumsum(count) - count, count)
    of_level = -(-count // sizes.width)
    slot = sizes.width * np.repeat(np.cumsum(of_level) - of_level, count) + within
    steps, slots = np.full(sizes.steps * sizes.width, -1, np.int32), np.full(length, -1, np.int32)
    steps[slot], slots[inner] = inner, slot
    edges, below = np.full(length, -1, np.int32), children[inner]
    edges[below[below >= 0]] = (slot[:, None] * sizes.children + np.arange(sizes.children))[below >= 0]
    return Tree(children, steps.reshape(sizes.steps, sizes.width), slots, edges)


def together(levels: Sequence[np.ndarray]) -> np.ndarray:
    """The `levels` of a row that has trees with these."""
    out = np.zeros(max((len(of) for of in levels), default=0), np.int64)
    for of in levels:
        out[: len(of)] += of
    return out


def stacked(rows: Sequence[Tree]) -> Tree:
    """The trees of rows as those of a batch: arrays with a leading axis."""
    return Tree(*(np.stack([getattr(row, name) for row in rows]) for name in vars(rows[0])))


def fitting(rows: Sequence[np.ndarray], children: int) -> TreeSizes:
    """Sizes that all rows with these `levels` fit in: of the widths 1, 2, 4, ... the one that takes the least time, if a step
    takes as long as STEP nodes besides its own."""
    widest = max((int(of.max(initial=1)) for of in rows), default=1)
    every = [(max((num_steps(of, width) for of in rows), default=0), width) for width in _powers(widest)]
    return TreeSizes(*min(every, key=lambda size: (size[0] * (size[1] + STEP), size[1])), children)


def _powers(most: int) -> list[int]:
    """1, 2, 4, ... up to the first that is `most` or more."""
    return [2**i for i in range((most - 1).bit_length() + 1)]
