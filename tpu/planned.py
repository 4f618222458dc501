"""A run before its data is there: its recipe, and the shapes of its rows, from the config alone.

A config that is compiled ahead of time names its model and what a recipe would otherwise take from `train.init_from`, such as
`recipe.prefix`; nothing is opened. Rows are made of one blank record for each source, which has the shapes of all others.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from lm import config, flops, recipes
from lm.data.corpus.prepare import Prepared
from lm.data.corpus.store import Store
from lm.data.rows import blank
from lm.errors import UserError
from lm.objectives import Lengths
from lm.objectives.dummy_vocabulary import DummyVocabulary
from lm.recipes import policy, preference, pretrain
from lm.training.assembly import check, computation, with_chosen_kernel
from lm.training.recipe import Computation, Recipe

# The tokens of a blank record that have loss, between its bos and its end: an answer or two.
ANSWERS = {"preference": (0, 0, 1, 0, 1), "feedback": (0, 0, 1)}
ANSWER = (0, 0, 0, 1, 1)
ON_RECORDS = (config.Finetune, config.Reward, config.Preference, config.Policy)


class Unopened:
    """In place of the saved model that a reference is read from."""

    def params(self, target: Any) -> Any:
        raise AssertionError("nothing is read ahead of time")


def recipe_of(run: config.Run) -> Recipe:
    """The recipe with what `complete` would set."""
    made: Any = recipes.recipe(run)
    if run.model is None:
        raise UserError("a run that is compiled ahead of time names its model: give config.model, as configs/pod.py does")
    c = run.recipe
    if isinstance(c, config.Policy) and c.reference == "start" and policy.method_of(c).kl != "without":
        made.reference = Unopened()
    if isinstance(run.recipe, config.Preference):
        method = preference.method_of(run.recipe)
        made.feedback, made.reference = method.feedback, Unopened() if method.reads_reference else None
    return made


def forward_flops(run: config.Run, *, causal_share: float = 0.5) -> tuple[dict[str, int], flops.Flops]:
    """Stack -> positions of its rows, and the FLOPs of a forward pass over a step's rows."""
    of = rows_of(run, recipe_of(run))[0]
    lengths = {name: n for name, n in (("encoder", of.encoder), ("decoder", of.decoder)) if n}
    sizes: dict[str, Any] = dict(**lengths, predicted=of.predicted, blocks=of.blocks, causal_share=causal_share)
    return lengths, flops.count(run.model, batch=run.train.batch_size, **sizes)


def rows_of(run: config.Run, recipe: Recipe) -> tuple[Lengths, Any]:
    """The lengths of rows, and a blank row. UserError for a recipe that reads its data first."""
    if (known := recipe.shapes(run)) is not None:
        return known
    if isinstance(run.recipe, config.Pretrain):
        lengths = pretrain.objective_of(run, DummyVocabulary.of(run)).lengths
        return lengths, blank(lengths)
    if not isinstance(run.recipe, ON_RECORDS):
        kind = config.kind_of(type(run.recipe))
        raise UserError(f"recipe.kind={kind} reads another model before its rows are known: it is not compiled ahead of time")
    if isinstance(run.recipe, config.Finetune) and run.recipe.how == "head":
        raise UserError("a head has as many outputs as the records have classes: recipe.how=text is compiled ahead of time")
    stores = {name: _one_record(source.format) for name, source in run.data.sources.items()}
    vocabulary: Any = DummyVocabulary.of(run)
    rows = recipe.rows(run, Prepared(Path(), "", stores, {}, vocabulary, {}))["train"]
    return rows.lengths, recipe.row(rows)


def _one_record(format: str) -> Store:
    loss = np.array(ANSWERS.get(format, ANSWER), np.uint8)
    offsets = np.array([0, len(loss)])
    return Store("", offsets, np.ones(1, np.int64), np.ones(len(loss), np.int32), loss, np.ones(1))


def computation_of(run: config.Run, mesh: Mesh) -> Computation:
    """What a run computes, known without its data."""
    recipe = recipe_of(run)
    lengths, row = rows_of(run, recipe)
    run = with_chosen_kernel(run, mesh, lengths)
    return computation(run, check(run, recipe, mesh), mesh, lengths, row)
