"""A reward model: a new head with one output gives an answer a number, learned from pairs of a better and a worse one.

It is a run like pretraining; configs/life/reward.py has the command, and `lm.evaluation.rewards` scores answers with it.
"""

from dataclasses import replace
from typing import Any

from etils import epath

from lm import config
from lm.losses import reward
from lm.losses.preference import Values, means
from lm.models.transformer import Transformer
from lm.recipes import start
from lm.recipes.judged import Judging, split_loss
from lm.training.task import Task


class RewardModel(Judging):
    """Every architecture: a decoder reads question and answer, as does an encoder; of an encoder-decoder the decoder reads the
    answer."""

    rewards = True
    fresh: tuple[str, ...] = ()

    def complete(self, run: config.Run, workdir: epath.Path | None) -> config.Run:
        run = super().complete(run, workdir)
        before = self.start.run if self.start else None
        further = before if before and isinstance(before.recipe, config.Reward) else None
        self.fresh = () if further else ("head",)
        return replace(run, model=start.with_head(run.model, 1, further.model if further else None))

    def task(self, run: config.Run) -> Task:
        model = Transformer(run.model)
        return Task(
            models={"model": run.model},
            init=lambda key, batch: model.init(key, batch.chosen)["params"],
            loss=lambda params, frozen, batch, rngs: split_loss(
                self.values(run, params, frozen, batch, trains=True, rngs=rngs)
            ),
            scores=lambda params, frozen, batch: means(self.values(run, params, frozen, batch)),
            passes=lambda lengths: [(run.model, 1)] * 2,
            writer=lambda params, frozen: (model, params),
            fresh=self.fresh,
            nats=False,
        )

    def values(self, run: config.Run, params: Any, frozen: Any, batch: Any, **training: Any) -> Values:
        assert isinstance(run.recipe, config.Reward)
        return reward.values(params, Transformer(run.model).apply, batch, centre=run.recipe.centre, **training)
