"""Questions about a text that is longer than a model reads: each part is asked, and the answers are combined (map and reduce).

reader = Reader(Document(text), ask, similarities, map_prompt=MAP, reduce_prompt=REDUCE, window=2000, overlap=200)
found = reader.answer("Who was elected?", top=4)
found.text, found.parts[0].quote.start
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lm.errors import UserError
from lm.talk.windows import Document, Part

MAP = (
    "Here is a part of a longer text.\n\n{text}\n\nQuestion: {question}\n\n"
    "Answer the question from this part alone, in one or two sentences. If the part does not answer it, write only: none"
)
REDUCE = (
    "Question: {question}\n\nParts of a text gave these answers:\n\n{answers}\n\n"
    "Combine them into one answer to the question, in one or two sentences."
)
MAP_SUMMARY = "Summarise this part of a longer text in one or two sentences.\n\n{text}"
REDUCE_SUMMARY = (
    "These are summaries of the parts of one text, in their order.\n\n{answers}\n\nSummarise the whole text in a few sentences."
)
NOTHING = "The text does not say."
NONE = re.compile(r"\W*none\W*", re.I)


@dataclass(frozen=True)
class Found:
    """What a part of the text answers, and the sentence of it that is nearest to this answer."""

    part: Part
    similarity: float | None  # of the part to the question; None: all parts are asked
    answer: str
    quote: Part


@dataclass(frozen=True)
class Answered:
    question: str | None  # None: a summary
    text: str
    parts: tuple[Found, ...]  # in the order of the text; those that answer nothing are left out
    asked: int  # parts

    def to_json(self) -> dict[str, Any]:
        place = lambda part: {"start": part.start, "stop": part.stop, "lines": list(part.lines)}
        out: dict[str, Any] = {"answer": self.text, "asked": self.asked}
        out |= {} if self.question is None else {"question": self.question}
        found = []
        for f in self.parts:
            similar = {} if f.similarity is None else {"similarity": round(f.similarity, 6)}
            found.append(place(f.part) | similar | {"answer": f.answer, "quote": {"text": f.quote.text} | place(f.quote)})
        return out | {"parts": found}


class Reader:
    """ask: a prompt -> what the model answers
    similarities: a question and parts' texts -> a number for each, the larger the more alike
    window, overlap: characters of a part, and those that it shares with the one before; answers that are combined in one prompt
        have about as many characters as a part
    note: is told what is being done
    """

    def __init__(
        self,
        document: Document,
        ask: Callable[[str], str],
        similarities: Callable[[str, Sequence[str]], Sequence[float]],
        *,
        map_prompt: str,
        reduce_prompt: str,
        window: int,
        overlap: int,
        note: Callable[[str], Any] = lambda text: None,
    ) -> None:
        if overlap >= window // 2:
            raise UserError(f"--overlap={overlap} is not below half of --window={window}: lower it")
        check_prompt(map_prompt, "--map_prompt", "text")
        check_prompt(reduce_prompt, "--reduce_prompt", "answers")
        self.document, self.ask, self.similarities = document, ask, similarities
        self.map_prompt, self.reduce_prompt, self.window, self.note = map_prompt, reduce_prompt, window, note
        self.parts = document.windows(window, overlap)
        if not self.parts:
            raise UserError("the file has no text: give one that has")

    def answer(self, question: str | None, *, top: int | None) -> Answered:
        """Answers a question from the `top` parts that are most like it (None: all of them); None: a summary."""
        chosen = self._chosen(question, top)
        found = []
        for number, (part, similarity) in enumerate(chosen, 1):
            self.note(f"part {number} of {len(chosen)}: lines {part.lines[0]:,}-{part.lines[1]:,}")
            said = self.ask(filled(self.map_prompt, text=part.text, question=question or "")).strip()
            if said and not NONE.fullmatch(said):
                found.append(Found(part, similarity, said, self.document.quote(part, said, question or "")))
        text = self._combined([f.answer for f in found], question) if found else NOTHING
        return Answered(question, text, tuple(found), len(chosen))

    def _chosen(self, question: str | None, top: int | None) -> list[tuple[Part, float | None]]:
        """Parts in the order of the text."""
        if question is None or top is None or top >= len(self.parts):
            return [(part, None) for part in self.parts]
        self.note(f"comparing {len(self.parts)} parts with the question")
        values = [float(x) for x in self.similarities(question, [part.text for part in self.parts])]
        best = sorted(sorted(range(len(values)), key=lambda i: (-values[i], i))[:top])
        return [(self.parts[i], values[i]) for i in best]

    def _combined(self, answers: list[str], question: str | None) -> str:
        """One answer of several: as many at a time as have room, until one is left."""
        while len(answers) > 1:
            self.note(f"combining {len(answers)} answers")
            combined = []
            for group in _groups(answers, self.window):
                listed = "\n".join(f"- {' '.join(answer.split())}" for answer in group)
                prompt = filled(self.reduce_prompt, answers=listed, question=question or "")
                combined.append(self.ask(prompt).strip() if len(group) > 1 else group[0])
            answers = combined
        return answers[0]


def _groups(answers: list[str], room: int) -> list[list[str]]:
    """Neighbours, in groups of two or more that have about `room` characters; the last may be a single one."""
    groups: list[list[str]] = [[]]
    for answer in answers:
        if len(groups[-1]) > 1 and sum(map(len, groups[-1])) + len(answer) > room:
            groups.append([])
        groups[-1].append(answer)
    return groups


def check_prompt(prompt: str, flag: str, needed: str) -> None:
    """Raises UserError if a prompt lacks the place for a text, or has a place for something else."""
    if f"{{{needed}}}" not in prompt:
        raise UserError(f"{flag} has no {{{needed}}}, which stands for what it is about: put it in")


def filled(prompt: str, **texts: str) -> str:
    """The prompt with texts in their places; what looks like a place in one of the texts is left alone."""
    values: Mapping[str, str] = texts
    return re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), prompt)
