"""This library in `experiments.speed.tuning`: its recipes, sources and steps, called as `lm.training.loop` does."""

import time
from pathlib import Path
from typing import Any

import numpy as np

from experiments.speed.tuning_data import ANSWER, BATCH, GROUP, PROMPT, SAMPLES, base


class Ours:
    """Call with a number of steps -> seconds in all and in rollouts, and tokens: those read in fine-tuning, those written by a
    policy."""

    def __init__(self, task: str, folder: Path, dtype: str) -> None:
        from lm import startup

        startup.before_jax()
        import jax

        from lm import recipes, saved
        from lm.config import Run, resolve
        from lm.data.loader import Position
        from lm.training.assembly import assemble

        startup.after_jax()
        model = resolve.to_dict(saved.open(str(folder / "run")).model) | dict(dtype=dtype)
        run = resolve.build(Run, config(task, folder, model))
        recipe = recipes.recipe(run)
        run = recipe.complete(run, None)
        self.parts = parts = assemble(run, recipe, progress=False)
        params = saved.open(str(folder / "run")).params(parts.plan.targets().params)
        self.state = parts.plan.create(0).replace(params=params)
        frozen = parts.task.frozen
        self.frozen = None if frozen is None else frozen.load(parts.frozen)
        size = run.train.batch_size
        self.source = recipe.source(parts, Position(0, 0, size), range(run.train.steps))
        self.at, self.wait, self.samples = 0, jax.block_until_ready, task.startswith("grpo")

    def __call__(self, steps: int) -> dict[str, float]:
        from lm import sharding

        rollout, before = 0.0, self._tokens()
        start = time.perf_counter()
        with sharding.use(self.parts.mesh):
            for _ in range(steps):
                began = time.perf_counter()
                batch = self.source(self.at, self.state)
                if self.samples:
                    rollout += time.perf_counter() - began
                self.state, _ = self.parts.step(self.state, self.frozen, batch)
                self.at += 1
                if self.samples:
                    self.wait(self.state)
            self.wait(self.state)
        return {"seconds": time.perf_counter() - start, "rollout": rollout, "tokens": float(self._tokens() - before)}

    def _tokens(self) -> int:
        from lm.training.step import counted

        return counted(np.asarray(self.state.seen))[1 if self.samples else 0]


def config(task: str, folder: Path, model: Any) -> dict[str, Any]:
    """The run of a task, as a tree."""
    tree = base(folder, model)
    tree["train"] = dict(steps=10**6, batch_size=BATCH, init_from=str(folder / "run"))
    tree["data"] |= dict(packing=task == "sft_packed")
    if task.startswith("grpo"):
        tree["data"]["sources"] = dict(questions=dict(kind="jsonl", path=str(folder / "questions.jsonl"), format="pair"))
        reward = dict(short=dict(kind="regex", pattern=".{0,500}"))
        tree["recipe"] = dict(kind="policy", method="grpo", group=GROUP, length=PROMPT, answer=ANSWER, graders=reward)
        tree["recipe"] |= dict(kl_weight=0.04) if task == "grpo_kl" else dict(kl="without")
        tree["train"]["batch_size"] = SAMPLES
    return tree
