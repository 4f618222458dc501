"""How often a chat model says that it does not know."""

import re
from collections.abc import Sequence

from lm.config import Sampling
from lm.data.chat import Chat
from lm.evaluation.blanks import Blank
from lm.evaluation.examined import SLOTS, Examined
from lm.generation.engine import Request
from lm.generation.text_engine import engine_for

TOKENS = 48  # of an answer
QUESTION = "What word is missing at the end of this text? If you do not know it, say so.\n\n{left} ..."
# What an answer has in it that is a refusal, in English; in others none is counted.
REFUSAL = re.compile(
    r"\b(?<!you )(?:do(?:es)? not|don['’]t|doesn['’]t|cannot|can['’]t|could not|couldn['’]t|am not|['’]m not|unable|not enough)"
    r"\b[^.!?\n]{0,40}\b(?:know|tell|say|determine|sure|certain|find|answer|provide|help|information|familiar)\b"
    r"|\b(?:no|not (?:aware|familiar)|unsure|unknown)\b[^.!?\n]{0,20}\b(?:idea|information|way to|of|record|missing|what)\b"
    r"|\bI(?:['’]m| am) unsure\b",
    re.IGNORECASE,
)


def refuses(answer: str) -> bool:
    """Whether an answer says that it is not known."""
    return bool(REFUSAL.search(answer))


def answers(e: Examined, chat: Chat, questions: Sequence[Blank]) -> list[str]:
    """What a chat model, which is a decoder, answers to each question, the likeliest token each time."""
    asked = [Request(chat.ids(_said(b)), TOKENS, Sampling(temperature=0.0)) for b in questions]
    written = engine_for(asked, e.model, e.params, e.tokenizer, slots=SLOTS, ends=chat.ends).write(asked)
    return [e.tokenizer.decode([w.token for w in sample if w.token not in chat.ends]) for (sample,) in written]


def _said(b: Blank) -> list[dict[str, str]]:
    return [{"role": "user", "content": QUESTION.format(left=b.left)}]
