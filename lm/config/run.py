"""A run and the sections that say how it goes: optimizer, steps, checkpoints, evaluation, recipe, mesh, log."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

from lm.config.data import Data
from lm.config.model import Model
from lm.config.objective import Causal, Objective
from lm.config.ranges import (
    INT32,
    Axis,
    Count,
    Decay,
    Every,
    Name,
    Natural,
    NonNegative,
    Positive,
    PositiveShare,
    Range,
    Seed,
    Share,
    Words,
)
from lm.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """The learning rate: a linear warm-up to the peak, then `kind`, to `final` of the peak.

    Step k of the warm-up, counted from 1, has k / warmup of the peak: the first step has 1 / warmup of it, not 0. A warm-up
    that is longer than the run is cut to the run's steps.
    """

    kind: Literal["cosine", "linear", "rsqrt", "wsd", "constant"] = "cosine"
    warmup: Natural | NonNegative = 100  # steps; below 1: that share of the run's steps
    final: Share = 0.1
    decay: Natural | None = None  # wsd: steps of the last, linear leg; None: a fifth of the run


@dataclass(frozen=True)
class Optimizer:
    name: Literal["adamw", "adafactor", "lion", "muon"] = "adamw"
    learning_rate: NonNegative = 1e-3
    schedule: Schedule = Schedule()
    weight_decay: NonNegative = 0.1  # on matrices; never on norms, biases and embeddings
    clip: Positive | None = 1.0  # of the global gradient norm
    b1: Decay = 0.9
    b2: Decay = 0.95
    eps: Positive = 1e-8
    adam_learning_rate: Positive | None = None  # muon: of what is not a matrix; None: the same
    ema: Decay | None = None  # decay of an average of the parameters; it is what is evaluated


@dataclass(frozen=True)
class Train:
    steps: Natural = 1000
    batch_size: Count = 16  # in rows, over all hosts and microbatches
    microbatches: Count = 1  # the batch in this many turns; the gradient is that of the whole batch
    seed: Seed = 0
    init_from: Name | None = None  # folder of a run or a converted model whose parameters the first step starts from
    z_loss: NonNegative = 0.0  # weight of log(Z)^2 (PaLM, arXiv 2204.02311, section 5: 1e-4)
    max_skipped: Count = 10  # steps in a row whose loss, gradient or update is not finite before the run stops


@dataclass(frozen=True)
class Checkpoint:
    every: Every | None = 500  # steps; None: only at the end and when told to stop
    keep: Count = 2
    keep_best: bool = True  # of the evaluations, by held-out loss; only with an evaluation at the same step


@dataclass(frozen=True)
class Evaluate:
    every: Every | None = 500  # steps; None: only at the end
    rows: Count | None = None  # of the held-out data, evenly spread; None: all
    batch_size: Count | None = None  # None: the training batch
    baselines: bool = False  # at the end: xz and n-gram models on the same held-out bytes


@dataclass(frozen=True)
class Pretrain:
    """Train on text under the run's objective."""


@dataclass(frozen=True)
class Finetune:
    """Train on labelled records or on questions with answers (`lm.recipes.finetune`), and test on those that are held out.

    What is left out is taken from the run or the converted model in `train.init_from`: the model, the objective, the tokenizer.
    """

    how: Literal["head", "text"] = "head"  # a new head reads one position; or the model, which has a decoder, writes the answer
    # Three tokens are a token between its ends; passages that are cut from documents need more, and say so.
    length: Annotated[int, Range(3, INT32)] = 64  # tokens of a text with its ends; of a longer one both ends are kept
    answer: Annotated[int, Range(2, INT32)] = 16  # tokens of an answer with its end, at most; a class's words are never cut
    prefix: bool | None = None  # a decoder sees the text from both sides; None: as it was pretrained
    classes: tuple[Name, ...] | None = None  # of labelled records, in the order of the head's outputs; None: those of the data


Recipe = Pretrain | Finetune


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis, the outermost first; one may be -1: what is left. `dict(fsdp=-1, tensor=4)` is a whole mesh."""

    slice: Axis = 1  # slices of a pod, joined by the data-centre network: each has all parameters and rows of its own
    data: Axis = -1
    fsdp: Axis = 1
    sequence: Axis = 1  # of the tokens of a row, for rows that one device cannot hold; parameters are cut over it as well
    expert: Axis = 1
    tensor: Axis = 1

    def __post_init__(self) -> None:
        if len(rest := [f.name for f in dataclasses.fields(self) if f.name != "data" and getattr(self, f.name) == -1]) > 1:
            raise UserError(f"{' and '.join(rest)} are both -1, and only one axis can take what the others leave: give a size")


@dataclass(frozen=True)
class Pod:
    """The machine that a config is made for: read by `python -m tpu.compile` and `python -m tpu.cost`, not by training."""

    topology: Name  # of a slice, generation and chips: "v5e:16x16"
    slices: Count = 1
    price: NonNegative | None = None  # USD for an hour of a chip
    mfu: PositiveShare = 0.4  # at which cost is reckoned


@dataclass(frozen=True)
class Log:
    every: Count = 10
    tensorboard: bool = True
    samples: tuple[Words, ...] = ("The ",)  # prompts; "[MASK]" marks what an encoder fills in
    sample_tokens: Annotated[int, Range(0, 2**20)] = 64
    temperature: NonNegative = 0.8


@dataclass(frozen=True)
class Run:
    """One training, complete but for `model`, which is None where the recipe takes it from `train.init_from`.

    Its type leaves None out because the recipe has filled it in before anything else reads it.
    """

    model: Model = None  # ty: ignore[invalid-assignment]
    data: Data = Data()
    objective: Objective = Causal()
    optimizer: Optimizer = Optimizer()
    train: Train = Train()
    checkpoint: Checkpoint = Checkpoint()
    evaluate: Evaluate = Evaluate()
    mesh: Mesh = Mesh()
    pod: Pod | None = None
    log: Log = Log()
    recipe: Recipe = Pretrain()

    def __post_init__(self) -> None:
        if self.model is None and isinstance(self.recipe, Pretrain):
            raise UserError("model is missing; pretraining needs it: give one, as configs/quickstart.py does")
        for name, source in self.data.sources.items():
            if isinstance(self.recipe, Pretrain) and source.format != "text":
                raise UserError(
                    f"data.sources.{name} has records of format={source.format}, and pretraining reads texts: fine-tune on it "
                    "(recipe=dict(kind='finetune')), or set its format to 'text'"
                )
        tokens = self.train.batch_size * max(self.data.encoder_length or 0, self.data.decoder_length or 0)
        if tokens > INT32:
            raise UserError(
                f"train.batch_size={self.train.batch_size} rows are {tokens:,} tokens, and places are counted up to {INT32:,}: "
                "take a smaller batch"
            )
