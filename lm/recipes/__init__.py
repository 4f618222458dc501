"""Kinds of training, one file each, which define a `lm.training.recipe.Recipe`; `lm.training.run` does the rest."""

from pathlib import Path
from typing import Any

from lm import config
from lm.recipes import finetune, pretrain
from lm.training import run as runs
from lm.training.recipe import Recipe
from lm.training.task import Task

RECIPES: dict[type, type[Recipe]] = {config.Pretrain: pretrain.Pretraining, config.Finetune: finetune.FineTuning}


def recipe(run: config.Run) -> Recipe:
    return RECIPES[type(run.recipe)]()


def task(run: config.Run) -> Task:
    return recipe(run).task(run)


def train(
    run: config.Run, workdir: str | Path, *, allow_changes: bool = False, quiet: bool = False, profile: range | None = None
) -> dict[str, Any]:
    """See `lm.training.run.train`."""
    return runs.train(run, recipe(run), workdir, allow_changes=allow_changes, quiet=quiet, profile=profile)


def dry_run(run: config.Run) -> str:
    """See `lm.training.run.dry_run`."""
    return runs.dry_run(run, recipe(run))
