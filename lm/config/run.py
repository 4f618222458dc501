"""A run, and how it trains: optimizer, steps, checkpoints, evaluation, recipe, mesh, log."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from lm.config.adapter import Lora
from lm.config.data import Data
from lm.config.distill import Distill, OnPolicy
from lm.config.images import ImageClasses, TwoEncoders
from lm.config.model import Model
from lm.config.objective import Causal, Objective, ReplacedTokens
from lm.config.pictures import Drawing, ImageCodes, ImageText
from lm.config.policy import Policy
from lm.config.preference import Preference, Reward
from lm.config.ranges import (
    INT32,
    Axis,
    Conflict,
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
from lm.config.sound import Transcribe
from lm.config.widening import widened
from lm.errors import UserError


@dataclass(frozen=True)
class Schedule:
    """The learning rate: a linear warm-up to the peak, then a decay of this kind to `final` of the peak.

    Step k of the warm-up, counted from 1, has k / warmup of the peak, so the first step has 1 / warmup of it, not 0. A warm-up
    is at most as long as the run.
    """

    kind: Literal["cosine", "linear", "rsqrt", "wsd", "constant"] = "cosine"
    warmup: Natural | NonNegative = 100  # steps, or, below 1, a share of the run's steps
    final: Share = 0.1  # of the peak
    decay: Natural | None = None  # wsd: steps of the linear decay at the end; None: a fifth of the run

    def phases(self, steps: int) -> tuple[int, int]:
        """The steps of the warm-up and, of wsd, of the decay, in a run of so many. Conflict if they do not fit."""
        warmup = min(round(self.warmup * steps) if self.warmup < 1 else int(self.warmup), steps)
        rest = max(steps - warmup, 1)
        decay = self.decay if self.decay is not None else min(steps // 5, rest)
        if self.kind == "wsd" and steps and decay > rest:  # without steps there is no update
            raise Conflict(
                f"optimizer.schedule.decay={decay} does not fit the {rest} steps after the warm-up, of train.steps={steps}: "
                f"give --config.optimizer.schedule.decay={rest} or less, None for a fifth of the run, more steps, or a shorter "
                "warm-up",
                *("train.steps", "optimizer.schedule.decay", "optimizer.schedule.warmup"),
            )
        return warmup, decay


@dataclass(frozen=True)
class Optimizer:
    """AdamW (arXiv 1711.05101), Adafactor (1804.04235), Lion (2302.06675) or Muon (2502.16982)."""

    name: Literal["adamw", "adafactor", "lion", "muon"] = "adamw"
    learning_rate: NonNegative = 1e-3  # the peak
    schedule: Schedule = Schedule()
    weight_decay: NonNegative = 0.1  # of matrices, not of norms, biases and embeddings
    clip: Positive | None = 1.0  # the largest global norm of the gradient; None: no clipping
    b1: Decay = 0.9
    b2: Decay = 0.95
    eps: Positive = 1e-8
    adam_learning_rate: Positive | None = None  # muon: for parameters that are no matrices; None: the same
    ema: Decay | None = None  # decay of a moving average of the parameters, which is then evaluated; None: no average
    # The width at which the rates were tuned: a wider model's follow from them by muP (arXiv 2203.03466), and so does the
    # multiplier of its logits (`lm.config.widening`). Weight decay is of the rate that is given. None: as they are given.
    base_width: Count | None = None
    # What waits in the host's memory, and is on the device in the update alone: the moments, and the average (`ema`), where
    # they leave activations too little room (docs/pods.md). (): nothing.
    offload: tuple[Literal["moments", "average"], ...] = ()

    def __post_init__(self) -> None:
        named = f"optimizer.offload={','.join(self.offload)}"
        if len(set(self.offload)) < len(self.offload):
            raise UserError(f"{named} names one part twice: leave one out")
        if "average" in self.offload and self.ema is None:
            raise UserError(f"{named} moves an average, and optimizer.ema=None keeps none: leave it out, or set optimizer.ema")
        if "moments" in self.offload and self.name == "adafactor":
            raise UserError(f"{named} moves moments, and adafactor's are rows and columns, which are small: leave it out")
        if self.base_width is not None and self.name == "adafactor":
            raise UserError(
                "optimizer.base_width has no rule for adafactor, which factors large matrices alone: take adamw or lion"
            )


@dataclass(frozen=True)
class Train:
    """Steps, batches and the seed."""

    steps: Natural = 1000
    batch_size: Count = 16  # rows of a step, over all hosts and microbatches
    microbatches: Count = 1  # the gradient of a batch is summed over this many parts, for less memory
    seed: Seed = 0  # of parameters, data order, noise and dropout
    init_from: Name | None = None  # folder of a run or a converted model to start from; None: random parameters
    # Stacks of the model -> stacks of that one whose parameters they begin with: {"encoder": "decoder"} makes an encoder of a
    # decoder (LLM2Vec, arXiv 2404.05961), and with {"decoder": "decoder"} beside it an encoder-decoder (T5Gemma, 2504.06225).
    # What a saved stack lacks, such as cross-attention, begins from the seed. {}: the models are the same.
    init_map: Mapping[Literal["encoder", "decoder"], Literal["encoder", "decoder"]] = field(default_factory=dict)
    z_loss: NonNegative = 0.0  # weight of log(Z)^2 (PaLM, arXiv 2204.02311, section 5: 1e-4)
    max_skipped: Count = 10  # the run stops after so many steps in a row whose loss, gradient or update is not finite
    # Stacks of the model in init_from -> the layers of theirs, from 0, that are taken, in this order: {"encoder": (0, 2, 4)}
    # begins a student of half the depth with every other layer (DistilBERT, arXiv 1910.01108, section 3). {}: all.
    init_layers: Mapping[Literal["encoder", "decoder"], tuple[Natural, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.init_map and self.init_from is None:
            raise UserError("train.init_map says what begins with which stack of train.init_from, and that is not given")
        if self.init_layers and self.init_from is None:
            raise UserError("train.init_layers says which layers of train.init_from are taken, and that is not given")


@dataclass(frozen=True)
class Checkpoint:
    """When the state is saved, and what is kept."""

    every: Every | None = 500  # steps; None: only at the end and when the run is stopped
    keep: Count = 2  # of the latest
    keep_best: bool = True  # also the one with the best held-out loss, of those at a step with an evaluation


@dataclass(frozen=True)
class Evaluate:
    """The evaluation on held-out data."""

    every: Every | None = 500  # steps; None: only at the end
    rows: Count | None = None  # evaluated, spread evenly over the held-out ones; None: all
    batch_size: Count | None = None  # rows; None: as in training
    baselines: bool = False  # at the end, compare with xz and n-gram models on the same held-out bytes


@dataclass(frozen=True)
class Pretrain:
    """Train on text under the run's objective."""


Trees = Literal["none", "given", "balanced", "right", "shuffled"]  # see Finetune


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
    compare: Literal["words", "symbols"] = "words"  # written answers: without articles and punctuation (SQuAD); or as they are
    labels: Count | None = None  # training records of each source, drawn with train.seed; None: all
    develop: Count | None = None  # tested on as many training records of each source, which are not trained on, to choose
    # settings by; None: on the held-out ones
    # Whether texts are read as trees, by an encoder of tree-LSTMs: as they are "given" by records of format=tree; each as a
    # "balanced" tree over its tokens, or a "right"-branching one; as given and "shuffled", a control in which words have
    # changed places. "none": as sequences; a tree is one with operators before their arguments, and ends after them.
    trees: Trees = "none"

    def __post_init__(self) -> None:
        if self.trees != "none" and self.how != "head":
            raise UserError(f"recipe.trees={self.trees} is read by a head at the root of each tree: set recipe.how=head")
        if self.how == "head" and self.compare != "words":
            raise UserError(f"recipe.compare={self.compare} is about written answers, and how=head writes none: leave it out")


Recipe = (
    Pretrain
    | Finetune
    | Distill
    | Reward
    | Preference
    | Policy
    | OnPolicy
    | Transcribe
    | ImageCodes
    | ImageText
    | Drawing
    | TwoEncoders
    | ImageClasses
)


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis, outermost first; one may be -1, for all that are left: `dict(fsdp=-1, tensor=4)`."""

    slice: Axis = 1  # slices of a pod, which the data-centre network connects: each has all parameters and its own rows
    data: Axis = -1  # splits rows and replicates parameters; 1 if another axis is -1
    fsdp: Axis = 1  # splits rows and parameters
    sequence: Axis = 1  # splits the tokens of a row, for rows that do not fit one device, and parameters
    expert: Axis = 1  # splits the experts of a layer, and rows elsewhere
    tensor: Axis = 1  # splits attention heads, hidden units and the vocabulary

    def __post_init__(self) -> None:
        if len(rest := [f.name for f in dataclasses.fields(self) if f.name != "data" and getattr(self, f.name) == -1]) > 1:
            raise UserError(f"{' and '.join(rest)} are both -1, and only one axis can take what the others leave: give a size")


@dataclass(frozen=True)
class Pod:
    """The machine that a config is made for. Read by `python -m tpu.compile` and `python -m tpu.cost`, not by training."""

    topology: Name  # of a slice, generation and chips: "v5e:16x16"
    slices: Count = 1
    price: NonNegative | None = None  # USD for a chip and hour; None: cost is not computed
    mfu: PositiveShare = 0.4  # share of the peak FLOPs that the cost assumes


@dataclass(frozen=True)
class Log:
    """What a run prints and writes beside its checkpoints."""

    every: Count = 10  # steps between two lines of metrics
    tensorboard: bool = True  # also write TensorBoard event files
    samples: tuple[Words, ...] = ("The ",)  # prompts at each evaluation; "[MASK]" marks what the model fills in
    sample_tokens: Annotated[int, Range(0, 2**20)] = 64  # of each answer; 0: no samples
    temperature: NonNegative = 0.8  # of sampling; 0: the most likely token
    # Also kept by these, whose own environment variables say where and in which project (default: lm).
    trackers: tuple[Literal["wandb", "mlflow", "trackio"], ...] = ()


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
    adapter: Lora | None = None  # train this in place of the model, which is frozen

    def __post_init__(self) -> None:
        if self.model is None and isinstance(self.recipe, Pretrain):
            raise UserError("model is missing; pretraining needs it: give one, as configs/quickstart.py does")
        if self.adapter is not None and (self.train.init_from is None or self.train.init_map or self.train.init_layers):
            raise UserError(
                "an adapter is beside a model as it was saved: give that as train.init_from, without init_map or init_layers"
            )
        if self.optimizer.base_width is not None:
            if not isinstance(self.recipe, Pretrain) or isinstance(self.objective, ReplacedTokens) or self.adapter is not None:
                raise UserError(
                    "optimizer.base_width is for pretraining a single model, all of it: leave it out of other recipes, of "
                    "replaced_tokens and beside an adapter"
                )
            object.__setattr__(self, "model", widened(self.model, self.optimizer.base_width))
        self.optimizer.schedule.phases(self.train.steps)
        for name, source in self.data.sources.items():
            if isinstance(self.recipe, Pretrain) and source.format != "text":
                raise UserError(
                    f"data.sources.{name} has records of format={source.format}, and pretraining reads texts: fine-tune on it "
                    "(recipe=dict(kind='finetune')), or set its format to 'text'"
                )
        tokens = self.train.batch_size * max(self.data.encoder_length or 0, self.data.decoder_length or 0)
        if tokens > INT32:
            raise UserError(
                f"train.batch_size={self.train.batch_size} rows are {tokens:,} tokens, and positions are counted up to "
                f"{INT32:,}: take a smaller batch"
            )
