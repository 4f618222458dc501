"""Records as token ids with a loss mask: what is stored of them, and what a model reads before it answers."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lm.data import trees
from lm.data.records import (
    Captioned,
    Feedback,
    Labelled,
    LabelledTree,
    Message,
    Messages,
    Pair,
    Preference,
    Record,
    Speech,
    Text,
)
from lm.data.templates import Parts, Template
from lm.data.vocabulary import Tokenizer


@dataclass(frozen=True)
class Rendered:
    """A record as the model reads it.

    ids   int32 [n]
    loss  bool [n]: the tokens that have loss, each predicted from those before it
    """

    ids: np.ndarray
    loss: np.ndarray


def render(records: Sequence[Record], tokenizer: Tokenizer, template: Template | None = None) -> list[Rendered]:
    """Renders each record as ids with a loss mask. The answer has loss, and so has the token that ends it, so that the model
    learns to stop; the question has none.

    text      bos a text eos                 labelled  bos a text eos spam eos      pair  bos context question eos answer eos
    loss       1  1   1   1                  loss       0  0   0   0    1   1       loss   0     0       0      0    1     1

    messages  bos <|user|> Hello <|end|> <|assistant|> Good day <|end|>
    loss       0      0      0      0          0        1    1     1

    preference  two conversations one after the other, each with its own bos, and loss on its last answer alone
    feedback    a conversation with loss on its last answer alone
    tree        as labelled, of the ids of its brackets and words (`lm.data.trees.to_ids`)
    speech      as a text, but for bos, which has no loss; the recording is read from its file (`lm.data.sound_rows`)
    captioned   the same of its caption; the picture is read from its file (`lm.data.images`)

    Without role tokens in the tokenizer, roles are written as text (`user:`) and <|end|> is eos. Messages after the assistant's
    last one are left out. Each part is encoded on its own, so that the ids of a message do not depend on what follows. A given
    `template` writes the conversations in its own way.
    """
    tokenizer = tokenizer if template is None else template.tokenizer
    parts = [_parts(record, tokenizer, template) for record in records]
    encoded = iter(
        tokenizer.encode_batch([part for record_parts in parts for part, _ in record_parts if isinstance(part, str)])
    )
    out = []
    for record_parts in parts:
        ids = [next(encoded) if isinstance(part, str) else np.array(part, np.int32) for part, _ in record_parts]
        loss = [np.full(len(part), has_loss) for part, (_, has_loss) in zip(ids, record_parts, strict=True)]
        out.append(Rendered(np.concatenate(ids).astype(np.int32), np.concatenate(loss)))
    return out


def render_prompt(
    messages: Sequence[Message], tokenizer: Tokenizer, template: Template | None = None
) -> tuple[np.ndarray, int]:
    """What `render` puts before the assistant's answer to these messages, int32 [n], and the id that ends the answer."""
    if template is not None:
        return template.prompt(messages), template.end
    answered = _turns(Messages((*messages, Message("assistant", ""))), tokenizer)
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    (end,) = answered[-1][0]
    assert isinstance(end, int)
    parts = [part for part, _ in answered[:-2]]
    ids = [tokenizer.encode(part) if isinstance(part, str) else np.array(part, np.int32) for part in [bos, *parts]]
    return np.concatenate(ids).astype(np.int32), end


def check(record: Record, template: Template) -> None:
    """UserError if the template refuses the record's conversation, or does not mark its answers."""
    _parts(record, template.tokenizer, template)


def _parts(record: Record, tokenizer: Tokenizer, template: Template | None) -> Parts:
    bos = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    eos = [] if tokenizer.eos_id is None else [tokenizer.eos_id]
    match record:
        case Text(text):
            return [(bos, True), (text, True), (eos, True)]
        case Speech(_, text) | Captioned(_, text):
            return [(bos, False), (text, True), (eos, True)]
        case LabelledTree(_, answer, tree):
            given = _tree_ids(tree, tokenizer)
        case Labelled(text, label):
            given, answer = text, label
        case Pair(_, answer):
            given = record.given
        case Messages(messages):
            return [(bos, False), *_turns(record, tokenizer)] if template is None else template.answered(messages)
        case Preference(messages, chosen, rejected):
            return [part for answer in (chosen, rejected) for part in _answered(messages, answer, tokenizer, template)]
        case Feedback(messages, completion):
            return _answered(messages, completion, tokenizer, template)
    end = [tokenizer.require("eos")]
    return [(bos, False), (given, False), (end, False), (f" {answer}", True), (end, True)]


def _tree_ids(tree: str, tokenizer: Tokenizer) -> list[int]:
    nodes = trees.parse(tree)
    words = tokenizer.encode_batch([f" {word}" for word in trees.words(nodes)], threads=1)
    return trees.to_ids(nodes, words, tokenizer.require("bos"), tokenizer.require("eos")).tolist()


def _answered(messages: Sequence[Message], answer: str, tokenizer: Tokenizer, template: Template | None) -> Parts:
    """A conversation and its last answer, which alone has loss, with its end."""
    parts = _parts(Messages((*messages, Message("assistant", answer))), tokenizer, template)
    said = len(list(itertools.takewhile(lambda part: part[1], reversed(parts))))
    return [*((part, False) for part, _ in parts[:-said]), *parts[-said:]]


def _turns(record: Messages, tokenizer: Tokenizer) -> Parts:
    last = max(i for i, turn in enumerate(record.messages) if turn.role == "assistant")
    roles = tokenizer.role_ids
    end = [roles["<|end|>"]] if "<|end|>" in roles else [tokenizer.require("eos")]
    parts: Parts = []
    for turn in record.messages[: last + 1]:
        mark, has_loss = f"<|{turn.role}|>", turn.role == "assistant"
        known = mark in roles and "<|end|>" in roles
        parts.append(([roles[mark]] if known else f"{turn.role}:", False))
        parts += [(turn.content if known else f" {turn.content}", has_loss), (end, has_loss)]
    return parts
