"""Kinds of training, one file each, which define a `lm.training.recipe.Recipe`; `lm.training.run` does the rest."""

from pathlib import Path
from typing import Any

from lm import config
from lm.recipes import (
    distill,
    drawing,
    finetune,
    image_classes,
    image_codes,
    image_text,
    on_policy,
    policy,
    preference,
    pretrain,
    reward,
    transcribe,
    two_encoders,
)
from lm.training import run as runs
from lm.training.adapted import adapted
from lm.training.recipe import Recipe
from lm.training.task import Task

RECIPES: dict[type, type[Recipe]] = {
    config.Pretrain: pretrain.Pretraining,
    config.Finetune: finetune.FineTuning,
    config.Distill: distill.Distillation,
    config.Reward: reward.RewardModel,
    config.Preference: preference.Preferring,
    config.Policy: policy.PolicyLearning,
    config.OnPolicy: on_policy.OnPolicyDistillation,
    config.TwoEncoders: two_encoders.TwoEncoders,
    config.ImageClasses: image_classes.ImageClasses,
    config.Transcribe: transcribe.Transcription,
    config.ImageCodes: image_codes.ImageCoding,
    config.ImageText: image_text.ImageWriting,
    config.Drawing: drawing.Draws,
}


def recipe(run: config.Run) -> Recipe:
    return RECIPES[type(run.recipe)]()


def task(run: config.Run) -> Task:
    return adapted(recipe(run).task(run), run)


def train(
    run: config.Run,
    workdir: str | Path,
    *,
    allow_changes: bool = False,
    quiet: bool = False,
    profile: range | None = None,
    until: int | None = None,
) -> dict[str, Any]:
    """See `lm.training.run.train`."""
    kind = recipe(run)
    return runs.train(run, kind, workdir, allow_changes=allow_changes, quiet=quiet, profile=profile, until=until)


def dry_run(run: config.Run) -> str:
    """See `lm.training.run.dry_run`."""
    return runs.dry_run(run, recipe(run))
