"""The recipes that learn from another model."""

from dataclasses import dataclass
from typing import Annotated, Literal

from lm.config.policy import Policy
from lm.config.ranges import INT32, Count, Name, NonNegative, Positive, Range, Share
from lm.errors import UserError


@dataclass(frozen=True)
class Distill:
    """Train to predict what another model, the teacher, predicts at the same tokens (`lm.recipes.distill`).

    Of texts the objective makes the rows; of records (sources with a format) rows are those of a fine-tuning in text, with loss
    at the answers. Both models read them; the loss is a weighted sum. Without a `model` in the config the student is shaped
    like the teacher, with the layers of `train.init_layers` alone if these are given. DistilBERT (arXiv 1910.01108, and its
    training script) has logits=5, labels=2, hidden=1, temperature=2 and everywhere=True.
    """

    teacher: Name  # folder of a run or a converted model: of the student's architecture, and with its tokenizer
    logits: NonNegative = 0.5  # weight of the divergence of the student's distribution from the teacher's
    labels: NonNegative = 0.5  # weight of the cross-entropy with the text itself
    hidden: NonNegative = 0.0  # weight of 1 - cosine of the last hidden vectors, at all tokens; both models have one width
    relations: NonNegative = 0.0  # weight of the KL of the last layers' relations between tokens (MiniLMv2, 2012.15828)
    relation_heads: Count = 4  # parts into which both models' vectors are cut for these
    beta: Share = 0.0  # of the divergence (2306.13649): 0 is forward KL, 1 reverse, 0.5 Jensen-Shannon
    temperature: Positive = 1.0  # that both logits are divided by; the divergence is multiplied by its square (1503.02531)
    teacher_sha256: Name | None = None  # of the teacher's files, which a resumed run must find again; None: filled in
    everywhere: bool = False  # the divergence at all tokens that the last stack reads, not only where there is loss
    # The teacher reads all rows of the run once, before the first step, and only its likeliest tokens of each prediction are
    # kept, with the mass of all others, in data.cache; runs over the same rows read them there (`lm.recipes.taught`). None: it
    # reads the rows of each step.
    top_k: Count | None = None
    length: Annotated[int, Range(3, INT32)] = 64  # records: as `Finetune.length`
    answer: Annotated[int, Range(2, INT32)] = 16  # records: as `Finetune.answer`
    prefix: bool | None = None  # records: a decoder sees the text from both sides; None: as the teacher does

    def __post_init__(self) -> None:
        if self.logits == self.hidden == self.relations == 0.0:
            raise UserError(
                "logits, hidden and relations are all 0, so nothing of the teacher is used: give one of them a weight"
            )
        if self.top_k is not None and (self.hidden or self.relations):
            raise UserError(
                f"recipe.top_k={self.top_k} keeps what the teacher predicts alone, and recipe.hidden and recipe.relations are "
                "of its vectors: set these to 0, or leave top_k out"
            )
        if self.top_k is not None and not self.logits:
            raise UserError(f"recipe.top_k={self.top_k} is of the divergence, whose weight recipe.logits is 0: leave it out")


@dataclass(frozen=True)
class OnPolicy(Policy):
    """Train a model on what a teacher predicts after each token of the student's own answers (GKD, arXiv 2306.13649, lambda 1).

    A step samples as a policy's does, `group` answers of each question, and takes one update; the loss is the divergence
    alone. Graders only say how good the answers are.
    """

    teacher: Name = "unset"  # as `Distill.teacher`
    beta: Share = 1.0  # of the divergence, as `Distill.beta`
    teacher_sha256: Name | None = None  # as `Distill.teacher_sha256`
    method: Literal["reinforce"] = "reinforce"
    group: Count = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.epochs, self.minibatches) != (1, 1):
            raise UserError("recipe.epochs and recipe.minibatches are 1: answers are the student's own for one update")
