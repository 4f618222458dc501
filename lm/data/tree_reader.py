"""How the texts of records are read as trees, or trees as sequences: ids of the token store -> nodes, or ids in a row."""

from dataclasses import dataclass

import numpy as np

from lm import config
from lm.data import trees
from lm.data.examples import shorten
from lm.data.tokenizer import Tokenizer


@dataclass(frozen=True)
class TreeReader:
    """how: see `config.Finetune.trees`. `length`: the most nodes of a tree. `children`: the most of a node, beyond which it is
    folded; None: any number."""

    how: config.Trees
    bos: int
    eos: int
    length: int
    children: int | None = None

    @classmethod
    def of(cls, tokenizer: Tokenizer, recipe: config.Finetune, model: config.Model) -> "TreeReader":
        mixers = [block.mixer for block in model.encoder.blocks.values()] if model.encoder else []
        most = [mixer.children for mixer in mixers if isinstance(mixer, config.TreeLstm) and mixer.children is not None]
        bos, eos = tokenizer.require("bos"), tokenizer.require("eos")
        return cls(recipe.trees, bos, eos, recipe.length, min(most, default=None))

    def sequence(self, ids: np.ndarray) -> np.ndarray:
        """A stored tree as a sequence: `lm.data.trees.sequence`."""
        return trees.sequence(trees.of_ids(ids, self.bos, self.eos), self.bos, self.eos)

    def nodes(self, ids: np.ndarray, format: str) -> tuple[trees.Nodes, int]:
        """The tree of a record, whose text or tree is stored as `ids`, and how many of its tokens are not in it. One that is
        "balanced" or "right" is over the sequence, of which both ends are kept if the tree would have more than `length` nodes;
        others may have more."""
        if self.how in ("balanced", "right"):
            whole = self.sequence(ids) if format == "tree" else ids
            tokens = shorten(whole, (self.length + 1) // 2)
            nodes = trees.over(tokens if len(tokens) else np.array([self.bos]), self.how, self.bos)
            return nodes, len(whole) - len(tokens)
        found = trees.of_ids(ids, self.bos, self.eos)
        if self.how == "shuffled":
            found = trees.shuffled(found)
        return (found if self.children is None else trees.folded(found, self.children)), 0
