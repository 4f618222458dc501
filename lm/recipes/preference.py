"""Preferences: a model learns to write the better of two answers (DPO and its kin), or answers that are judged good (KTO).

It is a run like pretraining; configs/life/preference.py has the command. The reference is the model in `train.init_from` as it
was: a frozen tree that each step reads, and no checkpoint holds. Under adapters it is their base without them, as it lies in
memory (so of int8 or nf4 weights too), and the only copy unless `adapter.whole` trains something in full. A resumed run needs
that model again, unless the method has no reference; the digest in its config says whether it is the same.
"""

from dataclasses import fields, replace
from typing import Any

from etils import epath
from jax.sharding import Mesh

from lm import config, saved
from lm.data import templates
from lm.data.records import Message
from lm.data.render import render_prompt
from lm.errors import UserError
from lm.generation.engine import Request
from lm.generation.text_engine import engine_for
from lm.losses import preference
from lm.losses.preference import METHODS, Method, Values, means
from lm.models.transformer import Transformer, head_params
from lm.recipes import start
from lm.recipes.judged import START, Judging, builder_of, split_loss
from lm.training.recipe import Parts
from lm.training.task import Frozen, Task


class Preferring(Judging):
    """Decoders and encoder-decoders."""

    reference: saved.Saved | None = None

    def complete(self, run: config.Run, workdir: epath.Path | None) -> config.Run:
        recipe, method = _recipe(run), method_of(_recipe(run))
        self.feedback = method.feedback
        if not method.reads_reference:
            return super().complete(run, workdir)
        if run.train.init_from is None:
            raise UserError(f"recipe.method={recipe.method} compares with the model that it starts from: {START}")
        keys = dict(name="train.init_from", key="recipe.reference_sha256")
        self.reference, digest = start.unchanged(run.train.init_from, recipe.reference_sha256, **keys)
        return super().complete(replace(run, recipe=replace(recipe, reference_sha256=digest)), workdir)

    def check(self, run: config.Run, task: Task, mesh: Mesh) -> None:
        super().check(run, task, mesh)
        head = run.model.head
        if self.feedback and run.train.microbatches > 1:
            raise UserError("kto estimates a divergence from all rows of a step: set --config.train.microbatches=1")
        if run.model.architecture == "encoder" or head is None or head.outputs is not None:
            raise UserError(
                "the model writes no text, having no decoder or no head over the vocabulary: start from another, or train a "
                "reward model (recipe.kind=reward)"
            )

    def task(self, run: config.Run) -> Task:
        model, method, init_from = Transformer(run.model), method_of(_recipe(run)), self.reference
        init = lambda key, batch: model.init(key, batch.examples[0])["params"]
        one = lambda lengths: [(run.model, lengths.predicted or lengths.decoder)]
        read = 0 if not method.reads_reference else 2
        copied = run.adapter is not None and bool(run.adapter.whole)  # what is trained in full needs a copy as it was
        return Task(
            models={"model": run.model},
            init=init,
            loss=lambda params, frozen, batch, rngs: split_loss(
                self.values(run, params, frozen, batch, trains=True, rngs=rngs)
            ),
            scores=lambda params, frozen, batch: means(self.values(run, params, frozen, batch)),
            passes=lambda lengths: one(lengths) * (1 if method.feedback else 2),
            reads=lambda lengths: one(lengths) * (read + method.feedback),
            writer=lambda params, frozen: (model, params),
            frozen=None if init_from is None else Frozen(init, init_from.params, start=not copied),
            nats=False,
        )

    def values(self, run: config.Run, params: Any, frozen: Any, batch: Any, **training: Any) -> Values:
        c, model = _recipe(run), Transformer(run.model)
        settings: dict[str, Any] = dict(head_params=head_params, vocab_size=run.model.vocab_size, method=method_of(c))
        settings |= dict(smoothing=c.smoothing, desirable=c.desirable, undesirable=c.undesirable)
        return preference.values(params, frozen, model.apply, batch, **settings, **training)

    def samples(self, parts: Parts, params: Any, frozen: Any) -> list[dict[str, str]]:
        """Answers to `log.samples`, as what a user says; those that are longer than `recipe.length` are left out."""
        log, c, tokenizer = parts.run.log, _recipe(parts.run), parts.data.tokenizer
        builder = builder_of(parts.run, tokenizer)
        template = templates.of(parts.run.data.template, tokenizer)
        asked = [(text, *render_prompt((Message("user", text),), tokenizer, template)) for text in log.samples if text.strip()]
        asked = [one for one in asked if len(one[1]) <= c.length]
        if not asked or not log.sample_tokens:
            return []
        model, own = parts.task.writer(params, frozen)
        draw, room = config.Sampling(temperature=log.temperature, seed=parts.run.train.seed), min(log.sample_tokens, c.answer)
        if parts.run.model.encoder:
            requests = [Request(builder.start, room, draw, builder.after_bos(ids)) for _, ids, _ in asked]
        else:
            requests = [Request(ids, room, draw) for _, ids, _ in asked]
        settings: dict[str, Any] = dict(slots=len(requests), ends=[asked[0][2]], prefix=builder.prefix)
        written = engine_for(requests, model, own, tokenizer, **settings).write(requests)
        texts = [tokenizer.decode([w.token for w in sample if w.token != asked[0][2]]) for (sample,) in written]
        return [{"prompt": text, "text": found} for (text, *_), found in zip(asked, texts, strict=True)]


def method_of(c: config.Preference) -> Method:
    """The row of the table, with the numbers that the config gives."""
    given = {f.name: value for f in fields(Method) if (value := getattr(c, f.name, None)) is not None}
    return replace(METHODS[c.method], **given)


def _recipe(run: config.Run) -> config.Preference:
    assert isinstance(run.recipe, config.Preference)
    return run.recipe
