"""A task whose model is frozen and has adapters, in front of any task: `adapted(task, run)`.

    parameters   {"adapters": {...}, "head": {...}}     A and B of each matrix, and what is trained in full
    frozen       {"base": {...}, "task": ...}           the model of train.init_from without that, and what the task reads

The losses and updates of the task get parameters that `lm.models.adapters.merge` puts together. A checkpoint has the
parameters; its config has the path of the base and its digest.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import jax
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict

from lm import config, saved
from lm.errors import UserError
from lm.models import adapters
from lm.models.adapters import ADAPTERS
from lm.models.transformer import Transformer, boxed_params
from lm.training.loop import Source
from lm.training.recipe import Parts, Recipe
from lm.training.task import Adapter, Frozen, Task


def complete(run: config.Run, recipe: Recipe, workdir: epath.Path | None) -> config.Run:
    """Fills in what a run's adapter takes from its base and its task. A resumed run has it from its checkpoint. UserError if
    the base is not what it was."""
    if (lora := run.adapter) is None:
        return run
    resumes = workdir is not None and saved.is_run(workdir)
    before = saved.open(workdir, name="--workdir").run if resumes and workdir is not None else None
    old = before.adapter if before else None
    base = saved.open(str(run.train.init_from), name="train.init_from")
    digest = (old.digest if old else lora.digest) or base.digest()
    saved.check_base(base, digest, cure="give its copy as --config.train.init_from, or begin in another --workdir")
    task = recipe.task(run)
    whole = (old.whole if old else None) or tuple(dict.fromkeys((*task.fresh, *task.beside, *(lora.whole or ()))))
    return replace(run, adapter=replace(lora, digest=digest, whole=whole))


def adapted(task: Task, run: config.Run) -> Task:
    """The task with adapters; the task itself if the run has none."""
    if (lora := run.adapter) is None:
        return task
    names = (*task.fresh, *task.beside) if lora.whole is None else lora.whole
    apart = None if task.frozen is None or task.frozen.start else task.frozen
    if task.frozen is not apart and (moved := [name for name in names if name not in (*task.fresh, *task.beside)]):
        raise UserError(f"adapter.whole: '{moved[0]}' is trained in full, and the base with it is the reference: leave it out")

    def parts(key: jax.Array, batch: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """The task's own parameters: those that are trained in full, and those of the base."""
        tree = task.init(key, batch)
        if missing := [name for name in names if name not in tree]:
            raise UserError(f"adapter.whole: the model has no '{missing[0]}', only {', '.join(sorted(tree))}")
        return {name: tree[name] for name in names}, {name: x for name, x in tree.items() if name not in names}

    def init(key: jax.Array, batch: Any) -> Any:
        own, base = parts(key, batch)
        return own | {ADAPTERS: adapters.init(key, base, lora)}

    def init_frozen(key: jax.Array, batch: Any) -> Any:
        own = {} if apart is None else {"task": apart.init(key, batch)}
        return own | {"base": adapters.frozen(parts(key, batch)[1], lora.base)}

    def load(target: Any) -> Any:
        own = {} if apart is None else {"task": apart.load(target["task"])}
        return own | {"base": _base(run, lora, names, target["base"])}

    def read(frozen: Any) -> Any:
        """What the task itself reads of what is frozen."""
        return adapters.merge(frozen["base"], {}, lora.factor) if task.frozen and task.frozen.start else frozen.get("task")

    def whole(params: Any, frozen: Any) -> dict[str, Any]:
        own = {name: x for name, x in params.items() if name != ADAPTERS}
        return own | adapters.merge(frozen["base"], params[ADAPTERS], lora.factor, lora.dropout)

    def plain(params: Any, frozen: Any) -> dict[str, Any]:
        return adapters.unboxed(whole(params, frozen))

    def batches(params: Any, frozen: Any, batch: Any, key: jax.Array, **average: Any) -> Any:
        assert task.updates is not None
        averaged = {name: whole(params, frozen) for name, params in average.items()}
        return task.updates.batches(whole(params, frozen), read(frozen), batch, key, **averaged)

    return replace(
        task,
        init=init,
        loss=lambda params, frozen, batch, rngs: task.loss(whole(params, frozen), read(frozen), batch, rngs=rngs),
        scores=lambda params, frozen, batch: task.scores(whole(params, frozen), read(frozen), batch),
        writer=lambda params, frozen: task.writer(plain(params, frozen), read(frozen)),
        updates=task.updates and replace(task.updates, batches=batches),
        frozen=Frozen(init_frozen, load),
        fresh=(ADAPTERS, *(name for name in names if name in (*task.fresh, *task.beside))),
        beside=(),
        adapter=Adapter(lora, task, whole, plain, read),
    )


def _base(run: config.Run, lora: config.Lora, names: tuple[str, ...], target: Mapping[str, Any]) -> dict[str, Any]:
    """The frozen parameters, as `target` (abstract) describes them, without those `names`."""
    source = saved.open(str(run.train.init_from), name="train.init_from")
    saved.check_base(source, lora.digest, cure="give its copy as --config.train.init_from")
    as_saved = lambda x: jax.ShapeDtypeStruct(x.shape, run.model.param_dtype, sharding=x.sharding)
    wanted = unflatten_dict({p: as_saved(getattr(x, "qvalue", x)) for p, x in flatten_dict(target).items()})
    if target.keys() == {"model"}:
        params, boxed = {"model": source.params(wanted["model"])}, {"model": boxed_params(Transformer(run.model))}
    else:
        params, boxed = source.params(wanted, fresh=dict.fromkeys(names)), boxed_params(Transformer(run.model))
    return adapters.as_held({name: params[name] for name in target}, boxed, lora.base, target)


def begun(pretrained: saved.Saved, target: Mapping[str, Any], task: Task) -> dict[str, Any]:
    """What is trained in full and is in the saved model: the target's names that do not begin from the seed."""
    wanted = {name: x for name, x in target.items() if name not in task.fresh}
    if not wanted:
        return {}
    others = dict.fromkeys({*boxed_params(Transformer(pretrained.model))} - wanted.keys())
    return {name: x for name, x in pretrained.params(wanted, fresh=others).items() if name in wanted}


@dataclass(frozen=True)
class View:
    """A run as its recipe's evaluators and samples see it: without adapters, the model's parameters as one tree."""

    run_parts: Parts
    run_frozen: Any

    @property
    def parts(self) -> Parts:
        adapter = self.run_parts.task.adapter
        return self.run_parts if adapter is None else replace(self.run_parts, task=adapter.inner)

    @property
    def frozen(self) -> Any:
        adapter = self.run_parts.task.adapter
        return self.run_frozen if adapter is None else adapter.read(self.run_frozen)

    def params(self, params: Any) -> Any:
        adapter = self.run_parts.task.adapter
        return params if adapter is None else adapter.plain(params, self.run_frozen)

    def source(self, of_model: Source) -> Source:
        """The source of a recipe that reads the model's parameters as one of the run's. A model that writes computes what the
        trained one does: in bfloat16, adapters that are added to their matrices would be lost to rounding."""
        adapter = self.run_parts.task.adapter
        whole = lambda params: params if adapter is None else adapter.whole(params, self.run_frozen)
        return lambda step, state: of_model(step, replace(state, params=whole(state.params)))

    def evaluator(self, of_model: Callable[[Any], dict[str, float]]) -> Callable[[Any], dict[str, float]]:
        """The evaluator of a model's parameters as one of the run's."""
        return lambda params: of_model(self.params(params))
