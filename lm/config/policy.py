"""The recipe that learns from rewards of what the model itself writes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from lm.config.ranges import INT32, Count, Decay, Name, NonNegative, Positive, Range, Share, Words
from lm.errors import UserError

WITH_PATH = ("model", "reasoning_gym")  # kinds of graders


@dataclass(frozen=True)
class Grader:
    """A term of the reward: what `kind` says of an answer, from 0 to 1 (a reward model's: any number), times `weight`.

    exact    the answer is the record's, but for white space at its ends
    number   the last number in it equals the last one in the record's answer
    regex    `pattern` matches all of it; without one, the record's answer is the pattern
    tests    the record's answer, a Python program, comes to its end after the answer, in a sandbox (which a program that is
             written to deceive it can deceive)
    model    the reward model in the folder `path` (recipe.kind=reward)
    reasoning_gym   the scorer of the set `path` (reasoning_gym:TASK, see `lm.data.corpus.reasoning`), for its questions
    """

    kind: Literal["exact", "number", "regex", "tests", "model", "reasoning_gym"] = "exact"
    weight: NonNegative = 1.0
    pattern: Words = ""  # regex
    path: Name | None = None  # model, reasoning_gym
    seconds: Positive = 5.0  # tests: of a core
    sha256: Name | None = None  # model: of its files, filled in by the run, which goes on only with the same

    def __post_init__(self) -> None:
        if (self.pattern and self.kind != "regex") or (self.kind in WITH_PATH) != (self.path is not None):
            raise UserError(
                f"a grader of kind={self.kind}: regex may have a pattern, {' and '.join(WITH_PATH)} have a path, and the "
                "others have neither"
            )


@dataclass(frozen=True)
class Policy:
    """Train a model on rewards of its own answers to the questions of pairs, or to conversations (`lm.recipes.policy`).

    `method` is a row of `lm.losses.policy.METHODS`, which has its paper; the fields from `advantage` to `truncated`, and
    `draws`, are its choices, explained there, and change it where they are not None. A step has train.batch_size samples,
    `group` of each question.
    """

    method: Literal["reinforce", "ppo", "rloo", "grpo", "dr_grpo", "dapo", "gspo"] = "grpo"
    graders: Mapping[Name, Grader] = field(default_factory=lambda: {"exact": Grader()})  # by name; the reward is their sum
    group: Count = 8  # samples of a question
    length: Annotated[int, Range(3, INT32)] = 64  # tokens of a question with its ends; of a longer one both ends are kept,
    # and a longer conversation is left out
    answer: Annotated[int, Range(2, INT32)] = 16  # tokens that are written, at most, with the end and the outputs of tools
    temperature: Positive = 1.0  # of sampling, and of the distribution that is trained
    epochs: Count = 1  # passes over a step's samples
    minibatches: Count = 1  # updates in each pass
    kl_weight: NonNegative = 0.04  # of the divergence from the reference, if the method has one
    discount: Share = 1.0  # critic: of later rewards
    decay: Share = 0.95  # critic: lambda of the advantage estimates
    critic_weight: NonNegative = 0.1  # critic: of its loss
    advantage: Literal["reward", "mean", "deviation", "leave_one_out", "critic"] | None = None
    ratio: Literal["without", "token", "sequence"] | None = None
    clip_low: Decay | None = None
    clip_high: NonNegative | None = None
    aggregate: Literal["token", "sequence", "constant"] | None = None
    kl: Literal["without", "reward", "k2", "k3"] | None = None
    truncated: Literal["scored", "unrewarded", "masked"] | None = None
    prefix: bool | None = None  # a decoder sees the question from both sides; None: as the model before
    reference_sha256: Name | None = None  # of the reference's files, filled in by the run, which goes on only with the same
    tools: tuple[Name, ...] = ()  # of `lm.generation.tools.TOOLS`, which an answer may call: "<<12+34>>" the calculator
    calls: Count = 4  # of tools in an answer, at most
    draws: Count | None = None  # as `advantage`
    # What a divergence is from: the model in train.init_from, or the moving average of the policy (optimizer.ema), which then
    # is also what is evaluated and saved (arXiv 2406.16768).
    reference: Literal["start", "average"] = "start"

    def __post_init__(self) -> None:
        if not self.graders:
            raise UserError("recipe.graders is empty, so that no answer is better than another: give one")
