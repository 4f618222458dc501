"""What recipes of preferred answers have in common: the model that they start from, their rows, their held-out figures."""

from dataclasses import replace
from typing import Any

import jax
from etils import epath
from jax.sharding import Mesh

from lm import config, saved
from lm.data.corpus.prepare import Prepared
from lm.data.corpus.store import shared
from lm.data.examples import ExampleBuilder
from lm.data.preference_rows import PreferenceRows
from lm.errors import UserError
from lm.evaluation.judged import HeldOutJudged
from lm.losses.preference import Values, means
from lm.models.positions import check_positions
from lm.recipes import start
from lm.training.recipe import Parts, Recipe
from lm.training.task import Task
from lm.types import WeightedMean

HELD_OUT_SEED = 0  # of what held-out answers are compared with
START = "give --config.train.init_from=RUN, a run or a converted model"


class Judging(Recipe):
    """Serves one run. `complete` must be called first: it keeps what the other methods need of the model to start from."""

    why_left_out = "nothing: records that have no room are left out whole, and counted"
    feedback, rewards = False, False  # of `PreferenceRows`
    start: saved.Saved | None = None

    def complete(self, run: config.Run, workdir: epath.Path | None) -> config.Run:
        """Fills in model, objective and prefix from the model that the run starts from, unless the config gives them. A resumed
        run reads its own checkpoint, since `train.init_from` may be gone by then."""
        self.start = start.opened(run, workdir)
        before = self.start.run if self.start else None
        model = run.model or (self.start.model if self.start else None)
        if model is None:
            raise UserError(f"recipe.kind={config.kind_of(type(run.recipe))} needs a model to start from: {START}")
        objective, recipe = before.objective if before else run.objective, run.recipe
        assert isinstance(recipe, config.Reward | config.Preference)
        if recipe.prefix is None:
            recipe = replace(recipe, prefix=start.has_prefix(model, objective, before))
        if self.start and run.data.tokenizer.path is None:
            self.tokenizer = self.start.tokenizer()
        return replace(run, model=model, objective=objective, recipe=recipe, data=start.with_template(run.data, self.start))

    def check(self, run: config.Run, task: Task, mesh: Mesh) -> None:
        if run.data.packing:
            raise UserError("data.packing puts several records into a row, and a row is one pair of answers here: leave it out")
        start.check_records(run)

    def rows(self, run: config.Run, data: Prepared) -> dict[str, PreferenceRows]:
        settings: dict[str, Any] = dict(feedback=self.feedback, rewards=self.rewards)
        builder = builder_of(run, data.tokenizer)
        splits = {"train": (shared(data.train, run.data.train_share), run.train.seed), "holdout": (data.holdout, HELD_OUT_SEED)}
        rows = {
            split: PreferenceRows(stores, run.data, builder, seed=seed, shuffle=split == "train", **settings)
            for split, (stores, seed) in splits.items()
            if stores
        }
        lengths = rows["train"].lengths
        check_positions(run.model, lengths.encoder, lengths.decoder, cure="shorten it with --config.recipe.length")
        return rows

    def row(self, rows: PreferenceRows) -> Any:
        return rows.blank

    def check_data(self, parts: Parts) -> None:
        shards = parts.mesh.shape["sequence"]
        for length in (parts.lengths.encoder, parts.lengths.decoder):
            if (length or 0) % shards:
                raise UserError(f"mesh.sequence={shards} does not divide the {length} tokens of a row: change recipe.length")

    def facts(self, parts: Parts) -> dict[str, Any]:
        """Counts by split and source: records, those left out, rows of an epoch."""
        return {"records": {split: rows.report() for split, rows in parts.rows.items()}}

    def values(self, run: config.Run, params: Any, frozen: Any, batch: Any, **training: Any) -> Values:
        """The figures of each row of a batch, without dropout and a router's loss unless `training` (`trains`, `rngs`) asks."""
        raise NotImplementedError

    def evaluators(self, parts: Parts, frozen: Any) -> list[HeldOutJudged]:
        """One evaluator; none if no record is held out."""
        if "holdout" not in parts.rows:
            return []
        run, jitted = parts.run, jax.jit(lambda params, frozen, batch: self.values(parts.run, params, frozen, batch))
        score = lambda params, batch: jitted(params, frozen, batch)
        return [HeldOutJudged(parts.rows["holdout"], score, parts.test_size, parts.mesh, run.evaluate.rows)]


def builder_of(run: config.Run, tokenizer: Any) -> ExampleBuilder:
    """Makes the Examples of a reward or preference run."""
    recipe: Any = run.recipe
    settings: dict[str, Any] = dict(length=recipe.length, answer=recipe.answer, prefix=bool(recipe.prefix))
    return ExampleBuilder(tokenizer, run.model.architecture, **settings)


def split_loss(values: Values) -> tuple[WeightedMean, dict[str, WeightedMean]]:
    """The loss, and the means that are logged beside it."""
    found = means(values)
    return found.pop("loss"), found
