"""What is asked of a trained cell: held-out loss, scores on common spans, fine-tunings, and its ledger."""

import itertools
from pathlib import Path
from typing import Any

import jax

from experiments.study import Cell, Task
from lm import config, saved
from lm.data import labelled
from lm.data.corpus.prepare import Prepared, prepare
from lm.evaluation import spans
from lm.models.transformer import Transformer
from lm.objectives import reads_prefix
from lm.recipes.finetune import CORPUS, finetune
from lm.training import jsonl

SPANS = dict(count=256, left=64, span=16, right=32, seed=0)  # the same for every cell of every study
LEDGER = ("model_flops", "tokens_seen", "tokens_with_loss", "raw_bytes", "parameters", "parameters_without_embeddings")


def measure(cell: Cell, run: config.Run, workdir: Path, summary: dict[str, Any]) -> dict[str, Any]:
    """`{"metrics", "flags", "ledger", "curve"}` of a finished run."""
    data = prepare(run.data, progress=False)
    params = saved.open(workdir).params()
    metrics = {f"heldout/{name}": value for name, value in summary["heldout"].items()}
    flags: dict[str, str] = {}
    chosen = spans.held_out_spans(data, **SPANS) if cell.scores else []
    for kind in cell.scores:
        score = spans.score(Transformer(run.model), params, run.objective, data.tokenizer, chosen, kind=kind)
        metrics |= {f"{kind}/bits_per_byte": score.bits_per_byte, f"{kind}/accuracy": score.accuracy}
        flags |= {} if score.normalised else {f"{kind}/bits_per_byte": f"not normalised: {score.note}"}
    for task in cell.tasks:
        found = finetune(
            run.model,
            params,
            data.tokenizer,
            items(task, data),
            how=task.how,
            prefix=reads_prefix(run.model.architecture, run.objective),
            settings=task.settings,
            seed=run.train.seed,
        )
        metrics |= {f"{task.name}/{name}": value for name, value in found.items()}
    rows = jsonl.read(workdir / "metrics.jsonl")
    seconds = trained(rows, summary) * jax.device_count()
    ledger = {name: summary[name] for name in LEDGER} | {"device_seconds": round(seconds, 1)}
    return {
        "metrics": metrics,
        "flags": flags,
        "ledger": ledger,
        "curve": curve(rows, ledger["model_flops"], summary["step"]),
    }


def trained(rows: list[dict[str, Any]], summary: dict[str, Any]) -> float:
    """Seconds of training, by the speeds on the way: a run that was stopped and went on knows its last process's alone."""
    fast = [(a, b) for a, b in itertools.pairwise([r for r in rows if "tokens_seen" in r]) if b.get("tokens_per_second")]
    tokens = sum(b["tokens_seen"] - a["tokens_seen"] for a, b in fast)
    spent = sum((b["tokens_seen"] - a["tokens_seen"]) / b["tokens_per_second"] for a, b in fast)
    return summary["tokens_seen"] * spent / tokens if tokens else summary["seconds"]["train"]


def items(task: Task, data: Prepared) -> Any:
    """A labelled set by its name, or one made from the documents of the run; the same for every seed."""
    if task.name in CORPUS:
        return CORPUS[task.name](data, data.tokenizer, length=task.settings.length - 4, seed=0)
    return labelled.load(task.name)


def curve(rows: list[dict[str, Any]], flops: float, steps: int) -> list[dict[str, float]]:
    """The held-out losses on the way, with what they had cost."""
    heldout = [row for row in rows if "heldout/loss" in row]
    return [{"step": r["step"], "flops": flops * r["step"] / steps, "loss": r["heldout/loss"]} for r in heldout]
