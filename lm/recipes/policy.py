"""Policies: a model learns from rewards of what it writes itself (PPO, RLOO, GRPO and their kin).

It is a run like pretraining; configs/life/policy.py has the command. Each step samples answers with the parameters before it,
by `lm.generation.engine`, grades them, and takes its updates (`recipe.epochs` times `recipe.minibatches`), all within the step:
the state after a step is a function of the seed and its number, so that a run resumes to the bit, wherever it was killed.

Where the method has a divergence from a reference, that is the model in `train.init_from` as it was: a frozen tree, which no
checkpoint holds. A resumed run needs that model again, and its digest in the run's config says whether it is the same. With
adapters it is the base below them. Or it is the moving average of the policy, which is in the state. Sampling and training use
no dropout.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from flax import linen as nn
from jax.sharding import Mesh

from lm import config, saved, sharding
from lm.data.corpus.prepare import Prepared
from lm.data.corpus.store import shared
from lm.data.examples import ExampleBuilder
from lm.data.loader import Position
from lm.data.record_rows import RecordRows
from lm.data.tokenizer import load
from lm.errors import UserError, nearest
from lm.evaluation.findings import interval_ends
from lm.evaluation.qa_metrics import qa_metrics, symbols
from lm.generation.text_engine import engine_for, never_written
from lm.generation.tools import TOOLS, write
from lm.losses import policy
from lm.losses.policy import METHODS, Method, Rollouts, TokenScores
from lm.models.positions import check_positions
from lm.models.transformer import Transformer, head_params
from lm.recipes import pretrain, start
from lm.recipes.graders import Graders, answer, check_answers
from lm.recipes.rollout import Asking, Sampler, blank_row, ends_of
from lm.training.loop import Source
from lm.training.recipe import Parts, Recipe
from lm.training.step import Updates
from lm.training.task import Frozen, Task
from lm.types import WeightedMean

SHOWN = 16  # samples of the last step in the report


class PolicyLearning(Recipe):
    """Decoders and encoder-decoders. Serves one run; `complete` must be called first."""

    reads_params = True
    why_left_out = "beyond recipe.length a question keeps both its ends, and a conversation is left out"
    reference: saved.Saved | None = None
    sampler: Sampler | None = None
    opened: Mapping[str, saved.Saved] = MappingProxyType({})  # reward models of graders, by name
    _graders: Graders | None = None

    def complete(self, run: config.Run, workdir: epath.Path | None) -> config.Run:
        """Fills in model, objective and prefix from the model that the run starts from, unless the config gives them, and the
        digest of the reference. A resumed run reads its own checkpoint, and the reference alone from `train.init_from`."""
        recipe, begun = _recipe(run), start.opened(run, workdir)
        if begun is None:
            raise UserError(
                "a policy begins with a model that can answer: give --config.train.init_from=RUN, a run or a converted model"
            )
        before, model, path = begun.run, run.model or begun.model, run.data.tokenizer.path
        if recipe.reference == "average" and (method_of(recipe).kl == "without" or run.optimizer.ema is None):
            raise UserError(
                "recipe.reference=average is of a method with a divergence, in a run that keeps an average: give optimizer.ema "
                "(0.99 follows the policy over some hundred updates), and recipe.kl"
            )
        if method_of(recipe).kl != "without" and recipe.reference == "start":
            recipe = self._with_reference(run, recipe)
        objective = before.objective if before else run.objective
        self.tokenizer = begun.tokenizer() if path is None else load(path)
        if recipe.prefix is None:
            recipe = replace(recipe, prefix=start.has_prefix(model, objective, before))
        recipe, self.opened = with_graders(recipe)
        return replace(run, model=model, objective=objective, recipe=recipe, data=start.with_template(run.data, begun))

    def _with_reference(self, run: config.Run, recipe: config.Policy) -> config.Policy:
        if run.train.init_from is None:
            raise UserError(
                f"recipe.method={recipe.method} stays near the model that it starts from: give train.init_from, or leave the "
                "divergence out with --config.recipe.kl=without"
            )
        keys = dict(name="train.init_from", key="recipe.reference_sha256")
        self.reference, digest = start.unchanged(run.train.init_from, recipe.reference_sha256, **keys)
        return replace(recipe, reference_sha256=digest)

    def check(self, run: config.Run, task: Task, mesh: Mesh) -> None:
        c, head, batch, method = _recipe(run), run.model.head, run.train.batch_size, method_of(_recipe(run))
        if run.model.architecture == "encoder" or head is None or head.outputs is not None:
            raise UserError("the model writes no text, having no decoder or no head over the vocabulary: start from another")
        if batch % c.group:
            raise UserError(
                f"train.batch_size={batch} samples are no groups of recipe.group={c.group}: take "
                f"{-(-batch // c.group) * c.group}"
            )
        if c.group == 1 and (method.draws > 1 or method.advantage in ("mean", "deviation", "leave_one_out")):
            raise UserError(f"recipe.group=1 leaves no other sample to compare with, as {c.method} does: take 2 or more")
        if batch % c.minibatches:
            raise UserError(f"train.batch_size={batch} does not divide into recipe.minibatches={c.minibatches}; change one")
        sharding.check_batch(batch // c.minibatches, run.train.microbatches, mesh, name="train.batch_size / recipe.minibatches")
        check_settings(run)

    def task(self, run: config.Run) -> Task:
        t = self.tokenizer
        return task(run, self.reference, None if t is None else never_written(t, run.model.vocab_size, ends_of(run.data, t)))

    def rows(self, run: config.Run, data: Prepared) -> dict[str, RecordRows]:
        c = _recipe(run)
        settings: dict[str, Any] = dict(length=c.length, answer=c.answer, prefix=bool(c.prefix))
        builder = ExampleBuilder(data.tokenizer, run.model.architecture, **settings)
        rows = {
            split: RecordRows(stores, run.data, builder, how="answer", seed=run.train.seed, shuffle=split == "train")
            for split, stores in (("train", shared(data.train, run.data.train_share)), ("holdout", data.holdout))
            if stores
        }
        lengths = rows["train"].lengths
        check_positions(run.model, lengths.encoder, lengths.decoder, cure="shorten it with --config.recipe.length")
        return rows

    def check_data(self, parts: Parts) -> None:
        super().check_data(parts)
        for split, stores in (("train", parts.data.train), ("holdout", parts.data.holdout)):
            for name in stores:
                check_answers(parts.data.records(name, split), name, _recipe(parts.run).graders)

    def row(self, rows: RecordRows) -> Rollouts:
        return blank_row(rows.lengths)

    def source(self, parts: Parts, position: Position, steps: range) -> Source:
        given = parts.run, parts.data, parts.rows["train"], parts.mesh, position, self.graders(parts.run)
        sampler = self.sampler = Sampler(*given, method_of(_recipe(parts.run)))
        return lambda step, state: sampler(step, _model(parts.run, state.params))

    def facts(self, parts: Parts) -> dict[str, Any]:
        """Tokens that were sampled by this process, and how fast, without the first step's."""
        s = self.sampler
        rate = {} if s is None or not s.tokens else {"rollout_tokens_per_second": round(s.tokens / s.seconds, 1)}
        return {"records": {split: rows.report() for split, rows in parts.rows.items()}} | rate

    def evaluators(self, parts: Parts, frozen: Any) -> list[Any]:
        rows = parts.rows.get("holdout")
        return [] if rows is None else [HeldOutRewards(parts.run, parts.data, rows, self.graders(parts.run))]

    def graders(self, run: config.Run) -> Graders:
        """Those of samples and of held-out answers, made once: they may have a model to load."""
        self._graders = self._graders or Graders(_recipe(run).graders, self.opened)
        return self._graders

    def samples(self, parts: Parts, params: Any, frozen: Any) -> list[dict[str, Any]]:
        """The first samples of the last step, each with its reward."""
        return self.sampler.latest[:SHOWN] if self.sampler else []


def check_settings(run: config.Run) -> None:
    """UserError for settings that policies do not have, or that do not go together."""
    c = _recipe(run)
    for name, source in run.data.sources.items():
        if source.format not in ("pair", "labelled", "messages"):
            raise UserError(
                f"data.sources.{name} has records of format={source.format}, and a policy answers those of format=pair, "
                "labelled or messages"
            )
    for name in c.tools:
        if name not in TOOLS:
            raise UserError(f"recipe.tools: no tool '{name}'{nearest(name, TOOLS)}")
    if c.tools and c.prefix:
        raise UserError(
            "a model with recipe.prefix would read an answer up to a tool's output from both sides, and writes it from "
            "one: leave recipe.tools out, or start from a causal model"
        )
    if run.adapter and run.adapter.dropout:
        raise UserError("adapter.dropout is not for policies, which are sampled and trained without dropout: leave it out")
    if run.train.z_loss:
        raise UserError("train.z_loss is of a cross-entropy, which a policy has not: leave it out")
    if run.data.train_share < 1:
        raise UserError("data.train_share is not for policies, whose answers are graded by their record: leave it out")
    if run.data.packing or run.data.after or run.evaluate.baselines:
        raise UserError("data.packing, data.after and evaluate.baselines are not for policies: leave them out")


def with_graders(recipe: config.Policy) -> tuple[config.Policy, dict[str, saved.Saved]]:
    """The recipe with the digests of its graders' reward models, and these by the name of the grader. UserError if one is not
    what it was."""
    opened, given = {}, dict(recipe.graders)
    for name, grader in recipe.graders.items():
        if grader.kind == "model" and grader.path is not None:
            keys = dict(name=f"recipe.graders.{name}.path", key=f"recipe.graders.{name}.sha256")
            opened[name], digest = start.unchanged(grader.path, grader.sha256, **keys)
            given[name] = replace(grader, sha256=digest)
    return replace(recipe, graders=given), opened


def task(run: config.Run, reference: saved.Saved | None = None, forbidden: np.ndarray | None = None) -> Task:
    """The task of a policy: its parameters are those of the model or, with a critic, {"model", "critic"}. `forbidden`: bool
    [V], tokens that are never sampled."""
    c, model = _recipe(run), Transformer(run.model)
    method, critic = method_of(c), method_of(c).advantage == "critic"
    averaged = c.reference == "average" and method.kl != "without"
    settings: dict[str, Any] = dict(vocab_size=run.model.vocab_size, temperature=c.temperature, forbidden=forbidden)

    def judged(params: Any, batch: Rollouts) -> tuple[TokenScores, jax.Array | None, Any]:
        """What the policy finds of a batch's tokens, the critic's values [B, P], and what the model sowed in "losses"."""
        own = _model(run, params)
        hidden, sown = model.apply({"params": own}, batch.example, method="hidden", mutable=["losses"])
        found = policy.judged(head_params(own), model.apply, hidden, batch.example.targets, **settings)
        return found, valued(params["critic"], hidden) if critic else None, sown

    def batches(params: Any, frozen: Any, batch: Rollouts, key: jax.Array, average: Any = None) -> Rollouts:
        values = judged(params, batch)[1] if critic else None
        before = frozen if average is None else average
        others = None if before is None else judged({**params, **before}, batch)[0]  # the reference has no critic of its own
        given: dict[str, Any] = dict(reference=others and others.log_probs, values=values, group=c.group)
        ready = policy.prepared(batch, method, kl_weight=c.kl_weight, discount=c.discount, decay=c.decay, **given)
        return policy.updates(ready, key, epochs=c.epochs, minibatches=c.minibatches)

    def loss(params: Any, frozen: Any, batch: Rollouts, rngs: Any) -> Any:
        found, values, sown = judged(params, batch)
        mean, more = policy.loss(found, batch, method, kl_weight=c.kl_weight, values=values, critic=c.critic_weight)
        extras = (jnp.sum(extra) * mean.weight for extra in jax.tree.leaves(sown))  # of a router, as in pretraining
        return WeightedMean(sum(extras, mean.total), mean.weight), more

    def init(key: jax.Array, batch: Rollouts) -> Any:
        params = model.init(key, batch.example)["params"]
        return {"model": params, "critic": critic_params(run.model.width)} if critic else params

    def init_reference(key: jax.Array, batch: Rollouts) -> Any:
        params = model.init(key, batch.example)["params"]
        return {"model": params} if critic else params

    def load_reference(target: Any) -> Any:
        assert reference is not None
        return {"model": reference.params(target["model"])} if critic else reference.params(target)

    passes = lambda lengths: [(run.model, lengths.predicted)]
    return replace(
        pretrain.tokens(run),
        init=init,
        loss=loss,
        scores=lambda params, frozen, batch: {},
        reads=lambda lengths: passes(lengths) * (2 if reference or averaged else 1),  # by what writes it, and by the reference
        writer=lambda params, frozen: (model, _model(run, params)),
        frozen=reference and Frozen(init_reference, load_reference, start=True),
        beside=("critic",) if critic else (),
        nats=False,
        updates=Updates(c.epochs * c.minibatches, batches, average=averaged),
    )


def critic_params(width: int) -> Any:
    """A value that is linear in the policy's hidden vectors, and 0 at first."""
    zeros = lambda *shape: jnp.zeros(shape, jnp.float32)
    named = nn.LogicallyPartitioned
    return {"head": {"kernel": named(zeros(width), ("embed",)), "bias": named(zeros(), ())}}


def valued(critic: Any, hidden: jax.Array) -> jax.Array:
    """float32 [B, P] of hidden vectors [B, P, D]."""
    return hidden.astype(jnp.float32) @ critic["head"]["kernel"] + critic["head"]["bias"]


@dataclass(frozen=True)
class HeldOutRewards:
    """Call with parameters -> `reward`, `exact` match and `f1` of the likeliest answers to held-out questions."""

    run: config.Run
    data: Prepared
    rows: RecordRows
    graders: Graders
    latest: dict[str, np.ndarray] = field(default_factory=dict)  # values of the latest call

    def __call__(self, params: Any) -> dict[str, float]:
        run, index = self.run, np.arange(min(self.rows.count, self.run.evaluate.rows or self.rows.count))
        size = run.evaluate.batch_size or run.train.batch_size
        asking, greedy = Asking(run, self.rows), config.Sampling(temperature=0.0)
        requests = [asking.request(prompt, greedy) for prompt in self.rows.prompts(index)]
        settings: dict[str, Any] = dict(slots=size, ends=asking.ends, prefix=self.rows.builder.prefix)
        engine = engine_for(requests, Transformer(run.model), _model(run, params), asking.tokenizer, **settings)
        written = [asking.text(sample) for (sample,) in write(engine, requests, asking.calling)]
        every = {name: self.data.records(name, "holdout") for name in self.data.holdout}
        records = [every[name][number] for name, number in self.rows.records(index)]
        rewards, parts = self.graders(written, records)
        found = qa_metrics(written, [answer(record) for record in records], split=symbols)
        self.latest.update({"reward": rewards} | found)
        means = {name: float(values.mean()) for name, values in self.latest.items()}
        several = {f"reward/{name}": float(part.mean()) for name, part in parts.items()} if len(parts) > 1 else {}
        return means | several | {"items": len(index)}

    def intervals(self) -> dict[str, list[float]]:
        """The ends of the 95 % intervals of the latest call's figures, over questions."""
        return interval_ends(self.latest)


def method_of(c: config.Policy) -> Method:
    """The row of the table, with the choices that the config gives."""
    given = {f.name: value for f in fields(Method) if (value := getattr(c, f.name, None)) is not None}
    return replace(METHODS[c.method], **given)


def _model(run: config.Run, params: Any) -> Any:
    """The parameters of the model, without a critic's."""
    return params["model"] if method_of(_recipe(run)).advantage == "critic" else params


def _recipe(run: config.Run) -> config.Policy:
    assert isinstance(run.recipe, config.Policy)
    return run.recipe
