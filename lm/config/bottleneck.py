"""What a decoder reads of an encoder: a fixed number of vectors for each text, and how they are put before it."""

from dataclasses import dataclass
from typing import Any, Literal

from lm.config.ranges import Conflict, Count
from lm.errors import UserError

Join = Literal["cross", "prefix"]


@dataclass(frozen=True)
class Bottleneck:
    """k vectors of a text, whatever its length, are all that the decoder reads of the encoder. `lm.models.bottleneck`.

    A row that holds several documents has k vectors for each of them.
    """

    vectors: Count = 1  # k, of a document
    # How they are made of the encoder's vectors: their mean, that of the first or of the last token; or k trained queries, each
    # of which attends to all of them (Set Transformer, arXiv 1810.00825, section 3.2: pooling by multi-head attention).
    pool: Literal["mean", "first", "last", "queries"] = "mean"
    width: Count | None = None  # of each vector, which is projected from the model's width and back; None: neither
    num_heads: Count = 1  # of the queries' attention
    # "gaussian": the encoder gives a mean and a log-variance, and in training the vectors are drawn (arXiv 1511.06349).
    latent: Literal["plain", "gaussian"] = "plain"
    documents: Count = 1  # of a row, at most

    def __post_init__(self) -> None:
        if self.vectors > 1 and self.pool != "queries":
            raise Conflict(
                f"vectors={self.vectors} and pool='{self.pool}', which gives one vector: set pool='queries', or vectors=1",
                *("vectors", "pool"),
            )
        if self.num_heads > 1 and self.pool != "queries":
            raise Conflict(
                f"num_heads={self.num_heads} is of pool='queries', and pool='{self.pool}': leave one out", "num_heads", "pool"
            )

    def size(self, width: int) -> int:
        """Numbers in one vector, in a model of this width."""
        return self.width or width

    @property
    def slots(self) -> int:
        """Vectors of a row: k for each document that it may hold."""
        return self.vectors * self.documents


def check(model: Any) -> None:
    """Raises UserError if how the stacks of a `Model` are joined does not go with its other settings."""
    both = model.encoder is not None and model.decoder is not None
    b = model.bottleneck
    if not both and (b is not None or model.join != "cross"):
        what = "bottleneck" if b is not None else f"join='{model.join}'"
        raise UserError(f"{what} is what a decoder reads of an encoder, and the model has one stack: leave it out")
    if not both:
        return
    reading = any(block.cross for block in model.decoder.blocks.values())
    if model.join == "cross" and not reading:
        raise UserError("no block of the decoder reads the encoder: set cross=True in decoder.blocks, or join=prefix")
    if model.join == "prefix" and reading:
        raise UserError("join='prefix' puts the encoder's vectors before the tokens: set cross=False in decoder.blocks")
    if model.kernel in ("splash", "cudnn") and (b is not None or model.join == "prefix"):
        what = "a bottleneck" if b is not None else "join='prefix'"
        raise UserError(f"kernel='{model.kernel}' takes rows of whole tiles, and {what} makes others: take 'plain'")
    if b is not None and b.pool == "queries" and model.width % b.num_heads:
        raise Conflict(
            f"bottleneck.num_heads={b.num_heads} does not divide width={model.width}: change one of them",
            *("bottleneck.num_heads", "width"),
        )
