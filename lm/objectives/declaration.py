"""What an objective declares of itself, and the lookups by architecture and config that everything else uses.

`lm.objectives` fills `DECLARATIONS` with the `OBJECTIVE` of each of its modules.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from lm import config
from lm.errors import UserError, nearest
from lm.objectives.prompts import SpanPrompt, TextPrompt, without_prefix
from lm.objectives.vocabulary import Vocabulary
from lm.types import Example, TreeSizes

GOLDEN = 0.6180339887498949


def spread(number: float, first: float = 0.0) -> float:
    """Element `number` of a sequence in [0, 1) that begins at `first`: the fractions of multiples of the golden ratio, any run
    of which is spread evenly."""
    return float((first + number * GOLDEN) % 1)


@dataclass(frozen=True)
class Lengths:
    """Tokens in a row of the encoder and of the decoder (None: no such stack), and predictions in a row.

    `predicted` is None if every position of the row is predicted. The others say which optional arrays the streams have (see
    `TokenStream`): `types` is the number of token types, `blocks` of tokens in a block of a text that stands in the row twice;
    0 where there are none. `paced`: an Example says how much of the training is done. `tree`: of the encoder's tokens.
    """

    encoder: int | None
    decoder: int | None
    predicted: int | None = None
    prefix: bool = False
    types: int = 0
    blocks: int = 0
    ahead: bool = False
    paced: bool = False
    tree: TreeSizes | None = None


@dataclass(frozen=True)
class Objective:
    """An objective built for an architecture, row lengths and a vocabulary.

    `make(tokens, rng)` turns a piece of one document, int32 [n], into an Example of one segment.
    """

    make: Callable[..., Example]
    lengths: Lengths
    window: int  # tokens of text that fill a row, at most
    stride: int  # from one window's start to the next; window - 1 where a window's last token is only predicted
    dynamic: bool = True  # each epoch draws new randomness; False: a window keeps its own
    shortest: int = 4  # shorter pieces are left out of the rows
    ends: frozenset[int] = frozenset()  # a piece of these tokens alone is left out: it would be predicted from nothing
    needs_other: bool = False  # it is `make(tokens, rng, other)`, where `other` is text from another document
    sentinels: int = 0  # how many of the tokenizer's sentinels it uses, counted from the first
    marks: int = 0  # how many it uses counted from the last (`lm.objectives.special_tokens`)
    reach: int | None = None  # positions that the decoder needs, where they are those of the encoder's text (MASS)
    stratified: bool = False  # `make` takes `at` from 0 to 1, which is spread evenly over consecutive rows
    paced: bool = False  # `make` takes `progress`, the share of the training that is done; 1 in held-out rows
    after: tuple[int, ...] = ()  # tokens of `data.after`; `make` then takes `given`, how many tokens of a piece are only read
    draws: bool = True  # `make` draws random numbers; False saves the time to seed a generator for each piece


@dataclass(frozen=True)
class Suit:
    """How one architecture trains under an objective, and is asked.

    `factors` and `reads_prefix` have no default: whoever adds an objective says what holds.
    """

    build: Callable[[Any, config.Data, Vocabulary], Objective]  # (the objective's config, data, vocabulary)
    # Its loss is -log p(text), each token once given those before it, so that bits per byte are defined; "bound": its loss is
    # at least that, on average over its noise. May depend on the config.
    factors: bool | Literal["bound"] | Callable[[Any], bool | Literal["bound"]]
    reads_prefix: (
        bool | Callable[[Any], bool]
    )  # a decoder alone sees what it is given from both sides; may depend on the config
    # How a held-out span is asked for, by kind of score; a text says why it cannot be, a function depends on the config.
    spans: Mapping[str, SpanPrompt] | str | Callable[[Any], Mapping[str, SpanPrompt]] = field(default_factory=dict)
    gives: bool = False  # what it builds takes `given` (`Objective.after`)


@dataclass(frozen=True)
class Declaration:
    """All that the library knows about an objective."""

    config: type  # its dataclass in `lm.config.objective`
    suits: Mapping[str, Suit]  # by architecture
    refused: Mapping[str, str] = field(default_factory=dict)  # by architecture: the reason; take '<the nearest objective>'
    prompt: TextPrompt | None = None  # how a text prompt is put to its models
    rate: Callable[[Any], float] | None = None  # of its config: `SpanPrompt.rate`
    own_loss: bool = False  # a task of its own trains it (`lm.recipes.pretrain.TASKS`), so that no mixture can include it


DECLARATIONS: dict[type, Declaration] = {}


def pairs() -> list[tuple[str, type]]:
    """Each architecture with each config of an objective that it can be trained under."""
    return [(architecture, kind) for kind, declared in DECLARATIONS.items() for architecture in declared.suits]


def suited(architecture: str, objective: config.Objective) -> Suit:
    """How the architecture is trained under this objective; UserError with the reason where it is not."""
    kind = type(objective)
    declared = DECLARATIONS.get(kind, Declaration(kind, {}))
    if architecture not in declared.suits:
        reason = declared.refused.get(architecture, "lm.objectives declares no such pair")
        raise UserError(f"objective '{config.kind_of(kind)}' does not suit the {architecture}: {reason}")
    return declared.suits[architecture]


def build(objective: config.Objective, architecture: str, data: config.Data, vocabulary: Vocabulary) -> Objective:
    """The objective for this architecture and these row lengths; UserError with the reason where it makes no sense."""
    suit = suited(architecture, objective)
    if vocabulary.bos_id is None or vocabulary.eos_id is None:
        raise UserError("the tokenizer has no bos or no eos token, which mark where documents begin and end; train one here")
    built = suit.build(objective, data, vocabulary)
    if not data.after:
        return built
    if not suit.gives:
        can = sorted({config.kind_of(kind) for a, kind in pairs() if a == architecture and DECLARATIONS[kind].suits[a].gives})
        raise UserError(
            f"data.after={data.after!r}: objective '{config.kind_of(type(objective))}' predicts all of a text in the "
            f"{architecture}; leave it out, or take {' or '.join(can) or 'a decoder'}"
        )
    return replace(built, after=tuple(vocabulary.encode(data.after).tolist()))


def usual(architecture: str) -> config.Objective:
    """What a model of this architecture is taken to be trained on if nothing says it, such as a converted one."""
    return {"decoder": config.Causal(), "encoder": config.Masked(), "encoder_decoder": config.SpanCorruption()}[architecture]


def factors(architecture: str, objective: config.Objective) -> bool | Literal["bound"]:
    """Whether the loss of this objective is the text's negative log-probability, or bounds it (`Suit.factors`)."""
    found = suited(architecture, objective).factors
    return found(objective) if callable(found) else found


def reads_prefix(architecture: str, objective: config.Objective) -> bool:
    """Whether a decoder alone that was trained under this objective sees what it is given from both sides."""
    read = suited(architecture, objective).reads_prefix
    return read(objective) if callable(read) else read


def span_prompts(architecture: str, objective: config.Objective) -> Mapping[str, SpanPrompt]:
    """How a model is asked for a held-out span, by kind of score; UserError where no span can be hidden from it."""
    kind = type(objective)
    suit = DECLARATIONS[kind].suits.get(architecture) if kind in DECLARATIONS else None
    if suit is None or not suit.spans:
        can = [k for a, k in pairs() if a == architecture and isinstance(DECLARATIONS[k].suits[a].spans, Mapping)]
        known = [config.kind_of(k) for k in can if DECLARATIONS[k].suits[architecture].spans]
        name = config.kind_of(kind)
        raise UserError(f"no way to score spans under a model of '{name}' ({architecture}){nearest(name, known)}")
    if isinstance(suit.spans, str):
        raise UserError(suit.spans)
    if not isinstance(suit.spans, Mapping):
        return suit.spans(objective)
    rate, known = DECLARATIONS[kind].rate, suit.spans
    if architecture == "decoder" and not reads_prefix(architecture, objective):
        known = {name: replace(way, ask=partial(without_prefix, ask=way.ask)) for name, way in known.items()}
    return known if rate is None else {name: replace(way, rate=rate(objective)) for name, way in known.items()}


def text_prompt(objective: config.Objective) -> TextPrompt:
    """How a text prompt is put to a model of this objective; UserError if its declaration does not say."""
    kind = type(objective)
    prompt = DECLARATIONS[kind].prompt if kind in DECLARATIONS else None
    if prompt is None:
        raise UserError(
            f"no way to put a prompt to a model of '{config.kind_of(kind)}': set log.samples=[], or declare a prompt in its "
            "module of lm.objectives"
        )
    return prompt


# ----------------------------------------------------------------------------------------------- for the builders


def required_length(data: config.Data, name: str) -> int:
    """`data.<name>`, tokens in a row of one stack; UserError if it is not given or below 8."""
    length = getattr(data, name)
    if length is None or length < 8:
        raise UserError(f"data.{name} is {length}; this architecture and objective need it, 8 or more tokens")
    return length


def both_lengths(data: config.Data) -> tuple[int, int]:
    """`required_length` of the encoder and of the decoder."""
    return required_length(data, "encoder_length"), required_length(data, "decoder_length")
