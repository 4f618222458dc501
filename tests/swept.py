"""A sweep of the tiny run's learning rate, and results that its trials could have written."""

import json
from dataclasses import replace

from experiments.sweep import space
from experiments.sweep.trials import Setting, Sweep, Trial

FILE = "tests/e2e/tiny.py"
RATE = "optimizer.learning_rate"


def sweep(values=(0.1, 0.2, 0.3, 0.4), rungs=(), eta=2, metric="bits_per_byte", steps=8, **changes):
    made = [space.made(FILE, {"train.steps": str(steps)}, {RATE: x}) for x in values]
    settings = tuple(Setting({RATE: str(x)}, run) for x, run in zip(values, made, strict=True))
    search = "halving" if rungs else "grid"
    return replace(Sweep(FILE, {}, search, 0, {RATE: False}, metric, tuple(rungs), eta, settings), **changes)


def result(value, metric="bits_per_byte", **flags):
    """What a trial writes."""
    ledger = {"core_seconds": 2.0, "seconds": 1.5, "model_flops": 3e9}
    return {"heldout": {} if value is None else {metric: value}, "flags": flags, "ledger": ledger}


def done(of, workdir, rung, values, metric="bits_per_byte"):
    """Results of a rung by number; a text is why a trial diverged."""
    for number, value in values.items():
        trial = Trial(of, workdir, number, rung)
        trial.folder.mkdir(parents=True, exist_ok=True)
        found = result(None, diverged=value) if isinstance(value, str) else result(value, metric)
        trial.result.write_text(json.dumps(found), encoding="utf-8")
