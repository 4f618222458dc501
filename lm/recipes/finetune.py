"""What a pretrained model is worth downstream: fine-tuned on a labelled set with a small budget, and tested.

    python -m lm.recipes.finetune --from=runs/quickstart --task=sentiment --how=head
    python -m lm.recipes.finetune --from=runs/quickstart --task=questions --how=text --steps=400

`--how=head` puts a new head on the trunk, that reads one place; `--how=text` lets the model say the answer, so it suits
those with a decoder. Tasks are the labelled sets (sentiment, questions, spam, topics, sarcasm) and, from the documents of
the run itself, spans and infill, which are answered in text. Metrics go to DIR/finetune/<task>_<how>_seed<k>.json.
"""

import argparse
import dataclasses
import itertools
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from lm import atomic, cli, config, flops, optim, paths, saved, sharding, startup
from lm.config import resolve
from lm.config.ranges import INT32, Count, NonNegative, Range, Seed, Share
from lm.data import labelled
from lm.data.corpus.prepare import prepare
from lm.data.examples import ExampleBuilder
from lm.data.labelled import Extractive, Labelled
from lm.data.rows import blank, pack, permute, stack
from lm.data.tokenizer import Tokenizer
from lm.errors import UserError
from lm.evaluation.qa_metrics import classified, exact, qa_metrics
from lm.generation.decoding import generate, left_padded
from lm.generation.rank import rank
from lm.losses.cross_entropy import cross_entropy, scores
from lm.models.positions import check_positions
from lm.models.transformer import Transformer, head_params
from lm.objectives import of_texts, reads_prefix
from lm.training import hooks, loop
from lm.training.ledger import SAMPLE
from lm.training.step import counted, make_step, plan_state
from lm.types import Example, TokenStream, TrainState

How = Literal["text", "head"]


@dataclasses.dataclass(frozen=True)
class Finetune:
    """A small budget on a labelled set; the rate rises over the warm-up and falls to 0."""

    steps: Count = 200
    batch_size: Count = 32
    learning_rate: NonNegative = 1e-3
    warmup: Share = 0.1  # of the steps (BERT, arXiv 1810.04805, appendix A.2)
    weight_decay: NonNegative = 0.01  # the same
    length: Annotated[int, Range(3, INT32)] = 64  # tokens of a text with its ends; of a longer one both ends are kept
    answer: Annotated[int, Range(2, INT32)] = 16  # tokens of an extracted answer with its end, at most
    rows: Count = 1000  # of the test items, at most


DEFAULTS = Finetune()
CORPUS = {"spans": labelled.spans, "infill": labelled.infill}  # tasks from the documents of a run


def finetune(
    model: config.Model,
    params: Any,
    tokenizer: Tokenizer,
    task: Labelled | Extractive,
    *,
    how: How,
    prefix: bool = False,
    settings: Finetune = DEFAULTS,
    seed: int = 0,
    progress: bool = False,
) -> dict[str, float]:
    """Trains a copy of `params` on the training items and tests it; what came out, and what it cost.

    `prefix`: a decoder sees the text from both sides; other architectures have no choice. Of a labelled set: `accuracy`,
    `nll` in nats an example. Of an extraction: `exact`, `f1`, `nll` in nats a token of the answer. `majority` is the
    accuracy, or exact match, of whatever is commonest in training.
    """
    work = Work(model, tokenizer, task, how, prefix, settings, seed)
    display = hooks.Display(settings.steps, 0, quiet=not progress or jax.process_index() > 0)
    shown = _Loss(work.train, display)
    with sharding.use(work.mesh):
        state, step, new = work.start(params)
        steps = range(settings.steps)
        clock = loop.Clock()
        with display.bar:
            state = loop.run(state, step, loop.prefetched(work.batch, steps), [shown], steps=steps, clock=clock)
            jax.block_until_ready(state.params)
        seconds = clock.train + clock.kinds.get("data_wait", 0.0)
        with clock("test"):
            metrics = work.test(state.params)
    seen, with_loss = counted(np.asarray(state.seen))
    return metrics | {
        "majority": work.majority(),
        "train_loss": shown.latest,
        "train_items": len(task.train),
        "test_items": len(work.tested),
        "new_parameters": new,
        "skipped_steps": int(state.skipped),
        "tokens": seen,
        "tokens_with_loss": with_loss,
        "model_flops": work.flops,
        "train_seconds": round(seconds, 3),
        "compile_seconds": round(clock.kinds.get("compile", 0.0), 3),
        "test_seconds": round(clock.kinds["test"], 3),
    }


def transplant(pretrained: Any, new: Any, *, fresh: tuple[str, ...] = ()) -> tuple[Any, list[str]]:
    """A new tree of parameters with the values of the pretrained one: copies, in the shardings of the new. Also the names
    of what stays new: all below `fresh`, and nothing else, or it is a UserError.
    """
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    old = {name(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(pretrained)[0]}
    kept: list[str] = []

    def one(path: Any, leaf: jax.Array) -> jax.Array:
        where = name(path)
        if where.split("/")[0] in fresh:
            kept.append(where)
            return leaf
        given = old.get(where)
        if given is None or given.shape != leaf.shape:
            found = "nothing" if given is None else str(given.shape)
            raise UserError(f"the pretrained parameters have {found} at {where}, the model takes {leaf.shape}; is it theirs?")
        return jax.device_put(jnp.array(given, leaf.dtype, copy=True), leaf.sharding)

    grown = jax.tree_util.tree_map_with_path(one, new)
    known = {name(path) for path, _ in jax.tree_util.tree_flatten_with_path(new)[0]}
    if left := sorted(n for n in old.keys() - known if n.split("/")[0] not in fresh):
        raise UserError(f"the pretrained parameters have {left[0]}, which the model lacks; is the model theirs?")
    return grown, kept


@partial(jax.jit, static_argnames="network")
def _logits(network: Transformer, params: Any, example: Example) -> Any:
    return network.apply({"params": params}, example)


class _Loss:
    """A hook: the mean training loss since the last time, on the display now and then. Raises Diverged as pretraining does."""

    def __init__(self, train: config.Train, display: hooks.Display) -> None:
        self.train, self.display = train, display
        self.since: list[Any] = []
        self.latest = float("nan")

    def __call__(self, step: int, state: TrainState, metrics: dict[str, Any]) -> None:
        self.since.append(metrics["loss"])
        if hooks.due(step, 10, self.train.steps):
            self.latest = float(np.mean(jax.device_get(self.since)))
            self.since = []
            self.display.show(step, f"loss {self.latest:.3f}")
            hooks.check_progress(self.train, step, int(metrics["skipped_in_a_row"]))


class Work:
    """One fine-tuning: the model with its head, all items as Examples, every batch of one shape."""

    def __init__(
        self,
        model: config.Model,
        tokenizer: Tokenizer,
        task: Labelled | Extractive,
        how: How,
        prefix: bool,
        settings: Finetune,
        seed: int,
    ) -> None:
        self.task, self.how, self.settings, self.seed, self.tokenizer = task, how, settings, seed, tokenizer
        answer, self.model = settings.answer, model
        self.train = config.Train(steps=settings.steps, batch_size=settings.batch_size, seed=seed)
        if isinstance(task, Labelled):
            answer = 1 + max(len(ids) for ids in tokenizer.encode_batch([f" {c}" for c in task.classes]))
        self.writer = ExampleBuilder(tokenizer, model.architecture, length=settings.length, answer=answer, prefix=prefix)
        if how == "head":
            if not isinstance(task, Labelled):
                raise UserError(f"task '{task.name}' has no classes that a head could tell apart: take --how=text")
            head = config.Head(tied=False, bias=True, outputs=len(task.classes))
            self.model = dataclasses.replace(model, head=head)
        elif model.head is None or model.head.outputs is not None:
            raise UserError("the model has no head over the vocabulary, so it gives no text: take --how=head")
        self.lengths = self.writer.label_lengths if how == "head" else self.writer.answer_lengths
        check_positions(self.model, self.lengths.encoder, self.lengths.decoder, cure="shorten it with --length")
        self.mesh = sharding.make_mesh(config.Mesh())
        sharding.check_batch(settings.batch_size, 1, self.mesh)
        self.network = Transformer(self.model)
        self.tested = task.test[: settings.rows]
        self.test_texts = self._texts(self.tested)
        self.train_items = self._examples(task.train, self._texts(task.train))
        self.test_items = self._examples(self.tested, self.test_texts)

    def _texts(self, items: Any) -> list[np.ndarray]:
        """A text, or a context with its question behind it, as ids."""
        return self.writer.encode(["\n".join(filter(None, item[:-1])) for item in items])

    def _examples(self, items: Any, texts: list[np.ndarray]) -> list[Example]:
        if self.how == "head":
            return [self.writer.label_example(text, item[1]) for text, item in zip(texts, items, strict=True)]
        if isinstance(self.task, Labelled):
            words = self.writer.answers(list(self.task.classes))
            return [self.writer.answer_example(text, words[item[1]]) for text, item in zip(texts, items, strict=True)]
        answers = self.writer.answers([item[2] for item in items])
        return [self.writer.answer_example(text, answer) for text, answer in zip(texts, answers, strict=True)]

    # --------------------------------------------------------------------------------------------------------- training

    def start(self, params: Any) -> tuple[TrainState, Any, int]:
        """The first state with the pretrained parameters in it, the step, and how many parameters are new."""
        s, model = self.settings, self.model
        schedule = config.Schedule("linear", warmup=round(s.warmup * s.steps), final=0.0)
        optimizer = config.Optimizer(learning_rate=s.learning_rate, schedule=schedule, weight_decay=s.weight_decay)
        tx, _ = optim.make(optimizer, s.steps)
        shape = jax.tree.map(jnp.asarray, self._rows([], range(s.batch_size)))
        outputs = model.head.outputs if model.head and model.head.outputs else model.vocab_size
        settings: dict[str, Any] = dict(head_params=head_params, vocab_size=outputs)
        loss = lambda p, frozen, example, rngs: (cross_entropy(p, self.network.apply, example, rngs=rngs, **settings), {})
        plan = plan_state(lambda key: self.network.init(key, shape)["params"], tx, self.mesh, ema=False)
        step = make_step(loss, tx, plan, optimizer=optimizer, train=self.train)
        state = plan.create(self.seed)  # AdamW's moments begin at 0, whatever the parameters are
        grown, new = transplant(params, state.params, fresh=("head",) if self.how == "head" else ())
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params["head"])) if new else 0
        return dataclasses.replace(state, params=grown), step, count

    def batch(self, step: int) -> Example:
        """Batch `step`: each epoch has its own order, and everything follows from (seed, step)."""
        size = self.settings.batch_size
        return sharding.global_batch(self.train_rows, np.arange(step * size, (step + 1) * size), self.mesh)

    def train_rows(self, index: np.ndarray) -> Example:
        """The rows of so many places in the order of training; they go on for ever."""
        count = len(self.train_items)
        epoch, place = np.divmod(index, count)
        for e in np.unique(epoch):
            place[epoch == e] = permute(place[epoch == e], count, (self.seed, int(e)))
        return self._rows(self.train_items, place)

    def _rows(self, items: list[Example], index: Any) -> Example:
        """Items by number, a row each; past the last they are blank."""
        return stack([pack([items[i]], self.lengths) if i < len(items) else blank(self.lengths) for i in index])

    @property
    def flops(self) -> float:
        """Of the whole training, as `lm.training.ledger` counts: from the first rows, at no cost for padding."""
        rows = self.settings.steps * self.settings.batch_size
        count = min(rows, SAMPLE)
        return flops.of_rows(self.model, self.train_rows(np.arange(count))).train / count * rows

    # ---------------------------------------------------------------------------------------------------------- testing

    def test(self, params: Any) -> dict[str, float]:
        size, count = self.settings.batch_size, len(self.test_items)
        chunks = [range(first, first + size) for first in range(0, count, size)]
        if isinstance(self.task, Labelled):
            score = self._by_head if self.how == "head" else self._by_rank
            ranked = np.concatenate([score(params, chunk) for chunk in chunks])[:count]
            return classified(ranked, np.array([item[-1] for item in self.tested]))
        said = [text for chunk in chunks for text in self._say(params, chunk)][:count]
        score = partial(scores, head_params=head_params, vocab_size=self.model.vocab_size)
        loss = jax.jit(lambda p, example: score(p, self.network.apply, example)["loss"])
        parts = [jax.device_get(loss(params, self._rows(self.test_items, chunk))) for chunk in chunks]
        nll = sum(p.total for p in parts) / sum(p.weight for p in parts)
        return qa_metrics(said, [str(item[-1]) for item in self.tested]) | {"nll": float(nll)}

    def majority(self) -> float:
        """What one gets who always says what is commonest in training."""
        commonest = Counter(item[-1] for item in self.task.train).most_common(1)[0][0]
        same: Any = (lambda a, b: a == b) if isinstance(self.task, Labelled) else exact
        right = [same(commonest, item[-1]) for item in self.tested]
        return float(np.mean(right))

    def _by_head(self, params: Any, chunk: range) -> np.ndarray:
        return np.asarray(_logits(self.network, params, self._rows(self.test_items, chunk)))[:, 0]

    def _by_rank(self, params: Any, chunk: range) -> np.ndarray:
        """Log-probabilities of every class's words: [B, C]."""
        assert isinstance(self.task, Labelled)
        words = self.writer.answers(list(self.task.classes))
        candidates = np.zeros((len(words), self.writer.answer), np.int32)
        weights = np.zeros(candidates.shape, np.float32)
        for i, ids in enumerate(words):
            candidates[i, : len(ids)], weights[i, : len(ids)] = ids, 1.0
        prompt, encoder = self._prompts(chunk)
        return np.asarray(rank(self.network, params, prompt, candidates, weights, encoder=encoder))

    def _say(self, params: Any, chunk: range) -> list[str]:
        prompt, encoder = self._prompts(chunk)
        t = self.tokenizer
        forbidden = ~of_texts(t, self.model.vocab_size)
        forbidden[t.eos_id] = False
        settings: dict[str, Any] = dict(new_tokens=self.writer.answer, temperature=0.0, eos_id=t.eos_id, forbidden=forbidden)
        ids = generate(self.network, params, prompt, jax.random.key(0), encoder=encoder, **settings)
        return [t.decode(list(itertools.takewhile(lambda i: i != t.eos_id, row))) for row in np.asarray(ids).tolist()]

    def _prompts(self, chunk: range) -> tuple[TokenStream, TokenStream | None]:
        """What comes before the answers of a chunk, padded to one shape; past the last item its last is repeated."""
        asked = [self.writer.prompt(self.test_texts[min(i, len(self.test_texts) - 1)]) for i in chunk]
        begun, read = [a[1] for a in asked], [a[0] for a in asked if a[0] is not None]
        if read:
            return left_padded(begun), left_padded(read, length=self.settings.length)
        return left_padded(begun, prefix=self.writer.prefix, length=self.settings.length), None


# --------------------------------------------------------------------------------------------------- the command


def pretrained(directory: str | Path) -> tuple[config.Model, Any, Tokenizer]:
    """Model, parameters and tokenizer of a run's workdir, or of a converted model."""
    source = saved.open(directory)
    return source.model, source.params(device=jax.local_devices()[0]), source.tokenizer()


def command(flags: argparse.Namespace) -> dict[str, Any]:
    """What `main` does once its flags are read; returns what it wrote."""
    settings = resolve.of_flags(Finetune, flags)
    seed = resolve.build(Seed, flags.seed, "--seed")
    directory = paths.local(flags.source, name="--from")
    model, params, tokenizer = pretrained(directory)
    run = resolve.load(str(directory / "config.json")) if (directory / "config.json").exists() else None
    prefix = flags.prefix
    if prefix is None:
        prefix = run is not None and reads_prefix(run.model.architecture, run.objective)
    if flags.task in CORPUS:
        if run is None:
            raise UserError(f"task '{flags.task}' is made from a run's documents, and {directory} is no run; take another")
        task: Any = CORPUS[flags.task](prepare(run.data), tokenizer, length=flags.length - 4, seed=seed)
    else:
        task = labelled.load(flags.task, flags.cache)
    options: dict[str, Any] = dict(how=flags.how, prefix=prefix, settings=settings, seed=seed, progress=True)
    metrics = finetune(model, params, tokenizer, task, **options)
    about = {"task": flags.task, "how": flags.how, "prefix": prefix, "seed": seed, "from": str(directory)}
    result = about | {"settings": dataclasses.asdict(settings), "metrics": metrics}
    if jax.process_index() == 0:
        file = directory / "finetune" / f"{flags.task}_{flags.how}_seed{seed}.json"
        file.parent.mkdir(exist_ok=True)
        atomic.write_json(file, result)
        shown = ("accuracy", "exact", "f1", "majority", "nll", "train_seconds")
        print("  ".join(f"{k} {metrics[k]:.4g}" for k in shown if k in metrics), f" -> {file}", sep="")
    return result


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m lm.recipes.finetune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--from", dest="source", required=True, metavar="DIR", help="workdir of a run, or a converted model")
    p.add_argument("--task", required=True, choices=[*labelled.SETS, *CORPUS])
    p.add_argument("--how", required=True, choices=["head", "text"])
    p.add_argument(
        "--prefix",
        action=argparse.BooleanOptionalAction,
        help="a decoder sees the text from both sides; default: as it was pretrained",
    )
    p.add_argument("--seed", type=int, default=0, help="of the new head, the order and dropout (default 0)")
    p.add_argument("--cache", default="~/.cache/lm", help="where wheels are kept (default ~/.cache/lm)")
    for f in dataclasses.fields(Finetune):
        p.add_argument(f"--{f.name}", type=type(f.default), default=f.default, help=f"default {f.default}")
    return p


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse_args(argv)
    startup.before_jax()  # in time although jax is imported: XLA reads its flags when the first array is made
    startup.after_jax()
    command(flags)
    return 0


if __name__ == "__main__":
    cli.leave(main())
