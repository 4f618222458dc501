"""The task of a distillation: the loss of a student on rows that its teacher reads too, or has read (`lm.recipes.taught`)."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm import config, saved, sharding
from lm.data.rows import blank
from lm.losses import distill
from lm.models.layers import Projection
from lm.models.mask import Mask
from lm.models.transformer import Stack, Transformer, head_params, with_kernel
from lm.recipes import pretrain, taught
from lm.training.assembly import abstract_params
from lm.training.recipe import abstract_batch
from lm.training.task import Frozen, Task
from lm.types import Example, WeightedMean

KEPT = ("query", "key", "value")  # whose relations between tokens are compared


def on_records(run: config.Run) -> bool:
    return any(source.format != "text" for source in run.data.sources.values())


def task(run: config.Run, teacher: saved.Saved) -> Task:
    """The student's task, beside a frozen teacher. Held-out figures are the student's own, and its `divergence`. With
    `recipe.top_k` there is no teacher, batches are `Taught`, and there is no held-out divergence."""
    c, plain = _recipe(run), _plain(run)
    theirs = with_kernel(teacher.model, run.model.kernel)
    models = (Transformer(run.model), Transformer(theirs))
    settings: dict[str, Any] = dict(vocab_size=run.model.vocab_size, beta=c.beta, temperature=c.temperature)
    passed = lambda lengths: None if c.everywhere else lengths.predicted

    def sides(params: Any, frozen: Any, batch: Any, rngs: Any) -> tuple[Any, list[Any], Any, list[Any]]:
        """What is asked, the student's side and what is known of the teacher, what the student sowed, and what both kept."""
        asked = _asked(run, taught.example_of(batch))
        ours, sown, own = _trunk(models[0], params, asked[0], rngs, c)
        student = distill.Side(head_params(params), models[0].apply, ours)
        if isinstance(batch, taught.Taught):
            return asked, [student, batch.known], sown, [own, {}]
        wanted, _, kept = _trunk(models[1], jax.lax.stop_gradient(frozen), asked[0], None, c)
        return asked, [student, distill.Side(head_params(frozen), models[1].apply, wanted)], sown, [own, kept]

    def loss(params: Any, frozen: Any, batch: Any, rngs: Any) -> tuple[WeightedMean, dict[str, WeightedMean]]:
        (example, compared, excluded), pair, sown, kept = sides(params, frozen, batch, rngs)
        weight = jnp.sum(example.weights)
        more: dict[str, Any] = dict(logits=c.logits, labels=c.labels, z_loss=run.train.z_loss, excluded=excluded)
        if compared is not None:  # a mean over all tokens, beside that over the tokens with loss
            more |= dict(compared=compared * weight / jnp.maximum(jnp.sum(compared), 1.0))
        total, apart, nats = distill.mixed(*pair, example.targets, example.weights, **settings, **more)
        over = example.weights if compared is None else compared
        means = {"divergence": _mean(apart, over), "cross_entropy": _mean(nats, example.weights)}
        for name, mean in _matched(c, example, *kept).items():
            total += getattr(c, name) * mean.mean * weight  # so that each microbatch counts by its weight
            means[name] = mean
        total += sum((jnp.sum(extra) * weight for extra in jax.tree.leaves(sown)), jnp.zeros(()))
        return WeightedMean(total, weight), means

    def scores(params: Any, frozen: Any, example: Any) -> dict[str, WeightedMean]:
        (asked, compared, excluded), pair, _, _ = sides(params, frozen, example, None)
        more: dict[str, Any] = dict(logits=1.0, labels=0.0, excluded=excluded)
        _, apart, _ = distill.mixed(*pair, asked.targets, asked.weights, **settings, **more)
        over = asked.weights if compared is None else compared
        return plain.scores(params, None, example) | {"divergence": _mean(apart, over)}

    task = replace(plain, loss=loss, passes=lambda lengths: [(run.model, passed(lengths))])
    if c.top_k is not None:
        return replace(task, init=lambda key, batch: plain.init(key, taught.example_of(batch)))
    return replace(
        task,
        scores=scores,
        reads=lambda lengths: [(theirs, passed(lengths))],
        frozen=Frozen(lambda key, batch: models[1].init(key, batch)["params"], teacher.params),
    )


def _plain(run: config.Run) -> Task:
    return pretrain.tokens(run) if on_records(run) else pretrain.TASKS.get(type(run.objective), pretrain.tokens)(run)


def _asked(run: config.Run, example: Example) -> tuple[Example, jax.Array | None, jax.Array | None]:
    """The example, with a target at each token if the divergence is `everywhere`; then 1 at all tokens, float32 [B, P], and
    otherwise None; and the token that is excluded at each place."""
    masked = isinstance(run.objective, pretrain.MASKED) and not on_records(run)
    if not _recipe(run).everywhere:
        return example, None, pretrain.tokens_read(example) if masked else None
    stream: Any = example.decoder or example.encoder
    real = (stream.segments > 0).astype(jnp.float32)
    if example.where is None:
        return example, real, None
    rows, where = jnp.arange(len(real))[:, None], example.where
    targets = jnp.zeros_like(stream.tokens).at[rows, where].add(jnp.where(example.weights > 0, example.targets, 0))
    weights = jnp.zeros_like(real).at[rows, where].add(example.weights)
    return replace(example, targets=targets, weights=weights, where=None), real, None


def predictor(run: config.Run, teacher: saved.Saved, rows: Any) -> Callable[[np.ndarray], distill.TopK]:
    """A function from numbers of rows to what the teacher predicts there."""
    c, model, mesh = _recipe(run), Transformer(with_kernel(teacher.model, run.model.kernel)), sharding.make_mesh(run.mesh)
    shapes = abstract_batch(blank(rows.lengths), run.train.batch_size)
    params = teacher.params(
        abstract_params(
            lambda key: model.init(key, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))["params"], mesh
        )
    )

    @jax.jit
    def known(params: Any, example: Example) -> distill.TopK:
        asked, _, excluded = _asked(run, example)
        hidden: Any = model.apply({"params": params}, asked, method="hidden")
        side = distill.Side(head_params(params), model.apply, hidden)
        more: dict[str, Any] = dict(vocab_size=run.model.vocab_size, temperature=c.temperature, excluded=excluded)
        return distill.kept_of(side, c.top_k or 0, **more)

    def predict(index: np.ndarray) -> distill.TopK:
        with sharding.use(mesh):
            return known(params, sharding.global_batch(rows.rows, index, mesh))

    return predict


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
