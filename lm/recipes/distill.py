"""Distillation: a student learns from text, and from what a frozen teacher makes of the same rows.

It is pretraining with another loss: the objective, the rows, the held-out figures and the samples are those of
`lm.recipes.pretrain`. The teacher is in no checkpoint; the digest of its files is in the run's config.
"""

import hashlib
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from lm import config, saved
from lm.data.corpus.prepare import Prepared
from lm.data.tokenizer import Tokenizer
from lm.errors import UserError
from lm.losses import distill
from lm.models.layers import Projection
from lm.models.mask import Mask
from lm.models.positions import check_positions
from lm.models.transformer import Stack, Transformer, head_params
from lm.recipes import pretrain, start
from lm.training.mapped import thinned_model
from lm.training.task import Frozen, Task
from lm.types import Example, WeightedMean

KEPT = ("query", "key", "value")  # whose relations between tokens are compared


class Distillation(pretrain.Pretraining):
    """Serves one run. `complete` must be called first: it opens the teacher."""

    teacher: saved.Saved | None = None

    def complete(self, run: config.Run, workdir: epath.Path | None) -> config.Run:
        """Fills in the student's model and the digest of the teacher's files. A resumed run needs its teacher again."""
        c = _recipe(run)
        self.teacher, digest = opened(c)
        if run.data.tokenizer.path is None and self.teacher.tokenizer_bytes() is not None:
            self.tokenizer = self.teacher.tokenizer()
        model = run.model or thinned_model(self.teacher.model, run.train.init_layers)
        return replace(run, model=model, recipe=replace(c, teacher_sha256=digest))

    def task(self, run: config.Run) -> Task:
        assert self.teacher is not None, "`complete` comes first"
        return task(run, self.teacher)

    def check(self, run: config.Run, task: Task, mesh: Mesh) -> None:
        super().check(run, task, mesh)
        assert self.teacher is not None
        lengths = (run.data.encoder_length, run.data.decoder_length)
        check_positions(self.teacher.model, *lengths, cure="shorten data.{stack}_length: recipe.teacher reads no more")

    def data(self, run: config.Run, *, progress: bool) -> Prepared:
        """The data in the teacher's tokens. UserError if `data.tokenizer.path` is another tokenizer."""
        assert self.teacher is not None
        data = super().data(run, progress=progress)
        check_tokenizer(self.teacher, data.tokenizer, "data.tokenizer.path")
        return data


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


def task(run: config.Run, teacher: saved.Saved) -> Task:
    """The student's task, beside a frozen teacher. Held-out figures are the student's own, and its `divergence`."""
    _check_pair(run, teacher.model)
    c, plain = _recipe(run), pretrain.TASKS.get(type(run.objective), pretrain.tokens)(run)
    theirs = replace(teacher.model, kernel=run.model.kernel)
    models, vocab_size = (Transformer(run.model), Transformer(theirs)), run.model.vocab_size
    excluded = pretrain.tokens_read if isinstance(run.objective, pretrain.MASKED) else lambda example: None
    settings: dict[str, Any] = dict(vocab_size=vocab_size, beta=c.beta, temperature=c.temperature)

    def pair(params: Any, frozen: Any, example: Example, rngs: Any) -> tuple[list[distill.Side], Any, list[Any]]:
        """Both models on the rows, what the student sowed in "losses", and what both kept."""
        ours, sown, own = _trunk(models[0], params, example, rngs, c)
        wanted, _, kept = _trunk(models[1], jax.lax.stop_gradient(frozen), example, None, c)
        sides = zip(models, (params, frozen), (ours, wanted), strict=True)
        return [distill.Side(head_params(tree), model.apply, hidden) for model, tree, hidden in sides], sown, [own, kept]

    def loss(params: Any, frozen: Any, example: Any, rngs: Any) -> tuple[WeightedMean, dict[str, WeightedMean]]:
        sides, sown, kept = pair(params, frozen, example, rngs)
        more: dict[str, Any] = dict(logits=c.logits, labels=c.labels, z_loss=run.train.z_loss, excluded=excluded(example))
        total, apart, nats = distill.mixed(*sides, example.targets, example.weights, **settings, **more)
        weight = jnp.sum(example.weights)
        means = {"divergence": _mean(apart, example.weights), "cross_entropy": _mean(nats, example.weights)}
        for name, mean in _matched(c, example, *kept).items():
            total += getattr(c, name) * mean.mean * weight  # so that each microbatch counts by its weight
            means[name] = mean
        total += sum((jnp.sum(extra) * weight for extra in jax.tree.leaves(sown)), jnp.zeros(()))
        return WeightedMean(total, weight), means

    def scores(params: Any, frozen: Any, example: Any) -> dict[str, WeightedMean]:
        sides, _, _ = pair(params, frozen, example, None)
        more: dict[str, Any] = dict(logits=1.0, labels=0.0, excluded=excluded(example))
        _, apart, _ = distill.mixed(*sides, example.targets, example.weights, **settings, **more)
        return plain.scores(params, None, example) | {"divergence": _mean(apart, example.weights)}

    return replace(
        plain,
        loss=loss,
        scores=scores,
        reads=lambda lengths: [(theirs, lengths.predicted)],
        frozen=Frozen(lambda key, batch: models[1].init(key, batch)["params"], teacher.params),
    )


def _trunk(model: Transformer, params: Any, example: Example, rngs: Any, c: config.Distill) -> tuple[jax.Array, Any, Any]:
    """Hidden vectors [B, P, D], what is sown in "losses", and by stack what the loss compares beside the logits:
    {"decoder": {"hidden": [B, T, D], "query": [B, T, N, H], "key": ..., "value": ...}}.

    Queries, keys and values are those of the last layer's self-attention, before positions are told.
    """
    wanted: dict[tuple[str, ...], tuple[str, str]] = {}  # path of a module -> (stack, name)
    for name in ("encoder", "decoder"):
        stack: config.Stack | None = getattr(model.config, name)
        if stack is not None and c.hidden:
            wanted[(name,)] = (name, "hidden")
        if stack is not None and c.relations:
            group, block = divmod(stack.num_layers - 1, len(stack.pattern))
            layer = (name, "groups" if stack.scan else f"group_{group}", f"block_{block}", "attention")
            wanted |= {(*layer, part): (name, part) for part in KEPT}

    def keep(module: Any, method: str) -> bool:
        return method == "__call__" and module.path in wanted and isinstance(module, Stack | Projection)

    hidden, state = model.apply(
        {"params": params}, example, method="hidden", rngs=rngs, mutable=["losses", "intermediates"], capture_intermediates=keep
    )
    found: dict[str, dict[str, jax.Array]] = {}
    for path, (name, part) in wanted.items():
        tree = state["intermediates"]
        for key in (*path, "__call__"):
            tree = tree[key]
        scanned = part != "hidden" and getattr(model.config, name).scan
        found.setdefault(name, {})[part] = tree[0][-1] if scanned else tree[0]
    return hidden, state.get("losses", {}), found


def _matched(c: config.Distill, example: Example, student: Any, teacher: Any) -> dict[str, WeightedMean]:
    """Means over the tokens of all stacks: "hidden", 1 - cosine, and "relations", the sum of the three KLs."""
    found: dict[str, WeightedMean] = {}
    for name, ours in student.items():
        stream: Any = getattr(example, name)
        real, theirs = (stream.segments > 0).astype(jnp.float32), teacher[name]
        if "hidden" in ours:
            mean = _mean(distill.cosine_distance(ours["hidden"], theirs["hidden"]), real)
            found["hidden"] = found["hidden"] + mean if "hidden" in found else mean
        if "query" in ours:
            visible = Mask(stream.segments, stream.segments, stream.prefix, causal=name == "decoder").dense()
            relation = lambda part, a=ours, b=theirs, v=visible: distill.relation_divergence(
                a[part], b[part], v, heads=c.relation_heads
            )
            mean = _mean(sum(map(relation, KEPT), jnp.zeros(())), real)
            found["relations"] = found["relations"] + mean if "relations" in found else mean
    return found


def _mean(values: jax.Array, weights: jax.Array) -> WeightedMean:
    return WeightedMean(jnp.sum(values * weights), jnp.sum(weights))


def _recipe(run: config.Run) -> config.Distill:
    assert isinstance(run.recipe, config.Distill)
    return run.recipe


def _check_pair(run: config.Run, teacher: config.Model) -> None:
    """That the rows suit both models, and that what is compared has the same shape in both."""
    c, student, where = _recipe(run), run.model, f"recipe.teacher={_recipe(run).teacher}"
    check_models(student, teacher, where)
    if isinstance(run.objective, config.ReplacedTokens | config.Contrastive | config.MultiToken):
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
            a = stack.blocks[stack.letters()[-1]].attention
            for heads in (a.num_heads, a.kv_heads):
                if (size := heads * a.size(model.width)) % c.relation_heads:
                    raise UserError(
                        f"recipe.relation_heads={c.relation_heads} does not divide the {size} numbers that a token has in the "
                        f"last attention of {whose}: give another"
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
