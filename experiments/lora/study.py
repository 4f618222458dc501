"""What adapters learn of a new task and forget of what the model knew, against full tuning (arXiv 2405.09673)."""

from typing import Any

import numpy as np

from experiments import tuned
from experiments.languages import totals
from experiments.study import Cell, Gate, Measured, Metric, Relation, Study
from lm import config
from lm.saved import Saved

NEW, LINES, KNOWN = "asked/nats", "lines/nats", "heldout/sums/loss"
RANKS = (4, 16)
RATES = {"full": 1e-3, "lora": 4e-3}
SIZES: dict[str, Any] = dict(length=totals.LENGTH, answer=totals.ANSWER)


def study(seeds: int = 3, base: int = 450, steps: int = 200) -> Study:
    language = totals.language()
    of = language.items
    pretrain = tuned.base_of(language, base)

    def tune(rate: float, adapter: config.Lora | None = None) -> config.Run:
        text = config.Finetune("text", **SIZES, compare="symbols")
        return tuned.run(text, of["shown"], of["heldout_asked"], steps=steps, learning_rate=rate, adapter=adapter)

    cells = {
        "base": Cell("base model", pretrain, measure=asked),
        "full": Cell("all weights", tune(RATES["full"]), start="base", floor="base", measure=asked),
    }
    for rank in RANKS:
        lora = tune(RATES["lora"], config.Lora(rank, alpha=2.0 * rank))
        cells[f"lora{rank}"] = Cell(f"LoRA of rank {rank}", lora, start="base", floor="base", measure=asked)
    source = "arXiv 2405.09673, figures 2 and 3"
    relations = (
        Relation("LoRA learns less", NEW, "full", f"lora{RANKS[-1]}", source=source),
        Relation("LoRA forgets less", LINES, f"lora{RANKS[-1]}", "full", source=source),
        Relation("a lower rank learns less", NEW, f"lora{RANKS[-1]}", f"lora{RANKS[0]}", primary=False, source=source),
        Relation("a lower rank forgets less", LINES, f"lora{RANKS[0]}", f"lora{RANKS[-1]}", primary=False, source=source),
    )
    metrics = (
        Metric(NEW, "worked answers", higher=False, floor=True, unit="nats a token"),
        Metric(LINES, "other lines, which the base model read", higher=False, unit="nats a word"),
    )
    gate = Gate("sums of two numbers are known", KNOWN, at_most=1.1, cells=("base",))
    return Study(
        "lora", "LoRA learns less and forgets less (arXiv 2405.09673)", cells, seeds, metrics, relations, gates=(gate,)
    )


def asked(trained: Saved) -> Measured:
    """NEW: nats a token of worked answers to questions that are in no training file. LINES: see `tuned.forgotten`."""
    items = totals.language().items
    records = tuned.pairs(items["heldout_asked"])
    tokens = np.array([len(record.answer.split()) + 1 for record in records])
    values = {NEW: -tuned.log_probs(trained, records, **SIZES) / tokens, LINES: tuned.forgotten(trained, items["lines"])}
    return Measured({name: float(each.mean()) for name, each in values.items()}, values)
