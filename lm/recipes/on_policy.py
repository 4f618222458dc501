"""On-policy distillation (GKD, arXiv 2306.13649): the student answers, and learns what its teacher predicts at these answers.

Questions, sampling and held-out rewards are those of `lm.recipes.policy`; the loss is the divergence of `lm.losses.distill`
at the tokens that were sampled. Cross-entropy on the student's own samples would teach it nothing.
"""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from lm import config, saved
from lm.data.corpus.prepare import Prepared
from lm.data.record_rows import RecordRows
from lm.errors import UserError
from lm.losses.distill import Side, mixed
from lm.losses.policy import Rollouts
from lm.models.positions import check_positions
from lm.models.transformer import Transformer, head_params, with_kernel
from lm.recipes import distill, policy
from lm.training.task import Frozen, Task
from lm.types import WeightedMean


class OnPolicyDistillation(policy.PolicyLearning):
    """Serves one run; `complete` must be called first."""

    teacher: saved.Saved | None = None

    def complete(self, run: config.Run, workdir: epath.Path | None) -> config.Run:
        """As of a policy, and the digest of the teacher's files. A resumed run needs its teacher again."""
        run = super().complete(run, workdir)
        self.teacher, digest = distill.opened(_recipe(run))
        assert self.tokenizer is not None
        distill.check_tokenizer(self.teacher, self.tokenizer, "train.init_from")
        return replace(run, recipe=replace(_recipe(run), teacher_sha256=digest))

    def check(self, run: config.Run, task: Task, mesh: Mesh) -> None:
        super().check(run, task, mesh)
        if policy.method_of(_recipe(run)) != policy.METHODS["reinforce"]:
            raise UserError(
                "the choices of recipe.method are of policies, and an on-policy distillation has none: leave them out"
            )

    def rows(self, run: config.Run, data: Prepared) -> dict[str, RecordRows]:
        assert self.teacher is not None, "`complete` comes first"
        rows = super().rows(run, data)
        read = rows["train"].lengths.encoder, rows["train"].lengths.decoder
        check_positions(self.teacher.model, *read, cure="shorten recipe.length: recipe.teacher reads no more")
        return rows

    def task(self, run: config.Run) -> Task:
        assert self.teacher is not None, "`complete` comes first"
        return task(run, self.teacher)


def task(run: config.Run, teacher: saved.Saved) -> Task:
    """The task of a student whose batches are `Rollouts`, beside a frozen teacher."""
    c, plain = _recipe(run), policy.task(run)
    distill.check_models(run.model, teacher.model, f"recipe.teacher={c.teacher}")
    theirs = with_kernel(teacher.model, run.model.kernel)
    models = (Transformer(run.model), Transformer(theirs))
    settings: dict[str, Any] = dict(vocab_size=run.model.vocab_size, beta=c.beta, temperature=c.temperature)

    def loss(params: Any, frozen: Any, batch: Rollouts, rngs: Any) -> tuple[WeightedMean, dict[str, WeightedMean]]:
        example, sides, sown = batch.example, [], []
        for model, tree in zip(models, (params, jax.lax.stop_gradient(frozen)), strict=True):
            hidden, losses = model.apply({"params": tree}, example, method="hidden", mutable=["losses"])
            sides.append(Side(head_params(tree), model.apply, hidden))
            sown.append(losses)
        total, _, _ = mixed(*sides, example.targets, example.weights, logits=1.0, labels=0.0, **settings)
        rows, weight = jnp.float32(batch.rewards.shape[0]), jnp.sum(example.weights)
        extras = (jnp.sum(extra) * weight for extra in jax.tree.leaves(sown[0]))  # of the student's router, as in pretraining
        return WeightedMean(sum(extras, total), weight), {"reward": WeightedMean(jnp.sum(batch.rewards), rows)}

    return replace(
        plain,
        loss=loss,
        reads=lambda lengths: [*plain.reads(lengths), (theirs, lengths.predicted)],
        frozen=Frozen(lambda key, batch: models[1].init(key, batch.example)["params"], teacher.params),
        updates=None,
    )


def _recipe(run: config.Run) -> config.OnPolicy:
    assert isinstance(run.recipe, config.OnPolicy)
    return run.recipe
