"""Recurrent layers: what a block has in the place of self-attention. `lm.models.mixers` implements them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from lm.config.ranges import Count, Positive, Range
from lm.errors import UserError

if TYPE_CHECKING:
    from lm.config.model import Block, Stack

# How a layer of an encoder reads a row: from its first token on, from its last, or both ways, with parameters for each and the
# two results summed. A decoder reads forward.
Direction = Literal["forward", "backward", "both"]


@dataclass(frozen=True)
class Lstm:
    """Long short-term memory (Hochreiter and Schmidhuber, 1997) with a forget gate, as `torch.nn.LSTM` has it."""

    hidden: Count | None = None  # units; None: the model's width
    direction: Direction = "forward"

    def size(self, width: int) -> int:
        """Inputs of the projection back to the model's width, in a model of this width."""
        return self.hidden or width


@dataclass(frozen=True)
class Gru:
    """Gated recurrent units (arXiv 1406.1078), as `torch.nn.GRU` has them: the reset gate is applied after the product."""

    hidden: Count | None = None  # units; None: the model's width
    direction: Direction = "forward"

    def size(self, width: int) -> int:
        """Inputs of the projection back to the model's width, in a model of this width."""
        return self.hidden or width


@dataclass(frozen=True)
class GatedLinear:
    """Griffin's recurrent block (arXiv 2402.19427, section 2.4): a short convolution and the RG-LRU, times a gated branch."""

    hidden: Count | None = None  # units; None: the model's width
    num_heads: Count = 1  # blocks of the block-diagonal matrices of the two gates
    conv: Count = 4  # tokens that the convolution sees
    bias: bool = False  # of its projections (RecurrentGemma: True)
    direction: Direction = "forward"

    def size(self, width: int) -> int:
        """Units in a model of this width."""
        return self.hidden or width


@dataclass(frozen=True)
class Mamba2:
    """Mamba-2's state-space layer (arXiv 2405.21060): a scalar decay for each head and token."""

    hidden: Count | None = None  # units of all heads; None: twice the model's width
    head_dim: Count = 64  # units of a head
    state: Count = 128  # numbers that each unit remembers
    groups: Count = 1  # sets of B and C, each shared by hidden / head_dim / groups heads
    conv: Count = 4  # tokens that the convolution sees
    chunk: Count = 256  # tokens that are computed as matrix products; the state is carried from chunk to chunk
    eps: Positive = 1e-5  # of the gated norm before the output
    direction: Direction = "forward"

    def size(self, width: int) -> int:
        """Units of all heads in a model of this width."""
        return self.hidden or 2 * width

    def num_heads(self, width: int) -> int:
        return self.size(width) // self.head_dim


@dataclass(frozen=True)
class Convolution:
    """The Conformer's convolution module (arXiv 2005.08100, section 2.2), of an encoder; it sees both sides of each token."""

    kernel: Count = 31  # tokens that the convolution over time sees, an odd number
    eps: Positive = 1e-5  # of the norm after it

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise UserError(f"kernel={self.kernel} sees as many tokens before one as after it: give an odd number")

    def size(self, width: int) -> int:
        """Inputs of the projection back to the model's width, in a model of this width."""
        return width


@dataclass(frozen=True)
class TreeLstm:
    """A tree-LSTM (arXiv 1503.00075), of an encoder: a node's state is made of its children's, whatever the tree's shape."""

    # How many children a node may have, each with matrices of its own (N-ary: equations 9-14; 2: binary). None: any number, in
    # no order (child-sum: equations 2-8).
    children: Annotated[int, Range(2, 64)] | None = None
    hidden: Count | None = None  # units; None: the model's width

    def size(self, width: int) -> int:
        """Inputs of the projection back to the model's width, in a model of this width."""
        return self.hidden or width


# A new kind is added here and in `lm.models.block.MIXERS`.
Mixer = Lstm | Gru | GatedLinear | Mamba2 | Convolution | TreeLstm
RECURRENT = Lstm | Gru | GatedLinear | Mamba2  # those with a state, which reads a row token by token


def check_block(block: "Block") -> None:
    """Raises UserError for a block of no parts, and unless attention and mixer are each where they are for."""
    if block.mixer is None and block.attention is None:
        if block.ffn is None:
            raise UserError("a block has attention, a mixer, or a feed-forward alone: set one of them")
        if block.cross or block.parallel != "no":
            raise UserError("a block of a feed-forward alone has cross=False and parallel=no: set attention, or these")
    if block.mixer is not None and (block.attention is not None) != block.cross:
        raise UserError(
            "a block with a mixer has attention for cross=True alone, where it reads the encoder: "
            + ("set attention for it, or cross=False" if block.cross else "leave attention out (None), or the mixer")
        )
    if block.ffn is None and block.parallel != "no":
        raise UserError(f"parallel='{block.parallel}' sums a block's two parts, and ffn=None leaves one: set parallel=no")


def check_stack(name: str, stack: "Stack", width: int) -> None:
    """Raises UserError for a mixer that the stack, "encoder" or "decoder", cannot have in a model of this width."""
    for letter, block in stack.blocks.items():
        mixer, where = block.mixer, f"{name}.blocks.{letter}.mixer"
        if mixer is None:
            continue
        if name == "decoder" and isinstance(mixer, RECURRENT) and mixer.direction != "forward":
            raise UserError(
                f"{where}.direction={mixer.direction} reads what a decoder has yet to write: set it to forward, or make it an "
                "encoder's"
            )
        if name == "decoder" and isinstance(mixer, Convolution):
            raise UserError(f"{where} is a convolution, which sees what a decoder has yet to write: make it an encoder's")
        if name == "decoder" and isinstance(mixer, TreeLstm):
            raise UserError(f"{where} reads a tree from its leaves up, and a decoder writes a sequence: make it an encoder's")
        if isinstance(mixer, GatedLinear) and mixer.size(width) % mixer.num_heads:
            raise UserError(f"{where}.num_heads={mixer.num_heads} does not divide {mixer.size(width)} units: give a divisor")
        if isinstance(mixer, Mamba2):
            size, heads = mixer.size(width), mixer.num_heads(width)
            if size % mixer.head_dim or heads % mixer.groups:
                raise UserError(
                    f"{where} has {size} units, which make no heads of head_dim={mixer.head_dim} that divide into groups="
                    f"{mixer.groups}: change one of them"
                )
