"""The frozen dataclasses of a run; `lm.config.resolve` makes them of a config file and flags. Imports no jax.

A family of models is data (see `Model`): nothing in the library asks for a family's name.
"""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from lm.config.ranges import (
    INT32,
    LARGEST,
    Axis,
    Count,
    Decay,
    Every,
    Layers,
    Length,
    Name,
    Natural,
    NonNegative,
    Positive,
    PositiveShare,
    Range,
    Seed,
    Share,
    Span,
    Vocabulary,
    Words,
)
from lm.errors import UserError


class FrozenDict(dict[str, Any]):
    """A dict that nobody changes, so that it has a hash: a model's config is a static argument of jitted functions."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(tuple(sorted(self.items(), key=lambda item: item[0])))


def kind_of(cls: type) -> str:
    """`SpanCorruption` -> `span_corruption`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", cls.__name__).lower()


# ------------------------------------------------------------------------------------------------------------- model


@dataclass(frozen=True)
class Rope:
    """Rotary positions (RoFormer, arXiv 2104.09864)."""

    theta: Positive = 10_000.0
    fraction: PositiveShare = 1.0  # of the head dim that turns (GPT-NeoX 0.25, Phi-2 0.4)
    interleaved: bool = False  # pairs (0,1),(2,3).. as in GPT-J and PaLM; otherwise halves as in LLaMA and NeoX
    factor: Positive = 1.0  # positions are divided by this; with `original_length`, as LLaMA 3.1 does it
    low_freq_factor: Positive = 1.0
    high_freq_factor: Positive = 4.0
    original_length: Count | None = None

    def __post_init__(self) -> None:
        if self.original_length is not None and self.high_freq_factor <= self.low_freq_factor:
            raise UserError(
                f"high_freq_factor={self.high_freq_factor:g} must be more than low_freq_factor={self.low_freq_factor:g}, "
                "between which `original_length` blends"
            )


@dataclass(frozen=True)
class Learned:
    """A trained vector for each position (GPT-2, BERT); `offset` as BART and RoBERTa shift it."""

    max_length: Count
    offset: Annotated[int, Range(0, 2**16)] = 0


@dataclass(frozen=True)
class Sinusoidal:
    """Fixed sines and cosines (Attention Is All You Need, arXiv 1706.03762, section 3.5)."""


@dataclass(frozen=True)
class Buckets:
    """T5's relative bias in logarithmic buckets, one table for a stack (arXiv 1910.10683, section 2.1)."""

    num_buckets: Annotated[int, Range(4, 2**20)] = 32
    max_distance: Count = 128

    def __post_init__(self) -> None:
        # max_distance equal to the number of exact buckets (of a decoder, of an encoder) makes the log scale 0.
        if self.max_distance in (self.num_buckets // 2, self.num_buckets // 4):
            raise UserError(
                f"max_distance={self.max_distance} leaves no room for logarithmic buckets: half of num_buckets="
                f"{self.num_buckets} hold one distance each, so give more than {self.num_buckets // 2}"
            )


@dataclass(frozen=True)
class Alibi:
    """A linear penalty on distance, one slope a head (arXiv 2108.12409)."""


Position = Rope | Learned | Sinusoidal | Buckets | Alibi


@dataclass(frozen=True)
class Norm:
    kind: Literal["layer", "rms"] = "layer"
    eps: Positive = 1e-5
    bias: bool = True  # of a layer norm; an rms norm has none
    unit_offset: bool = False  # the stored scale counts from 1 (Gemma)


@dataclass(frozen=True)
class Attention:
    num_heads: Count
    num_kv_heads: Count | None = None  # None: as many as heads (MHA); 1: MQA; between: GQA
    head_dim: Count | None = None  # None: width // num_heads
    bias: bool = False  # on q, k, v
    out_bias: bool = False
    qk_norm: Norm | None = None  # of queries and keys, before rotation
    qk_norm_over: Literal["head", "all"] = "head"  # over each head's vector (Qwen3), or all heads' at once (OLMo 2)
    softcap: Positive | None = None  # logits -> cap * tanh(logits / cap)
    window: Count | None = None  # keys a query sees: the last `window` if causal, `window // 2` to each side if not
    scale: Positive | None = None  # None: head_dim ** -0.5; T5 has 1.0
    dropout: Decay = 0.0
    rope: Rope | None = None  # in place of the stack's rotary positions (ModernBERT's local layers)

    def __post_init__(self) -> None:
        if self.kv_heads > 0 and self.num_heads % self.kv_heads:
            raise UserError(f"num_kv_heads={self.num_kv_heads} does not divide num_heads={self.num_heads}: give a divisor")

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    def size(self, width: int) -> int:
        """The head dim in a model of this width."""
        return self.head_dim or width // self.num_heads


@dataclass(frozen=True)
class Mlp:
    hidden: Count
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = "gelu_tanh"
    gated: bool = False
    bias: bool = False
    dropout: Decay = 0.0


@dataclass(frozen=True)
class Moe:
    """A router sends each token to `top_k` of `num_experts` feed-forwards, and adds their answers (arXiv 1701.06538)."""

    num_experts: Count
    top_k: Count
    expert: Mlp  # what each of them is: no bias, no dropout
    renormalize: bool = True  # weights of the chosen sum to 1 (Mixtral); False: they are shares of all experts (Grok-1)
    capacity: Positive | None = None  # times an even share of a row's tokens: what an expert takes of it. None: all that come
    balance: NonNegative = 0.01  # weight of the load-balance loss (arXiv 2101.03961, equation 4)
    z: NonNegative = 0.001  # weight of the router's z-loss (arXiv 2202.08906, equation 5)

    def __post_init__(self) -> None:
        if self.expert.bias or self.expert.dropout:
            raise UserError("an expert has no bias and no dropout: leave ffn.expert.bias and ffn.expert.dropout as they are")
        if not 1 <= self.top_k <= self.num_experts:
            raise UserError(f"ffn.top_k is {self.top_k}; it must be 1 to ffn.num_experts={self.num_experts}")


Ffn = Mlp | Moe  # another kind joins here and in `lm.models.transformer.FFN`


@dataclass(frozen=True)
class Block:
    """`y = out(x + res(f(in(x))))` around attention, cross-attention and feed-forward; `norm_at` says which norms exist."""

    attention: Attention
    ffn: Ffn
    norm: Norm = Norm()
    norm_at: tuple[Literal["in", "res", "out"], ...] = ("in",)
    parallel: Literal["no", "shared", "separate"] = "no"  # both read the same x: through one norm (PaLM), or one each (NeoX)
    bare: tuple[Literal["attention", "cross", "ffn"], ...] = ()  # parts that have no norms (ModernBERT's first attention)
    cross: bool = False  # attends to the encoder as well
    dropout: Decay = 0.0  # on what is added to the residual stream

    def __post_init__(self) -> None:
        if self.cross and self.parallel != "no":
            raise UserError(f"parallel='{self.parallel}' leaves no place for cross-attention: set parallel=no, or cross=False")


@dataclass(frozen=True)
class Stack:
    num_layers: Layers
    blocks: Mapping[Name, Block]
    pattern: Name = "L"  # repeated over the layers, a letter of `blocks` each
    position: Position | None = None
    final_norm: bool = True
    dropout: Decay = 0.0  # behind the last layer and its norm (T5)
    scan: bool = False  # one compiled layer for all: for depth. Unrolled is faster for a few layers on a CPU
    remat: Literal["none", "dots", "full"] = "none"  # what the backward pass recomputes: nothing, all but products, all

    def __post_init__(self) -> None:
        object.__setattr__(self, "blocks", FrozenDict(self.blocks))
        known = ", ".join(self.blocks)
        if not self.blocks or any(len(letter) != 1 for letter in self.blocks):
            raise UserError(f"blocks are named {known or 'nothing'}: give one or more, each named by a single letter")
        if not self.pattern or (unknown := sorted(set(self.pattern) - set(self.blocks))):
            raise UserError(f"pattern={self.pattern!r} names {', '.join(unknown)}, and the blocks are {known}: use only these")
        if self.scan and self.num_layers % len(self.pattern):
            raise UserError(
                f"num_layers={self.num_layers} is no multiple of the {len(self.pattern)} letters of pattern={self.pattern!r}, "
                "which scan=True repeats: change one of them, or set scan=False"
            )
        heads = {block.attention.num_heads for block in self.blocks.values()}
        if isinstance(self.position, (Buckets, Alibi)) and len(heads) > 1:
            raise UserError(
                f"position of kind '{kind_of(type(self.position))}' is one bias for all layers, and the blocks have "
                f"{' and '.join(map(str, sorted(heads)))} heads: give all the same attention.num_heads"
            )

    def letters(self) -> str:
        """The pattern repeated to the depth, a letter for each layer."""
        return (self.pattern * self.num_layers)[: self.num_layers]


@dataclass(frozen=True)
class Embed:
    width: Count | None = None  # of the tables, if narrower than the model and projected to its width (ELECTRA)
    scale: Positive | None = None  # a multiplier after the look-up (Gemma, the original Transformer: sqrt(width))
    norm: Norm | None = None  # after the sum with positions (BERT, BLOOM)
    types: Natural = 0  # token types (BERT: 2; all tokens are of type 0 unless the stream says otherwise)
    dropout: Decay = 0.0


@dataclass(frozen=True)
class Head:
    tied: bool = True
    bias: bool = False
    transform: Literal["gelu", "gelu_tanh", "relu", "silu", "tanh"] | None = (
        None  # BERT's dense + activation + norm before the logits
    )
    transform_bias: bool = True  # of that dense layer (ModernBERT: none)
    norm: Norm | None = Norm(eps=1e-12)  # of the transform
    outputs: Count | None = None  # None: the vocabulary. Another number needs tied=False (ELECTRA's discriminator: 1)
    scale: Positive | None = None  # a multiplier on the logits (T5 tied: width ** -0.5)
    softcap: Positive | None = None

    def __post_init__(self) -> None:
        if self.tied and self.outputs is not None:
            raise UserError(f"outputs={self.outputs} needs a matrix of its own: set tied=False, or outputs=None")


@dataclass(frozen=True)
class Model:
    """One trunk. Encoder-only, decoder-only or encoder-decoder is which of the two stacks exist."""

    vocab_size: Vocabulary
    width: Count
    encoder: Stack | None = None
    decoder: Stack | None = None
    embed: Embed = Embed()
    head: Head | None = Head()  # None: hidden vectors are all it gives (sentence encoders)
    shared: bool = False  # one set of layers is both stacks; cross-attention is the decoder's alone (T5, section 3.2.2)
    pooler: bool = False  # dense and tanh on the vector of a row's first token (BERT)
    init_std: NonNegative | None = None  # of every matrix; None: fan-in ** -0.5. Embeddings: `embed_init_std`
    embed_init_std: NonNegative = 0.02
    dtype: Literal["float32", "bfloat16"] = "float32"  # of the computation; softmax, norms and the loss stay in float32
    param_dtype: Literal["float32", "bfloat16"] = "float32"
    kernel: Literal["plain", "splash"] = "plain"  # of attention: plain XLA anywhere, or a TPU's kernel that holds no [T, S]

    def __post_init__(self) -> None:
        if self.shared:
            self._check_shared()
        stacks = {name: stack for name, stack in (("encoder", self.encoder), ("decoder", self.decoder)) if stack}
        for name, stack in stacks.items():
            self._check_kernel(name, stack)
            for letter, block in stack.blocks.items():
                self._check_attention(f"{name}.blocks.{letter}.attention", block.attention, stack.position)
                if block.cross and (name == "encoder" or self.encoder is None):
                    raise UserError(f"{name}.blocks.{letter}.cross=True attends from a decoder to an encoder: set it to False")
        if len(stacks) == 2 and self.decoder and not any(block.cross for block in self.decoder.blocks.values()):
            raise UserError("no block of the decoder reads the encoder: set cross=True in decoder.blocks")
        if self.head and self.head.tied and not self.head.transform and (self.embed.width or self.width) != self.width:
            raise UserError(
                f"embed.width={self.embed.width} is not width={self.width}, so that a tied head cannot read the table: set "
                "head.transform=gelu, or head.tied=False"
            )

    def _check_kernel(self, name: str, stack: Stack) -> None:
        dropped = any(block.attention.dropout for block in stack.blocks.values())
        if self.kernel == "splash" and (dropped or isinstance(stack.position, (Buckets, Alibi))):
            what = "dropout in its attention" if dropped else f"positions of kind '{kind_of(type(stack.position))}'"
            raise UserError(f"kernel='splash' knows neither biases nor dropout, and the {name} has {what}: take 'plain'")

    def _check_attention(self, where: str, attention: Attention, position: Position | None) -> None:
        """Heads that cut the width evenly, and of each an even number of dimensions that turn by position."""
        if attention.head_dim is None and self.width % attention.num_heads:
            raise UserError(
                f"{where}.num_heads={attention.num_heads} does not divide width={self.width}: change one of them, or set "
                "head_dim"
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
    def architecture(self) -> Literal["encoder", "decoder", "encoder_decoder"]:
        return "encoder_decoder" if self.encoder and self.decoder else "encoder" if self.encoder else "decoder"


# --------------------------------------------------------------------------------------------------------- objectives


@dataclass(frozen=True)
class Causal:
    """Next token, left to right (GPT)."""


@dataclass(frozen=True)
class Prefix:
    """The rest of a text after a random split, the part before seen both ways (T5, section 3.2.3)."""


@dataclass(frozen=True)
class Masked:
    """Masked tokens back from both sides (BERT, arXiv 1810.04805, section 3.1)."""

    rate: PositiveShare = 0.15
    mask: Share = 0.8  # of the chosen: replaced by the mask token
    random: Share = 0.1  # of the chosen: replaced by a random token; the rest stay as they are
    whole_word: bool = False
    dynamic: bool = True  # new masks each epoch (RoBERTa); False: a window keeps its masks

    def __post_init__(self) -> None:
        if self.mask + self.random > 1 + 1e-9:
            raise UserError(f"mask={self.mask} and random={self.random} are shares of the same tokens: lower one to sum to 1")


@dataclass(frozen=True)
class SpanCorruption:
    """Spans replaced by sentinels, and given back in order (T5, section 3.1.4)."""

    rate: Annotated[float, Range(0.0, 0.95, above=True)] = 0.15
    mean_span: Span = 3.0
    prefix: bool = True  # a decoder alone sees the corrupted text from both sides; False: left to right, like the rest


@dataclass(frozen=True)
class Denoise:
    """The text back from a noised one (BART, arXiv 1910.13461, section 2.2). A share of 0 turns a noise off."""

    infill: Share = 0.3  # of the tokens: in spans, each replaced by one mask token
    mean_span: Span = 3.0  # of infilling; lengths are Poisson's, some spans are empty
    permute: Share = 1.0  # of the sentences: in a random order
    mask: Share = 0.0  # of the tokens: each replaced by a mask token
    delete: Share = 0.0  # of the tokens
    rotate: Share = 0.0  # of the pieces: begun at a random token


@dataclass(frozen=True)
class Deshuffle:
    """The text back from its tokens in a random order (T5, section 3.3.1)."""


@dataclass(frozen=True)
class Mass:
    """A masked stretch of the text, and nothing else, from what stands around it (MASS, arXiv 1905.02450, section 3.2)."""

    share: PositiveShare = 0.5  # of the text that is masked


@dataclass(frozen=True)
class FillInMiddle:
    """Next token, of texts whose middle was moved to their end (arXiv 2207.14255, section 3)."""

    rate: Share = 0.5  # of the pieces that are rearranged
    suffix_first: Share = 0.5  # of these: the suffix before the prefix (SPM), not behind it (PSM)


@dataclass(frozen=True)
class NextSentence:
    """Masked tokens, and whether a second text follows the first (BERT, section 3.1)."""

    negatives: Share = 0.5  # of the pairs: the second text is of another document, if the split has one to take from
    masked: Masked = Masked()


@dataclass(frozen=True)
class Part:
    objective: "Objective"
    weight: NonNegative = 1.0  # of the pieces, beside the other parts' weights
    mode: Name | None = None  # a token for this name, one for all parts that have it, stands before what the model reads


@dataclass(frozen=True)
class Mixture:
    """Each piece under one of several objectives, drawn by weight; `mode` tells the model which (UL2, arXiv 2205.05131)."""

    parts: Mapping[Name, Part]

    def __post_init__(self) -> None:
        if not any(part.weight > 0 for part in self.parts.values()):
            raise UserError("parts needs a part, and weights of 0 or more that are not all 0")


@dataclass(frozen=True)
class ReplacedTokens:
    """A generator fills in masks, and the model says of each token whether it was replaced (ELECTRA, arXiv 2003.10555).

    The other values of `predict` are the paper's ablations (section 3.4, table 5): asked at the chosen places alone
    (ELECTRA 15 %), and the tokens themselves, of the chosen places (Replace MLM) or of all (All-Tokens MLM).
    """

    generator: Model  # with the model's vocabulary, and tables as wide as the model's (`embed.width`): they are shared
    rate: PositiveShare = 0.15
    weight: NonNegative = 50.0  # of the model's loss beside the generator's
    predict: Literal["replaced", "replaced_chosen", "masked", "all"] = "replaced"


Objective = (
    Causal
    | Prefix
    | Masked
    | SpanCorruption
    | Denoise
    | Deshuffle
    | Mass
    | FillInMiddle
    | NextSentence
    | ReplacedTokens
    | Mixture
)

# --------------------------------------------------------------------------------------------------------------- data


@dataclass(frozen=True)
class Source:
    """Where documents, or records to fine-tune on, come from. `field` is that of a tfds, jsonl or JSON ArrayRecord record.

    kind `tfds`: `path` is a builder name ("sotu" is ours; "lm1b", "c4/en"...), `split` one of its splits.
    kind `text`: `path` is a glob of files, local or gs://, a file a document.
    kind `jsonl`: a glob of .jsonl or .jsonl.gz, a line a document. kind `array_record`: a glob, a record a document.
    kind `package`: `path` names a labelled set of `lm.data.corpus.packages`, which has its own held-out split.
    kind `cloze`: `path` is "spans" or "infill", questions about the documents of other prepared data (`lm.data.corpus.cloze`).

    `format` says what a document is: a text, or a record with the fields of `lm.data.records`. Records are neither cleaned
    nor compared for near duplicates.
    """

    kind: Literal["tfds", "text", "jsonl", "array_record", "package", "cloze"] = "tfds"
    path: Name = "sotu"
    split: Name = "train"
    field: Name = "text"  # of the record that holds the text (tfds, jsonl)
    format: Literal["text", "labelled", "pair", "messages"] = "text"
    encoding: Name = "utf-8"  # of files
    documents: "Data | None" = None  # cloze: the data that is asked about; None: that of the run in train.init_from
    length: Length | None = None  # cloze: tokens of a context and its question, at most; None: what a record has room for
    weight: NonNegative = 1.0  # of this source in the mixture, in rows

    def __post_init__(self) -> None:
        try:
            "a".encode(self.encoding)
        except (LookupError, ValueError):  # a codec that gives no text, such as hex, is a LookupError too
            raise UserError(f"unknown encoding {self.encoding!r} of {self.path}; for example utf-8, utf-16, latin-1") from None
        scheme, colon, _ = self.path.partition("://")
        formats = _FORMATS.get(self.kind, ("text", "labelled", "pair", "messages"))
        if self.format not in formats:
            raise UserError(
                f"format={self.format} of {self.path}: a source of kind {self.kind} has format={' or '.join(formats)}"
            )
        if colon and (scheme != "gs" or self.kind not in ("text", "jsonl", "array_record")):
            names = {"tfds": "a builder's name", "package": "a set's name", "cloze": "'spans' or 'infill'"}
            what = names.get(self.kind, "local files and gs://")
            raise UserError(f"path={self.path} is not read, {what} is: copy it to a local folder and give that")


# Of kinds that have not all of them.
_FORMATS: Mapping[str, tuple[str, ...]] = {"tfds": ("text",), "text": ("text",), "package": ("labelled",), "cloze": ("pair",)}


@dataclass(frozen=True)
class Clean:
    """By default only damage is mended; what may be part of a text is changed where you ask for it. The report counts all."""

    unicode: bool = True  # mojibake and control characters mended (ftfy), newlines of one kind, NFC (U+FA19 becomes U+795E)
    width: bool = False  # full-width forms and ligatures become plain letters (ftfy): no good for Chinese and Japanese
    markup: bool = False  # HTML tags go, entities become the characters they stand for: no good for code
    directions: bool | None = None  # remove stage directions ([Applause]); None: if the source's documents are transcripts
    spaces: bool = False  # runs of spaces, spaces at line ends and all but one empty line go: no good for code and tables
    min_chars: Natural = 1  # documents with fewer characters, spaces around them aside, are dropped, and reported


@dataclass(frozen=True)
class Dedup:
    exact: bool = True
    near: PositiveShare | None = 0.8  # MinHash estimate of the Jaccard similarity of word 5-grams above which the later goes
    permutations: Annotated[int, Range(2, 2**16)] = 128


@dataclass(frozen=True)
class Tokenizer:
    kind: Literal["bpe", "unigram"] = "bpe"
    vocab_size: Vocabulary = 8192
    path: Name | None = None  # a sentencepiece model to use as it is, instead of training one


@dataclass(frozen=True)
class Data:
    sources: Mapping[Name, Source] = field(default_factory=lambda: {"sotu": Source()})
    clean: Clean = Clean()
    dedup: Dedup = Dedup()
    tokenizer: Tokenizer = Tokenizer()
    holdout: Decay = 0.05  # of the documents of each source, chosen by a hash of their identity
    train_share: PositiveShare = 1.0  # of the training documents that are read at all: to study how data repeats
    encoder_length: Length | None = None  # tokens in a row of the encoder
    decoder_length: Length | None = None
    packing: bool = False  # records, as many in a row as fit into these lengths; a text's documents always share rows
    on_long: Literal["fail", "skip"] = "fail"  # an answer for which a record has no room: stop, or leave it out and count it
    cache: Name = "~/.cache/lm"  # a local folder; prepared data lives in <cache>/<fingerprint>
    on_corrupt: Literal["fail", "skip"] = "fail"  # an unreadable record: stop and name it, or count it and go on

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("sources is empty: give at least one, such as sources.mine.path=texts/*.txt")
        total = sum(source.weight for source in self.sources.values())
        if total > LARGEST:
            raise UserError(f"weights of all sources sum to {total:g}, which is infinite in float32: give smaller ones")
        if total == 0:
            raise UserError("weights of all sources are 0: they are shares of the rows, so give one of them more")


# ----------------------------------------------------------------------------------------------------------- training


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
        tokens = self.train.batch_size * max(self.data.encoder_length or 0, self.data.decoder_length or 0)
        if tokens > INT32:
            raise UserError(
                f"train.batch_size={self.train.batch_size} rows are {tokens:,} tokens, and places are counted up to {INT32:,}: "
                "take a smaller batch"
            )
