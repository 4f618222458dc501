"""Pretraining: one model learns from windows of documents, which the run's objective turns into Examples."""

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from lm import config
from lm.data.corpus.prepare import Prepared
from lm.data.corpus.store import shared
from lm.data.rows import Rows, mixture_weights, tokens_of
from lm.errors import UserError
from lm.evaluation.heldout import HeldOut
from lm.generation.samples import check as check_samples
from lm.generation.samples import samples
from lm.losses.cross_entropy import cross_entropy, scores
from lm.models.positions import check_positions
from lm.models.transformer import Transformer, head_params
from lm.objectives import Objective, Vocabulary, build, factors
from lm.objectives.dummy_vocabulary import DummyVocabulary
from lm.recipes import contrastive, joining, multi_token, replaced_tokens, variational
from lm.training.recipe import Parts, Recipe
from lm.training.task import Task
from lm.types import Example

HELD_OUT_SEED = 0  # of the noise in held-out rows
NOTHING_HELD_OUT = (
    "evaluate.baselines are judged on held-out documents, and none is held out: raise data.holdout, give more documents, "
    "such as a book's chapters as files, or set --config.evaluate.baselines=False"
)


def tokens(run: config.Run, *, masked: bool = False) -> Task:
    """The task of one model, with the cross-entropy of the rows' targets: tokens, or classes if its head has `outputs`. If
    everything that is predicted is `masked`, the mask token is never the answer, and has probability 0."""
    model = Transformer(run.model)
    outputs = run.model.head.outputs if run.model.head else None
    settings: dict[str, Any] = dict(head_params=head_params, vocab_size=outputs or run.model.vocab_size)
    loss = partial(cross_entropy, apply=model.apply, z_loss=run.train.z_loss, **settings)
    read = tokens_read if masked else lambda batch: None  # the mask token, at all positions with loss
    return Task(
        models={"model": run.model},
        init=lambda key, batch: model.init(key, batch)["params"],
        loss=lambda params, frozen, batch, rngs: (loss(params, example=batch, rngs=rngs, excluded=read(batch)), {}),
        scores=lambda params, frozen, batch: scores(params, model.apply, batch, excluded=read(batch), **settings),
        passes=lambda lengths: [(run.model, lengths.predicted)],
        writer=lambda params, frozen: (model, params),
    )


def tokens_read(example: Example) -> jax.Array:
    """The token that is read at the place of each target, int32 [B, P]."""
    stream: Any = example.decoder or example.encoder
    if example.decoder is not None and example.where is None:  # each is predicted one place before it
        return jnp.roll(stream.tokens, -1, axis=1)
    return stream.tokens if example.where is None else jnp.take_along_axis(stream.tokens, example.where, axis=1)


MASKED = (config.MaskedDiffusion, config.BlockDiffusion)  # objectives of which all that is predicted is masked
TASKS: dict[type, Callable[[config.Run], Task]] = {  # all others: `tokens`
    config.ReplacedTokens: replaced_tokens.task,
    **dict.fromkeys(MASKED, partial(tokens, masked=True)),
    config.Contrastive: contrastive.task,
    config.MultiToken: multi_token.task,
    config.Variational: variational.task,
}


class Pretraining(Recipe):
    def task(self, run: config.Run) -> Task:
        return TASKS.get(type(run.objective), tokens)(run)

    def check(self, run: config.Run, task: Task, mesh: Mesh) -> None:
        held_out = run.data.holdout > 0 or any(source.use == "holdout" for source in run.data.sources.values())
        if run.evaluate.baselines and not held_out:
            raise UserError(NOTHING_HELD_OUT)
        if run.evaluate.baselines and run.data.train_share < 1:
            raise UserError(
                f"evaluate.baselines learn from all training documents, and data.train_share={run.data.train_share} trains on "
                "a part of them: set --config.evaluate.baselines=False, or data.train_share=1.0"
            )
        joining.check_mesh(run.model, mesh)
        lengths = {name: getattr(run.data, name) for name in ("encoder_length", "decoder_length")}
        for path, model in task.models.items():
            cure = f"shorten data.{{stack}}_length, or raise --config.{path}.{{stack}}.position.max_length"
            check_positions(model, *lengths.values(), cure=cure)
        parts = mesh.shape["sequence"]
        for name, length in lengths.items():
            if (length or 0) % parts:
                raise UserError(f"data.{name}={length} does not divide over mesh.sequence={parts}; change one of them")
        if run.data.tokenizer.path is None:  # the special tokens of a tokenizer that is trained here are known before it is
            objective_of(run, DummyVocabulary.of(run))

    def data(self, run: config.Run, *, progress: bool) -> Prepared:
        data = super().data(run, progress=progress)
        if run.evaluate.baselines and not data.holdout:
            raise UserError(NOTHING_HELD_OUT)
        return data

    def rows(self, run: config.Run, data: Prepared) -> dict[str, Rows]:
        return rows_of(run, data, objective_of(run, data.tokenizer))

    def check_data(self, parts: Parts) -> None:
        run, path = parts.run, parts.task.writes
        joining.check_documents(run.model, parts.rows)
        if _has_samples(run):
            settings: dict[str, Any] = dict(new_tokens=run.log.sample_tokens, seed=run.train.seed, place=path)
            check_samples(parts.task.models[path], parts.data.tokenizer, run.objective, run.log.samples, **settings)

    def evaluators(self, parts: Parts, frozen: Any) -> list[Any]:
        if "holdout" not in parts.rows:
            return []
        run = parts.run
        kind = factors(run.model.architecture, run.objective) if not run.data.after else False  # of parts of texts
        figures = HeldOut(
            parts.rows["holdout"],
            parts.scorer(frozen),
            parts.test_size,
            parts.mesh,
            run.evaluate.rows,
            kind,
            parts.task.nats,
        )
        return [variational.named(figures, run.objective)]

    def samples(self, parts: Parts, params: Any, frozen: Any) -> list[dict[str, str]]:
        run, log = parts.run, parts.run.log
        if not _has_samples(run):
            return []
        model, own = parts.task.writer(params, frozen)
        settings: dict[str, Any] = dict(new_tokens=log.sample_tokens, temperature=log.temperature, seed=run.train.seed)
        return samples(model, own, parts.data.tokenizer, run.objective, log.samples, **settings)

    def baselines(self, parts: Parts) -> dict[str, Any] | None:
        """None, with a warning, if the prepared texts are damaged: a run that has trained to the end does not fail for that."""
        from lm.evaluation.baselines import of_prepared

        if not parts.run.evaluate.baselines:
            return None
        try:
            found = of_prepared(parts.data)
        except UserError as error:
            warnings.warn(f"no baselines: {error}", stacklevel=2)
            return None
        return {name: value for name, value in found.items() if name not in ("bytes", "seconds")}


def objective_of(run: config.Run, vocabulary: Vocabulary) -> Objective:
    """The objective of a run. UserError where the model does not fit it."""
    objective = build(run.objective, run.model.architecture, run.data, vocabulary)
    cure = (
        "shorten data.encoder_length, which sets the number of positions, or raise --config.model.{stack}.position.max_length"
    )
    check_positions(run.model, None, objective.reach, cure=cure)
    if objective.lengths.blocks or objective.lengths.ahead:
        _check_positions_apart(run.model)
    stack = run.model.decoder
    if stack and stack.recurrent() and (objective.lengths.prefix or objective.lengths.blocks):
        raise UserError(
            f"{config.kind_of(type(run.objective))} lets a decoder's tokens see some that come after them, and a recurrent "
            "layer reads from left to right: take a causal objective, or model.decoder.blocks with attention alone"
        )
    if isinstance(run.objective, config.MaskedDiffusion) and run.model.decoder:
        _check_sees_what_follows(run.model.decoder)
    if objective.lengths.ahead and run.model.embed.ahead < objective.window:
        raise UserError(
            f"model.embed.ahead={run.model.embed.ahead}, and this objective tells each token which of {objective.window} "
            f"positions comes next; set --config.model.embed.ahead={objective.window}"
        )
    if run.model.embed.types < (types := objective.lengths.types):
        raise UserError(
            f"model.embed.types={run.model.embed.types}, and this objective has {types} types of tokens; set "
            f"--config.model.embed.types={types}"
        )
    return objective


def _check_positions_apart(model: config.Model) -> None:
    """UserError if a decoder tells positions apart by indices in the row, where these are not those of the text."""
    stack = model.decoder
    assert stack is not None
    if isinstance(stack.position, config.Buckets | config.Alibi):
        raise UserError(
            f"model.decoder.position is {config.kind_of(type(stack.position))}, which counts tokens in the row, and this "
            "objective does not leave them in the text's order: take rope, learned or sinusoidal"
        )
    if any(attention.window for attention in stack.self_attentions()):
        raise UserError("attention windows count tokens in the row, whose order is not the text's: leave attention.window out")


def _check_sees_what_follows(stack: config.Stack) -> None:
    """UserError if a decoder whose tokens all see each other has positions or windows of those before them alone."""
    if isinstance(stack.position, config.Buckets):
        raise UserError(
            "model.decoder.position is buckets, which a decoder has for the tokens before one alone, and here it sees those "
            "after it too: take rope, learned or sinusoidal, or an encoder"
        )
    if any(attention.window for attention in stack.self_attentions()):
        raise UserError("a decoder's attention.window reaches back alone, and here it sees what follows: leave it out")


def rows_of(run: config.Run, data: Prepared, objective: Objective) -> dict[str, Rows]:
    """Rows by split. Held-out rows have the same noise in runs of all seeds, so that losses differ by the models alone."""
    splits = {"train": shared(data.train, run.data.train_share), "holdout": data.holdout}
    seeds, total = {"train": run.train.seed, "holdout": HELD_OUT_SEED}, run.train.steps * run.train.batch_size
    made = lambda split, stores: Rows(
        stores,
        objective,
        seeds[split],
        mixture_weights(run.data, tokens_of(stores)),
        split == "train",
        total if split == "train" else 0,
    )
    return {split: made(split, stores) for split, stores in splits.items() if stores}


def _has_samples(run: config.Run) -> bool:
    return bool(run.log.samples) and run.log.sample_tokens >= 1
