"""What studies of tuning share: runs that go on from a cell on records, and what a tuned model answers and has forgotten."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from experiments import small
from experiments.languages import Language
from lm import config, paths
from lm.data.examples import ExampleBuilder
from lm.data.records import Pair
from lm.data.rows import blank, pack, stack
from lm.evaluation import items
from lm.evaluation.labelled import answer_losses
from lm.generation.engine import Request
from lm.generation.text_engine import engine_for
from lm.models.transformer import Transformer
from lm.saved import Saved

SLOTS = 128  # answers that are written at the same time


def run(
    recipe: config.Recipe,
    train: str,
    heldout: str,
    *,
    steps: int,
    batch_size: int = 64,
    learning_rate: float = 1e-3,
    rows: int = 64,
    format: Any = "pair",
    **changes: Any,
) -> config.Run:
    """A run on the records of the file `train`, which begins with the model of the cell that it goes on from. Other fields of
    `config.Run` are `changes`. The run's own evaluation is short, since a study measures the finished model."""
    source = lambda path, use: config.Source("jsonl", path, use=use, format=format)
    return config.Run(
        data=config.Data(sources={"train": source(train, "train"), "heldout": source(heldout, "holdout")}),
        optimizer=config.Optimizer(
            learning_rate=learning_rate, weight_decay=0.0, b2=0.99, schedule=config.Schedule("linear", warmup=10, final=0.0)
        ),
        # An adapter is refused without a model to start from; the study says which.
        train=config.Train(steps=steps, batch_size=batch_size, init_from="unset" if changes.get("adapter") else None),
        checkpoint=config.Checkpoint(every=None, keep=1, keep_best=False),
        evaluate=config.Evaluate(every=None, rows=rows),
        log=config.Log(samples=(), tensorboard=False),
        recipe=recipe,
        **changes,
    )


def base_of(language: Language, steps: int, *, layers: int = 3) -> config.Run:
    """The run of the base model that studies of a language go on from: a decoder of width 64, on its texts."""
    model = small.model("decoder", width=64, layers=layers, vocab_size=language.vocab_size)
    data = language.data(decoder_length=small.LENGTH)
    return small.run(model, config.Causal(), steps=steps, batch_size=32, data=data)


def pairs(path: str) -> list[Pair]:
    """The questions and answers in a file of a language."""
    lines = paths.expanded(path).read_text(encoding="utf-8").splitlines()
    return [Pair(record["question"], record["answer"]) for record in map(json.loads, lines)]


@dataclass(frozen=True)
class Answer:
    """One answer of a model."""

    text: str
    tokens: int  # with its end


def answers(
    model: Saved,
    records: Sequence[Pair],
    *,
    length: int,
    answer: int,
    samples: int = 1,
    temperature: float = 0.0,
    seed: int = 0,
) -> list[list[Answer]]:
    """What the model writes to each question, `samples` times. `length` and `answer` are as in `config.Finetune`; the prompt is
    that of a fine-tuned model, also where the model has not been tuned."""
    tokenizer: Any = model.tokenizer()
    builder = ExampleBuilder(tokenizer, model.model.architecture, length=length, answer=answer, prefix=False)
    texts = builder.encode([record.question for record in records])
    requests = []
    for i, text in enumerate(texts):
        encoder, begun = builder.prompt(text)
        how = config.Sampling(temperature=temperature, seed=seed + i)
        requests.append(Request(begun, answer, how, encoder, samples=samples))
    engine = engine_for(
        requests,
        Transformer(model.model),
        model.params(device=jax.local_devices()[0]),
        tokenizer,
        slots=SLOTS,
        ends=[tokenizer.eos_id],
        prefix=False,
    )
    return [[_answer(sample, tokenizer) for sample in of_request] for of_request in engine.write(requests)]


def log_probs(model: Saved, records: Sequence[Pair], *, length: int, answer: int, batch_size: int = 256) -> np.ndarray:
    """float64 [n]: nats of each record's answer with its end, under the prompt that `answers` gives."""
    tokenizer: Any = model.tokenizer()
    builder = ExampleBuilder(tokenizer, model.model.architecture, length=length, answer=answer, prefix=False)
    asked, told = builder.encode([r.question for r in records]), builder.answers([r.answer for r in records])
    examples = [builder.answer_example(*both) for both in zip(asked, told, strict=True)]
    rows = [pack([example], builder.answer_lengths) for example in examples]
    blanks = [blank(builder.answer_lengths)] * (-len(rows) % batch_size)
    batch = lambda index: stack([(rows + blanks)[i] for i in index])
    sizes: dict[str, int] = dict(count=len(rows), batch_size=batch_size)
    return -answer_losses(Transformer(model.model), model.params(device=jax.local_devices()[0]), batch, **sizes)[0]


def moved(
    model: Saved, before: Saved, prompts: Sequence[Pair], drawn: Sequence[Sequence[Answer]], *, length: int, answer: int
) -> np.ndarray:
    """float64 [n]: the divergence of a model's answers to each prompt from those of the model `before`, in nats, estimated
    from answers that were drawn at temperature 1."""
    records = [Pair(p.question, a.text) for p, of in zip(prompts, drawn, strict=True) for a in of]
    now, then = (log_probs(m, records, length=length, answer=answer) for m in (model, before))
    return (now - then).reshape(len(prompts), -1).mean(1)


def forgotten(model: Saved, path: str) -> np.ndarray:
    """float64 [n]: nats a token of the items in a file (`lm.evaluation.items`), which the tuned model had learned before."""
    assert model.run is not None
    params = model.params(device=jax.local_devices()[0])
    asked = items.read(path, name="lines")
    found = items.score(Transformer(model.model), params, model.run.objective, model.tokenizer(), asked).values()["nats"]
    return found / np.array([len(item.target.split()) for item in asked])


def _answer(written: Sequence[Any], tokenizer: Any) -> Answer:
    ids = [each.token for each in written]
    return Answer(tokenizer.decode([i for i in ids if i != tokenizer.eos_id]), len(ids))
