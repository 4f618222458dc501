"""The model: positions, attention, feed-forward networks, blocks, stacks, embeddings, heads."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from lm.config.bottleneck import Bottleneck, Join
from lm.config.bottleneck import check as check_bottleneck
from lm.config.mixer import RECURRENT, Mixer, check_block, check_stack
from lm.config.position import Alibi, Buckets, Position, Rope
from lm.config.ranges import (
    Conflict,
    Count,
    Decay,
    Layers,
    Name,
    Natural,
    NonNegative,
    Only,
    Positive,
    Vocabulary,
)
from lm.config.stem import Stem
from lm.config.stem import check as check_stem
from lm.errors import UserError

Weights = Literal["bfloat16", "int8", "int4"]  # in which a trained model's parameters may be kept (`lm.models.quantized`)


class FrozenDict(dict[str, Any]):
    """A dict with a hash, never changed: a model's config is a static argument of jitted functions."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items(), key=lambda item: item[0])))


def kind_of(cls: type) -> str:
    """The name of a class in configs: `SpanCorruption` -> `span_corruption`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()


@dataclass(frozen=True)
class Norm:
    """Layer norm (arXiv 1607.06450) or RMS norm (arXiv 1910.07467)."""

    kind: Literal["layer", "rms"] = "layer"
    eps: Positive = 1e-5
    bias: bool = True  # of a layer norm; an RMS norm has none
    unit_offset: bool = False  # the parameter is the scale minus 1 (Gemma)


@dataclass(frozen=True)
class Attention:
    """Multi-head attention (arXiv 1706.03762), multi-query (1911.02150) or grouped-query (2305.13245)."""

    num_heads: Count
    num_kv_heads: Count | None = None  # None: as many as heads (MHA); 1: MQA; between: GQA
    head_dim: Count | None = None  # None: width // num_heads
    bias: bool = False  # of the projections to queries, keys and values
    out_bias: bool = False  # of the projection back to the model's width
    qk_norm: Norm | None = None  # on queries and keys, before rotation
    qk_norm_over: Literal["head", "all"] = "head"  # each head's vector (Qwen3), or the vector of all heads (OLMo 2)
    softcap: Positive | None = None  # logits -> cap * tanh(logits / cap)
    window: Count | None = None  # keys a query sees: the last `window` if causal, `window // 2` to each side if not
    scale: Positive | None = None  # of the logits; None: head_dim ** -0.5 (T5: 1.0)
    dropout: Decay = 0.0  # on the attention weights
    rope: Rope | None = None  # instead of the stack's rotary positions (ModernBERT's local layers)
    key_bias: bool = True  # `bias` is also of the projection to keys (Whisper: it is not)
    # How a query is compared with a key: their product, or v^T tanh(q + k) with a vector v for each head (arXiv 1409.0473).
    score: Literal["dot", "additive"] = "dot"

    def __post_init__(self) -> None:
        if self.kv_heads > 0 and self.num_heads % self.kv_heads:
            raise Conflict(
                f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}: give a divisor",
                *("num_kv_heads", "num_heads"),
            )
        if self.score == "additive" and self.scale is not None:
            raise UserError(f"score='additive' learns its scale, and scale={self.scale:g}: leave scale out")

    @property
    def kv_heads(self) -> int:
        """Number of heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    def size(self, width: int) -> int:
        """The head dim in a model of this width."""
        return self.head_dim or width // self.num_heads


@dataclass(frozen=True)
class Mlp:
    """`down(activation(up(x)))`, or `down(activation(up(x)) * gate(x))` if gated (GLU variants, arXiv 2002.05202)."""

    hidden: Count  # width between up and down
    # "gelu_quick": x * sigmoid(1.702 x), an estimate of gelu (arXiv 1606.08415, section 2; CLIP)
    activation: Literal["gelu", "gelu_tanh", "relu", "silu", "gelu_quick"] = "gelu_tanh"
    gated: bool = False
    bias: bool = False  # of all its matrices
    dropout: Decay = 0.0  # on the input of down


@dataclass(frozen=True)
class Moe:
    """A router sends each token to `top_k` of `num_experts` feed-forward networks and sums their outputs (arXiv 1701.06538)."""

    num_experts: Count
    top_k: Count  # experts of a token
    expert: Mlp  # each of them, without bias and dropout
    renormalize: bool = True  # the chosen experts' weights sum to 1 (Mixtral); False: softmax over all experts (Grok-1)
    capacity: Positive | None = None  # tokens of a row that an expert takes, as a multiple of an even share; None: no limit
    balance: NonNegative = 0.01  # weight of the load-balance loss (arXiv 2101.03961, equation 4)
    z: NonNegative = 0.001  # weight of the router's z-loss (arXiv 2202.08906, equation 5)

    def __post_init__(self) -> None:
        if self.expert.bias or self.expert.dropout:
            raise UserError("an expert has no bias and no dropout: leave ffn.expert.bias and ffn.expert.dropout as they are")
        if not 1 <= self.top_k <= self.num_experts:
            raise UserError(f"ffn.top_k is {self.top_k}; it must be 1 to ffn.num_experts={self.num_experts}")


Ffn = Mlp | Moe  # a new kind is added here and in `lm.models.block.FFN`


@dataclass(frozen=True)
class Block:
    """`y = out(x + res(f(in(x))))` for f attention or a mixer, cross-attention and feed-forward; `norm_at` says which norms
    exist."""

    attention: Attention | None = None  # of a block with a mixer: its cross-attention's
    ffn: Ffn | None = None
    norm: Norm = Norm()
    norm_at: tuple[Literal["in", "res", "out"], ...] = ("in",)
    parallel: Literal["no", "shared", "separate"] = "no"  # attention and ffn read the same x: one norm (PaLM), or two (NeoX)
    bare: tuple[Literal["attention", "mixer", "cross", "ffn"], ...] = ()  # parts without norms (ModernBERT's first attention)
    cross: bool = False  # also attends to the encoder's output
    dropout: Decay = 0.0  # on each output of f, before the residual sum
    mixer: Mixer | None = None  # a recurrent layer or a convolution in the place of self-attention
    scale: Positive = 1.0  # multiplies each output of f, before the residual sum (the Conformer's feed-forwards: 0.5)

    def __post_init__(self) -> None:
        check_block(self)
        if self.cross and self.parallel != "no":
            raise UserError(f"parallel='{self.parallel}' leaves no place for cross-attention: set parallel=no, or cross=False")


@dataclass(frozen=True)
class Stack:
    """The layers of an encoder or a decoder."""

    num_layers: Layers
    blocks: Mapping[Name, Block]  # by letter
    pattern: Name = "L"  # letters of `blocks`, one for each layer, repeated to the depth
    position: Position | None = None  # None: no positions
    final_norm: bool = True
    dropout: Decay = 0.0  # after the last layer and the final norm (T5)
    scan: bool = False  # compile the pattern once and scan over it, for deep stacks; on a CPU a few unrolled layers are faster
    remat: Literal["none", "dots", "full"] = "none"  # the backward pass recomputes nothing, all but matmuls, or everything
    # What it does not recompute all the same: queries, keys and values; the output of attention; the hidden units of
    # feed-forwards, or of experts, and what experts return.
    keep: tuple[Literal["qkv", "attention", "ffn", "experts"], ...] = ()
    stem: Stem | None = None  # what is read in place of tokens, such as patches of an image; None: tokens
    # Which of the kept parts are moved to the host's memory until the backward pass reads them. "input": the input of each
    # repetition of the pattern, which every remat keeps.
    offload: tuple[Literal["input", "qkv", "attention", "ffn", "experts"], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", FrozenDict(self.blocks))
        known = ", ".join(self.blocks)
        if not self.blocks or any(len(letter) != 1 for letter in self.blocks):
            raise UserError(f"blocks are named {known or 'nothing'}: give one or more, each named by a single letter")
        if not self.pattern or (unknown := sorted(set(self.pattern) - set(self.blocks))):
            raise UserError(f"pattern={self.pattern!r} names {', '.join(unknown)}, and the blocks are {known}: use only these")
        self._check_kept()
        if self.scan and self.num_layers % len(self.pattern):
            raise Conflict(
                f"num_layers={self.num_layers} is no multiple of the {len(self.pattern)} letters of pattern={self.pattern!r}, "
                "which scan=True repeats: change one of them, or set scan=False",
                *("num_layers", "pattern", "scan"),
            )
        heads = {attention.num_heads for attention in self.self_attentions()}
        if isinstance(self.position, (Rope, Buckets, Alibi)) and not heads:
            kind = kind_of(type(self.position))
            raise UserError(f"position of kind '{kind}' is for self-attention, and no block has it: set position=None")
        if isinstance(self.position, (Buckets, Alibi)) and len(heads) > 1:
            raise UserError(
                f"position of kind '{kind_of(type(self.position))}' is one bias for all layers, and the blocks have "
                f"{' and '.join(map(str, sorted(heads)))} heads: give all the same attention.num_heads"
            )

    def _check_kept(self) -> None:
        if self.keep and self.remat == "none":
            raise Conflict(
                f"keep={','.join(self.keep)} is for remat=dots or full, and remat=none keeps all: set keep=() or another remat",
                *("keep", "remat"),
            )
        sparse = {isinstance(block.ffn, Moe) for block in self.blocks.values() if block.ffn is not None}
        for name, there in (("experts", True in sparse), ("ffn", False in sparse)):
            if name in self.keep and not there:
                what = "mixture of experts" if name == "experts" else "plain feed-forward"
                raise UserError(f"keep names '{name}', and no block has a {what}: leave it out")
        for name, parts in (("keep", self.keep), ("offload", self.offload)):
            if len(set(parts)) < len(parts):
                raise UserError(f"{name}={','.join(parts)} names one part twice: leave one out")
        if self.offload and self.remat == "none":
            raise Conflict(
                f"offload={','.join(self.offload)} is for remat=dots or full, and remat=none keeps all on the device: set "
                "offload=() or another remat",
                *("offload", "remat"),
            )
        if missing := [name for name in self.offload if name not in ("input", *self.keep)]:
            raise Conflict(
                f"offload={','.join(self.offload)} moves what is kept, and keep={','.join(self.keep) or '()'} lacks "
                f"{', '.join(missing)}: add it to keep",
                *("offload", "keep"),
            )

    def self_attentions(self) -> tuple[Attention, ...]:
        """The self-attention of each block that has one."""
        return tuple(b.attention for b in self.blocks.values() if b.attention is not None and b.mixer is None)

    def attentions(self) -> tuple[Attention, ...]:
        """The attention of each block that has one, to its own tokens or to the encoder's."""
        return tuple(b.attention for b in self.blocks.values() if b.attention is not None)

    def recurrent(self) -> bool:
        """Whether a layer has a state that goes from token to token."""
        return any(isinstance(block.mixer, RECURRENT) for block in self.blocks.values())

    def letters(self) -> str:
        """The letters of all layers: the pattern repeated to the depth."""
        return (self.pattern * self.num_layers)[: self.num_layers]


@dataclass(frozen=True)
class Embed:
    """Token embeddings, with those of positions and types added."""

    width: Count | None = None  # of the tables, which are projected to the model's width (ELECTRA); None: the model's width
    scale: Positive | None = None  # multiplies token embeddings (Gemma, the original Transformer: sqrt(width)); None: 1
    norm: Norm | None = None  # of the sum (BERT, BLOOM)
    types: Natural = 0  # number of token types (BERT: 2); all tokens are of type 0 unless the stream has types
    ahead: Natural = 0  # positions that a token may be told to predict (sigma-GPT); 0: it always predicts the next one
    dropout: Decay = 0.0  # on the sum
    token_dropout: Decay = 0.0  # share of the tokens that are read without their embedding, as if masked (arXiv 1511.06349)
    token_dropout_in: Literal["both", "decoder"] = "both"  # the stacks that read them so; of 1511.06349: the decoder


@dataclass(frozen=True)
class Head:
    """Hidden vectors to logits."""

    tied: bool = True  # its matrix is the embedding table
    bias: bool = False  # of the logits
    # BERT's layer before the logits: a dense layer, this activation, `norm`. None: no such layer.
    transform: Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"] | None = None
    transform_bias: bool = True  # of that dense layer (ModernBERT: none)
    norm: Norm | None = Norm(eps=1e-12)  # of that layer
    outputs: Count | None = None  # None: the vocabulary; another number needs tied=False (ELECTRA's discriminator: 1)
    scale: Positive | None = None  # multiplies the logits (T5 with tied embeddings: width ** -0.5); None: 1
    softcap: Positive | None = None  # logits -> cap * tanh(logits / cap)

    def __post_init__(self) -> None:
        if self.tied and self.outputs is not None:
            raise UserError(f"outputs={self.outputs} needs a matrix of its own: set tied=False, or outputs=None")


@dataclass(frozen=True)
class Model:
    """A transformer. Which of the two stacks exist makes it encoder-only, decoder-only or encoder-decoder."""

    vocab_size: Vocabulary
    width: Count
    encoder: Stack | None = None
    decoder: Stack | None = None
    embed: Embed = Embed()
    head: Head | None = Head()  # None: the model returns hidden vectors (sentence encoders)
    shared: bool = False  # both stacks have the same parameters, but for the decoder's cross-attention (T5, section 3.2.2)
    pooler: bool = False  # a dense layer and tanh on the vector of a row's first token (BERT)
    init_std: NonNegative | None = None  # of matrices at the start; None: fan-in ** -0.5
    embed_init_std: NonNegative = 0.02  # of embedding tables at the start
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; softmax, norms and the loss are in float32
    param_dtype: Literal["float32", "bfloat16"] = "float32"  # of the parameters
    # Of attention: XLA on any device, or a kernel of TPUs or of GPUs, which do not store the scores of each head. "auto": the
    # kernel of the devices where it takes the model and its rows, otherwise XLA; a run's config.json has what was chosen.
    kernel: Annotated[
        Literal["plain", "splash", "cudnn", "auto"], Only("splash", "on TPUs alone"), Only("cudnn", "on GPUs alone")
    ] = "plain"
    bottleneck: Bottleneck | None = None  # what the decoder reads of the encoder; None: all of its vectors
    # How it reads them: "cross", by cross-attention; "prefix", as vectors before its tokens, which give no outputs themselves.
    join: Join = "cross"

    def __post_init__(self) -> None:
        if self.shared:
            self._check_shared()
        stacks = {name: stack for name, stack in (("encoder", self.encoder), ("decoder", self.decoder)) if stack}
        for name, stack in stacks.items():
            self._check_kernel(name, stack)
            check_stack(name, stack, self.width)
            for letter, block in stack.blocks.items():
                if block.attention is not None:
                    position = stack.position if block.mixer is None else None
                    self._check_attention(f"{name}.blocks.{letter}.attention", block.attention, position)
                if block.cross and (name == "encoder" or self.encoder is None):
                    raise UserError(f"{name}.blocks.{letter}.cross=True attends from a decoder to an encoder: set it to False")
        check_bottleneck(self)
        check_stem(self)
        if self.head and self.head.tied and not self.head.transform and (self.embed.width or self.width) != self.width:
            raise UserError(
                f"embed.width={self.embed.width} is not width={self.width}, so that a tied head cannot read the table: set "
                "head.transform=gelu, or head.tied=False"
            )

    def _check_kernel(self, name: str, stack: Stack) -> None:
        if self.kernel in ("splash", "cudnn") and any(attention.score == "additive" for attention in stack.attentions()):
            raise UserError(f"kernel='{self.kernel}' multiplies queries by keys, and the {name} adds them: take 'plain'")
        dropped = any(attention.dropout for attention in stack.attentions())
        if self.kernel in ("splash", "cudnn") and (dropped or isinstance(stack.position, (Buckets, Alibi))):
            what = "dropout in its attention" if dropped else f"positions of kind '{kind_of(type(stack.position))}'"
            raise UserError(f"kernel='{self.kernel}' knows neither biases nor dropout, and the {name} has {what}: take 'plain'")
        if self.kernel == "cudnn":
            self._check_cudnn(name, stack)

    def _check_cudnn(self, name: str, stack: Stack) -> None:
        if self.dtype != "bfloat16":
            raise Conflict(
                f"kernel='cudnn' computes in bfloat16, and dtype={self.dtype}: change one of them", "kernel", "dtype"
            )
        for letter, block in stack.blocks.items():
            if block.attention is None:
                continue
            where, size = f"{name}.blocks.{letter}.attention", block.attention.size(self.width)
            if block.attention.softcap is not None:
                raise UserError(f"kernel='cudnn' knows no soft cap: set {where}.softcap=None, or kernel=plain")
            if size % 8 or size > 256:
                raise UserError(
                    f"kernel='cudnn' takes heads of 8, 16, ... up to 256 dimensions, and {where} has {size}: take 'plain'"
                )

    def _check_attention(self, where: str, attention: Attention, position: Position | None) -> None:
        """Refuses heads that do not divide the width, and an odd number of rotated dimensions."""
        if attention.head_dim is None and self.width % attention.num_heads:
            raise Conflict(
                f"{where}.num_heads={attention.num_heads} does not divide width={self.width}: change one of them, or set "
                "head_dim",
                *(f"{where}.num_heads", "width"),
            )
        rope = attention.rope or (position if isinstance(position, Rope) else None)
        size = attention.size(self.width)
        if rope and (turned := int(size * rope.fraction)) % 2 | (turned < 2):
            raise UserError(
                f"{where} turns {turned} of a head's {size} dimensions by position (rope.fraction={rope.fraction:g}), in "
                "pairs: make it an even number, 2 or more"
            )

    def _check_shared(self) -> None:
        if self.encoder is None or self.decoder is None:
            raise UserError("shared=True needs an encoder and a decoder")
        blocks = {letter: dataclasses.replace(block, cross=False) for letter, block in self.decoder.blocks.items()}
        if self.encoder != dataclasses.replace(self.decoder, blocks=blocks):
            raise UserError("shared=True needs a decoder like the encoder but for cross=True of its blocks")
        if self.encoder.scan or isinstance(self.encoder.position, Buckets):
            raise UserError("shared=True takes no scan=True and no positions of kind 'buckets'; use rope, or another")

    @property
    def reads_tokens(self) -> bool:
        """Whether a stack reads tokens, so that there is a table of them."""
        return any(stack is not None and stack.stem is None for stack in (self.encoder, self.decoder))

    @property
    def architecture(self) -> Literal["encoder", "decoder", "encoder_decoder"]:
        return "encoder_decoder" if self.encoder and self.decoder else "encoder" if self.encoder else "decoder"
