"""Distillation: a student learns from rows, and from what a frozen teacher makes of the same rows.

It is another recipe with a second loss: of texts pretraining, and of records fine-tuning in text, whose rows, held-out figures
and samples are theirs. The teacher is in no checkpoint; the digest of its files is in the run's config.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.sharding import Mesh

from lm import config, saved, sharding
from lm.data.corpus.prepare import Prepared
from lm.data.loader import Position
from lm.data.tokenizer import Tokenizer
from lm.errors import UserError
from lm.models.positions import check_positions
from lm.recipes import finetune, pretrain, start, taught
from lm.recipes.distill_task import on_records, predictor, task
from lm.training.loop import Source, prefetched
from lm.training.mapped import thinned_model
from lm.training.recipe import Parts, Recipe
from lm.training.task import Task


class Distillation(Recipe):
    """Serves one run. `complete` must be called first: it opens the teacher."""

    teacher: saved.Saved | None = None
    settings: config.Finetune | None = None  # of the other recipe, if it is of records
    run: config.Run | None = None
    kept: taught.Kept | None = None

    def __init__(self) -> None:
        self.inner: Recipe = pretrain.Pretraining()  # whose rows and figures these are

    def complete(self, run: config.Run, workdir: epath.Path | None) -> config.Run:
        """Fills in the student's model and the digest of the teacher's files. A resumed run needs its teacher again."""
        c = _recipe(run)
        self.teacher, digest = opened(c)
        if run.data.tokenizer.path is None and self.teacher.tokenizer_bytes() is not None:
            self.tokenizer = self.teacher.tokenizer()
        model = run.model or thinned_model(self.teacher.model, run.train.init_layers)
        run = replace(run, model=model, recipe=replace(c, teacher_sha256=digest))
        self.run = self._of_records(run) if on_records(run) else run
        return self.run

    def _of_records(self, run: config.Run) -> config.Run:
        """The run with what a fine-tuning fills in, on records that are read and written as the teacher does. Prepares the
        data."""
        assert self.teacher is not None
        c, before = _recipe(run), self.teacher.run
        prefix = start.has_prefix(run.model, before.objective if before else run.objective, before)
        c = replace(c, prefix=prefix if c.prefix is None else c.prefix)
        tuning = config.Finetune(how="text", length=c.length, answer=c.answer, prefix=c.prefix)
        alone = replace(run.train, init_from=None, init_map={}, init_layers={})  # of which nothing more is read
        data = start.with_template(run.data, self.teacher)
        self.inner = finetune.FineTuning()
        self.inner.tokenizer = self.tokenizer
        done = self.inner.complete(replace(run, recipe=tuning, train=alone, data=data, adapter=None), None)
        assert isinstance(done.recipe, config.Finetune)
        self.settings = done.recipe
        return replace(run, recipe=c, data=done.data)

    def _run(self, run: config.Run) -> config.Run:
        """The run as `inner` knows it."""
        return run if self.settings is None else replace(run, recipe=self.settings)

    def _parts(self, parts: Parts) -> Parts:
        return replace(parts, run=self._run(parts.run))

    def task(self, run: config.Run) -> Task:
        assert self.teacher is not None, "`complete` comes first"
        check_pair(run, self.teacher.model)
        return task(run, self.teacher)

    def check(self, run: config.Run, task: Task, mesh: Mesh) -> None:
        self.inner.check(self._run(run), task, mesh)
        assert self.teacher is not None
        if self.settings is None:
            lengths = (run.data.encoder_length, run.data.decoder_length)
            cure = "shorten data.{stack}_length: recipe.teacher reads no more"
            check_positions(self.teacher.model, *lengths, cure=cure)

    def data(self, run: config.Run, *, progress: bool) -> Prepared:
        """The data in the teacher's tokens, and with `recipe.top_k` what the teacher predicts there. UserError if
        `data.tokenizer.path` is another tokenizer."""
        assert self.teacher is not None
        check_pair(run, self.teacher.model)
        self.inner.tokenizer = self.tokenizer
        data = self.inner.data(self._run(run), progress=progress)
        check_tokenizer(self.teacher, data.tokenizer, "data.tokenizer.path")
        if _recipe(run).top_k is not None and run.train.steps:
            rows = self.rows(run, data)["train"]
            predict = partial(predictor, run, self.teacher, rows)
            self.kept = taught.kept(run, rows, predict, fingerprint=data.fingerprint, progress=progress)
        return data

    def rows(self, run: config.Run, data: Prepared) -> dict[str, Any]:
        rows = self.inner.rows(self._run(run), data)
        if self.settings is not None:
            assert self.teacher is not None
            lengths = rows["train"].lengths
            cure = "shorten recipe.length: recipe.teacher reads no more"
            check_positions(self.teacher.model, lengths.encoder, lengths.decoder, cure=cure)
        return rows

    def row(self, rows: Any) -> Any:
        if self.run is None or (k := _recipe(self.run).top_k) is None:
            return super().row(rows)
        return taught.blank_row(rows.lengths, k, self.run.model.vocab_size, everywhere=_recipe(self.run).everywhere)

    def source(self, parts: Parts, position: Position, steps: range) -> Source:
        kept, rows, mesh = self.kept, parts.rows["train"], parts.mesh
        if kept is None:
            return super().source(parts, position, steps)
        batch = partial(kept.batch, rows)
        return prefetched(lambda step: sharding.global_batch(batch, position.of(step), mesh), steps)

    def check_data(self, parts: Parts) -> None:
        self.inner.check_data(self._parts(parts))

    def facts(self, parts: Parts) -> dict[str, Any]:
        return self.inner.facts(self._parts(parts))

    def evaluators(self, parts: Parts, frozen: Any) -> Sequence[Callable[[Any], dict[str, float]]]:
        """Those of the other recipe; of records also the divergence, in the rows that these test."""
        found = list(self.inner.evaluators(self._parts(parts), frozen))
        if self.settings is None or not found or _recipe(parts.run).top_k is not None:
            return found
        return found + [held_out_divergence(parts, frozen, found[0])]

    def samples(self, parts: Parts, params: Any, frozen: Any) -> Sequence[Mapping[str, Any]]:
        return self.inner.samples(self._parts(parts), params, frozen)

    def baselines(self, parts: Parts) -> dict[str, Any] | None:
        return self.inner.baselines(self._parts(parts))


def opened(c: config.Distill | config.OnPolicy) -> tuple[saved.Saved, str]:
    """The teacher and the digest of its files. UserError if that is not the one of `teacher_sha256`."""
    return start.unchanged(c.teacher, c.teacher_sha256, name="recipe.teacher", key="recipe.teacher_sha256")


def check_tokenizer(teacher: saved.Saved, tokenizer: Tokenizer, where: str) -> None:
    """UserError unless the teacher has this tokenizer, which `where` gave, or none."""
    theirs = teacher.tokenizer_bytes()
    if theirs not in (None, tokenizer.proto):
        digest = lambda proto: hashlib.sha256(proto).hexdigest()[:8]
        raise UserError(
            f"the tokenizer of {where} ({digest(tokenizer.proto)}) is not that of recipe.teacher={teacher.folder} "
            f"({digest(theirs)}), and distributions over different tokens cannot be compared: take the teacher's"
        )


def held_out_divergence(parts: Parts, frozen: Any, tested: Any) -> Callable[[Any], dict[str, float]]:
    """An evaluator of the divergence in the rows that `tested` (`lm.evaluation.labelled.HeldOutRecords`) has."""
    score, size, rows = jax.jit(parts.task.scores), tested.batch_size, tested.rows

    def found(params: Any) -> dict[str, float]:
        sums = np.zeros(2)
        for first in range(0, len(tested.index), size):
            index = np.full(size, rows.count)  # past the last row: blank
            index[: len(part)] = (part := tested.index[first : first + size])
            mean = score(params, frozen, sharding.global_batch(rows.rows, index, parts.mesh))["divergence"]
            sums += np.array([float(mean.total), float(mean.weight)])
        return {"divergence": float(sums[0] / max(sums[1], 1.0))}

    return found


def _recipe(run: config.Run) -> config.Distill:
    assert isinstance(run.recipe, config.Distill)
    return run.recipe


def check_pair(run: config.Run, teacher: config.Model) -> None:
    """That the rows suit both models, and that what is compared has the same shape in both."""
    c, student, where = _recipe(run), run.model, f"recipe.teacher={_recipe(run).teacher}"
    check_models(student, teacher, where)
    _check_settings(run)
    if not on_records(run) and isinstance(run.objective, config.ReplacedTokens | config.Contrastive | config.MultiToken):
        raise UserError(
            f"objective.kind={config.kind_of(type(run.objective))} has a loss of its own, and a distillation compares what two "
            "models predict: take causal, masked, span_corruption or another objective of one model"
        )
    for field in ("types", "ahead"):
        if getattr(teacher.embed, field) < getattr(student.embed, field):
            raise UserError(f"{where} has embed.{field}={getattr(teacher.embed, field)}, less than the model's: take another")
    if c.hidden and teacher.width != student.width:
        raise UserError(
            f"recipe.hidden compares vectors of one width, and {where} has {teacher.width} and the model {student.width}: set "
            "recipe.hidden=0 and give recipe.relations a weight, which compares any widths"
        )
    if (c.hidden or c.relations) and (student.shared or teacher.shared):
        raise UserError(
            "recipe.hidden and recipe.relations are of stacks of their own, and one model has them shared: set both to 0"
        )
    if not c.relations:
        return
    if isinstance(run.objective, config.BlockDiffusion):
        raise UserError("recipe.relations are of rows read in order, which block_diffusion's are not: set recipe.relations=0")
    for model, whose in ((student, "the model"), (teacher, where)):
        for stack in filter(None, (model.encoder, model.decoder)):
            last = stack.blocks[stack.letters()[-1]]
            a = last.attention
            if a is None or last.mixer is not None:
                raise UserError(f"recipe.relations are of the last layer's attention, and {whose} has a mixer: set it to 0")
            for heads in (a.num_heads, a.kv_heads):
                if (size := heads * a.size(model.width)) % c.relation_heads:
                    raise UserError(
                        f"recipe.relation_heads={c.relation_heads} does not divide the {size} numbers that a token has in the "
                        f"last attention of {whose}: give another"
                    )


def _check_settings(run: config.Run) -> None:
    """UserError for settings of the recipe that do not fit the model, the objective or the data."""
    c = _recipe(run)
    if c.everywhere and run.train.microbatches > 1:
        raise UserError(
            "recipe.everywhere is a mean over all tokens of a batch, and microbatches would each take their own: set "
            "train.microbatches=1, or leave recipe.everywhere out"
        )
    if c.top_k is not None and c.top_k > run.model.vocab_size:
        raise UserError(f"recipe.top_k={c.top_k} is more than the {run.model.vocab_size} tokens of the vocabulary: lower it")
    if on_records(run):
        if run.model.architecture == "encoder":
            raise UserError("an encoder writes no answers to records: distil it on texts, or take a model with a decoder")
    elif c.everywhere and isinstance(run.objective, pretrain.MASKED):
        kind = config.kind_of(type(run.objective))
        raise UserError(
            f"recipe.everywhere compares all tokens, and objective.kind={kind} predicts masked ones alone: leave it out"
        )


def check_models(student: config.Model, teacher: config.Model, where: str) -> None:
    """UserError unless both models read the same rows and predict the same tokens; `where` names the teacher."""
    if teacher.architecture != student.architecture:
        raise UserError(
            f"{where} is of the architecture {teacher.architecture} and the model {student.architecture}, so they do not read "
            "the same rows: take a teacher of the same architecture"
        )
    outputs = [m.vocab_size if m.head and m.head.outputs is None else 0 for m in (student, teacher)]
    if 0 in outputs or outputs[0] != outputs[1]:
        raise UserError(
            f"{where} predicts {outputs[1]} tokens and the model {outputs[0]}: set --config.model.vocab_size={outputs[1]}, and "
            "take models with a head of the vocabulary"
        )
