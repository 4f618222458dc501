"""The frozen dataclasses of a run, one module for each section; `lm.config.resolve` makes them of files and flags. No jax.

A family of models is data (see `Model`): nothing in the library asks for a family's name.
"""

from lm.config.adapter import Lora
from lm.config.bottleneck import Bottleneck, Join
from lm.config.data import Classifier, Clean, Contamination, Data, Dedup, Quality, Source, Tokenizer, day
from lm.config.distill import Distill, OnPolicy
from lm.config.images import ImageClasses, TwoEncoders
from lm.config.mixer import Convolution, GatedLinear, Gru, Lstm, Mamba2, Mixer, TreeLstm
from lm.config.model import (
    Attention,
    Block,
    Embed,
    Ffn,
    FrozenDict,
    Head,
    Mlp,
    Model,
    Moe,
    Norm,
    Stack,
    Weights,
    kind_of,
)
from lm.config.objective import (
    AnyOrder,
    BlockDiffusion,
    Causal,
    Contrastive,
    Denoise,
    Deshuffle,
    FillInMiddle,
    Masked,
    MaskedDiffusion,
    Mass,
    Mixture,
    MultiToken,
    NextSentence,
    Objective,
    Part,
    Prefix,
    ReplacedTokens,
    SpanCorruption,
    Teacherless,
    Variational,
)
from lm.config.pictures import Codebook, Drawing, ImageCodes, ImageText
from lm.config.policy import Grader, Policy
from lm.config.position import Alibi, Buckets, Learned, Position, Rope, Sinusoidal
from lm.config.preference import Preference, Reward
from lm.config.quality import C4, FineWeb, Gopher, Language
from lm.config.run import (
    Checkpoint,
    Evaluate,
    Finetune,
    Log,
    Mesh,
    Optimizer,
    Pod,
    Pretrain,
    Recipe,
    Run,
    Schedule,
    Train,
    Trees,
)
from lm.config.sampling import Asked, Order, Sampling
from lm.config.sound import Transcribe
from lm.config.stem import Frames, Patches, Stem
