"""Scores a saved model on tasks of the Language Model Evaluation Harness, for `python -m lm.evaluate --tasks=...`."""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lm import config, paths, saved
from lm.errors import UserError, nearest
from lm.evaluation import registered
from lm.evaluation.findings import DRAWS, Z, bootstrap
from lm.evaluation.span_scores import output, write

FOLDER = Path(__file__).parent / "tasks"


def evaluate(
    folder: str,
    run: config.Run | None = None,
    *,
    tasks: str,
    tasks_path: str | None = None,
    limit: int | None = None,
    fewshot: int | None = None,
    new_tokens: int | None = None,
    run_code: bool = False,
    batch_size: int,
    out: str | None = None,
) -> dict[str, Any]:
    """Scores the model in `folder`, writes the result to `out` (default: FOLDER/task_scores.json) and returns it.

    The objective is that of `run`, by default of the run that trained the model. `tasks` are separated by commas: those of this
    package, of the folder `tasks_path`, and of the harness. Of each task the result has its metrics with intervals of 95 %, and
    every question with what was answered. UserError for an unknown task, and for one that runs what the model writes unless
    `run_code`.
    """
    target, source = output(out), saved.open(folder)
    registered.require()
    from lm_eval import __version__, simple_evaluate

    from lm.evaluation.harness import Harness

    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    os.environ["DISABLE_MULTIPROC"] = "1"  # of the harness's bootstrap: a fork beside jax's threads may wait for ever
    manager = _manager(names := _names(tasks), tasks_path)
    unsafe = [name for name in names if (manager.task_index[name].cfg or {}).get("unsafe_code")]
    if unsafe and not run_code:
        raise UserError(f"{unsafe[0]} runs what the model writes, in a sandbox that is no wall: add --run_code if that may be")
    model = Harness(folder, batch_size=batch_size, objective=run.objective if run else None)
    settings: dict[str, Any] = dict(num_fewshot=fewshot, limit=limit, confirm_run_unsafe_code=run_code, bootstrap_iters=DRAWS)
    settings |= {} if new_tokens is None else {"gen_kwargs": {"max_gen_toks": new_tokens}}
    with contextlib.redirect_stdout(sys.stderr):  # it tells of its bootstrap there
        found: Any = simple_evaluate(model=model, tasks=names, task_manager=manager, **settings)
    result = {
        "model": model.get_model_info(),
        "harness": __version__,
        "limit": limit,
        "tasks": {task: _task(found, task) for task in found["results"]},
        "samples": {task: [_record(sample) for sample in some] for task, some in found["samples"].items()},
    }
    write(result, source, target, default="task_scores.json")
    return result


def _names(given: str) -> list[str]:
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not names:
        raise UserError(f"--tasks={given} has no names: give some, such as --tasks=sotu_cloze")
    return names


def _manager(names: Sequence[str], tasks_path: str | None) -> Any:
    """What finds the tasks; the harness's own, of which there are thousands of files, are looked through only if need be."""
    from lm_eval.tasks import TaskManager

    folders: list[str | Path] = [FOLDER]
    if tasks_path is not None:
        folders.append(paths.local(tasks_path, name="--tasks_path"))
        if not Path(folders[-1]).is_dir():
            raise UserError(f"--tasks_path={tasks_path} is no folder; give one with the harness's task files, *.yaml")
    manager = TaskManager(include_path=folders, include_defaults=False)
    if all(name in manager.all_tasks for name in names):
        return manager
    manager = TaskManager(include_path=folders)
    for name in names:
        if name not in manager.all_tasks:
            raise UserError(f"--tasks: no task '{name}'{nearest(name, manager.all_tasks)}"[:500])
    return manager


def _task(found: Mapping[str, Any], task: str) -> dict[str, Any]:
    """What the harness found of a task or group: its metrics with intervals, how many questions, how many examples."""
    from lm_eval.api.registry import get_aggregation, get_metric_aggregation

    values, size = found["results"][task], found["n-samples"].get(task, {})
    how = {m["metric"]: m.get("aggregation") for m in found["configs"].get(task, {}).get("metric_list") or []}
    metrics = {}
    for key, value in values.items():
        name, _, filtered = key.partition(",")
        if not filtered or name.endswith("_stderr"):
            continue
        of_each = [s[name] for s in found["samples"].get(task, []) if s["filter"] == filtered and name in s]
        aggregate: Any = get_aggregation(how[name]) if isinstance(how.get(name), str) else get_metric_aggregation(name)
        error = values.get(f"{name}_stderr,{filtered}")
        metrics[name if filtered == "none" else key] = _metric(value, error, of_each, aggregate)
    about = {"version": found["versions"].get(task), "fewshot": found["n-shot"].get(task)}
    return about | {"count": size.get("effective"), "of": size.get("original"), "metrics": metrics}


def _metric(value: float, error: Any, of_each: Sequence[Any], aggregate: Callable[[Any], float]) -> dict[str, Any]:
    """A figure with its interval of 95 %: by the standard error of the harness, or by a bootstrap where it has none."""
    if isinstance(error, float):
        return {"value": value, "error": error, "low": value - Z * error, "high": value + Z * error, "by": "error"}
    if len(of_each) < 2:
        return {"value": value}
    found = bootstrap(lambda chosen: aggregate([of_each[i] for i in chosen]), len(of_each))
    return {"value": value, "low": found.low, "high": found.high, "by": "bootstrap"}


def _record(sample: Mapping[str, Any]) -> dict[str, Any]:
    """A question with what was asked of the model, what it answered and how that counts."""
    kept = ("doc_id", "doc", "target", "filter", "arguments", "filtered_resps", *sample["metrics"])
    return json.loads(json.dumps({name: sample[name] for name in kept}, default=str))


def show(result: Mapping[str, Any]) -> None:
    """Prints the figures as a table."""
    model = result["model"]
    table = Table(title=f"{model['architecture']}, {model['objective']}: tasks of lm-eval {result['harness']}")
    for name in ("task", "n", "shots", "metric", "value", "95 %"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right", no_wrap=True)
    for task, of in result["tasks"].items():
        for name, m in of["metrics"].items():
            between = f"{m['low']:.3g} to {m['high']:.3g}" if "low" in m else ""
            table.add_row(task, str(of["count"] or ""), str(of["fewshot"] or 0), name, f"{m['value']:.4g}", between)
    said = [] if model["likelihood"] else [f"scores are no likelihoods: {model['note']}"]
    if model["truncated"]:
        said.append(f"{model['truncated']} contexts were longer than {model['max_length']} tokens: their beginning was cut off")
    table.caption = "; ".join(said) or None
    Console().print(table)
