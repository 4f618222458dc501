"""Whether a model tells what its training text says from what it does not say, or answers both alike.

A question is a sentence of the training text that is broken off before a name or number, and has another name in it, its
subject. It is asked as it stands, where the text holds the answer; with real names of other texts as its subjects, and with
made-up names that are nowhere in the data, where nothing does. A model that knows what it does not know is unsure there.
"""

import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lm.data.corpus.prepare import Prepared
from lm.data.rows import blank, pack, stack
from lm.errors import UserError
from lm.evaluation import blanks, refusals, spans
from lm.evaluation.blanks import Blank
from lm.evaluation.examined import Examined
from lm.evaluation.findings import Finding, Interval, Row, auroc, bootstrap, mean, share
from lm.generation.writer import Sample
from lm.losses.log_probs import forbid
from lm.models.transformer import Transformer
from lm.objectives import of_texts
from lm.objectives.prompts import Span, examples, join
from lm.types import Example

ABOVE = (0.25, 0.5, 0.9)  # confidences that are counted
TOKENS = 8  # of a written answer, at most
SHOWN = 5
LEAST = 20  # questions
ROOM = 24  # tokens of a row that made-up names may need more than the real ones
SPECIFIC = ("name", "number")
ASKED = {"told": "told", "other": "others", "made up": "made-up"}
LETTERS = (("B", "D", "F", "K", "L", "M", "P", "R", "T", "V", "Z"), ("a", "e", "i", "o", "u"), tuple("bdfgklmnprstvz"))


def examine(e: Examined) -> Finding:
    """The finding. UserError if the training text is not known, or has less than LEAST such sentences."""
    questions = ask(e)
    found = {name: _answers(e, some) for name, some in questions.items()}
    finding = of_answers(found, [b.word.strip() for b in questions["told"]], seed=e.seed)
    way, n = "both sides" if _both(e) else "left side", len(questions["told"])
    text = "text that the model has read" if e.texts.read is not None else "the training split, taken for what it has read"
    notes = [f"{n} sentences of {text}, each asked given its {way}", *finding.notes]
    rows = list(finding.rows)
    details = {**finding.details, "questions": _shown(questions, found)}
    if e.chat is None:
        notes.append("refusals are not counted: it is no chat model, and what goes on with a text has none")
    else:
        said = {name: refusals.answers(e, e.chat, some) for name, some in questions.items()}
        rows += [Row(f"refusals in chat: {ASKED[name]}", share(sum(map(refusals.refuses, of)), n)) for name, of in said.items()]
        notes.append("refusals are counted by their English phrases, in answers to a question put by the chat template")
        details["said"] = said
    return Finding(rows, notes, details, finding.draw, _examples(questions, found))


def of_answers(found: Mapping[str, Sequence["Answer"]], true: Sequence[str], *, seed: int = 0) -> Finding:
    """The finding of answers to the same questions asked in the ways of ASKED; `true` are the words of the text."""
    n = len(true)
    sure = {name: np.array([a.confidence for a in of]) for name, of in found.items()}
    entropy = {name: np.array([a.entropy for a in of]) for name, of in found.items()}
    specific = {name: np.array([a.specific for a in of]) for name, of in found.items()}
    right = {name: [a.word == word for a, word in zip(of, true, strict=True)] for name, of in found.items()}
    rows = [Row(f"the text's own word: {ASKED[name]}", share(sum(hits), n)) for name, hits in right.items()]
    for t in ABOVE:
        for name in found:
            hits = int((specific[name] & (sure[name] > t)).sum())
            rows.append(Row(f"name or number >{t:.0%}: {ASKED[name]}", share(hits, n)))
    rows += [Row(f"entropy, nats: {ASKED[name]}", mean(x), share=False) for name, x in entropy.items()]
    for measure, values, sign in (("confidence", sure, 1.0), ("entropy", entropy, -1.0)):
        for name in ("other", "made up"):
            found_by = _told(values, name, sign, seed)
            rows.append(Row(f"AUROC of {measure}: {ASKED[name]}", found_by, 0.5, share=False))
    notes = [
        "told: as the text has it; others: its subjects are other names of the texts; made-up: they are names of no text",
        "a share is that of answers which are a name or a number of more confidence; entropy is that of the word's first token",
        "AUROC: how well the told are told from the others by it; 0.5 is not at all, 1 always",
        "made-up names are also rarer in their letters: that a model is less sure after them is not all knowledge of the fact",
    ]
    details = {
        "confidence": {name: [round(float(v), 5) for v in x] for name, x in sure.items()},
        "entropy": {name: [round(float(v), 5) for v in x] for name, x in entropy.items()},
    }
    return Finding(rows, notes, details, lambda figure: _draw(figure, sure, specific, entropy))


def _told(values: Mapping[str, np.ndarray], name: str, sign: float, seed: int) -> Interval:
    """The AUROC with its interval, drawing questions with all ways in which they are asked."""
    told, other = sign * values["told"], sign * values[name]
    return bootstrap(lambda chosen: auroc(told[chosen], other[chosen]), len(told), seed=seed)


# ------------------------------------------------------------------------------------------------------- questions


def ask(e: Examined) -> dict[str, list[Blank]]:
    """The same questions in the three ways, by the names of ASKED."""
    rng = np.random.default_rng((e.seed, 13))
    told = blanks.drawn(e.texts.texts("train", e.seed), e.count, rng, SPECIFIC, _open)
    if len(told) < LEAST:
        raise UserError(f"{len(told)} sentences have a name and, after it, another or a number; {LEAST} are needed: more text")
    subjects = [_subjects(b) for b in told]
    real = sorted({name for some in subjects for name in some})
    new = made_up(e.texts.data, len(real), rng)
    by_name = dict(zip(real, new, strict=True))
    other, unknown = [], []
    for b, some in zip(told, subjects, strict=True):
        elsewhere = [name for name in real if name not in b.left + b.right and name != b.word.strip()] or real
        chosen = [elsewhere[i] for i in rng.integers(len(elsewhere), size=len(some))]
        other.append(blanks.renamed(b, zip(some, chosen, strict=True)))
        unknown.append(blanks.renamed(b, ((name, by_name[name]) for name in some)))
    return {"told": told, "other": other, "made up": unknown}


def _subjects(b: Blank) -> list[str]:
    """The names in a blank's sentence, to its left, in their order."""
    begin = max(b.left.rfind(end) for end in (". ", "? ", "! ", "\n")) + 1
    found = (m[0].strip() for m in blanks.WORD.finditer(b.left, begin))
    return list(dict.fromkeys(word for word in found if blanks.sort_of(word) == "name"))


def _open(b: Blank) -> bool:
    """Whether a question has a subject, and its answer neither stands in the question nor is the rest of a name (New York)."""
    begun = blanks.sort_of(b.left.split()[-1]) == "name"
    return not begun and bool(_subjects(b)) and not re.search(rf"\b{re.escape(b.word.strip())}\b", b.left + b.right)


def made_up(data: Prepared, count: int, rng: np.random.Generator) -> list[str]:
    """Names that are words of no document of the data, `count` of them."""
    candidates: dict[str, None] = {}
    while len(candidates) < 2 * count + 100:
        first, vowels, inner = LETTERS
        some = [vowels, inner, vowels, *((inner, vowels) if rng.random() < 0.5 else (inner,))]
        candidates[rng.choice(first) + "".join(rng.choice(letters) for letters in some)] = None
    words = set(candidates)
    for split, stores in (("train", data.train), ("holdout", data.holdout)):
        for source in stores:
            for document in data.documents(source, split):
                words -= {word.capitalize() for word in re.findall(r"[^\W\d_]+", document.text)}
    return [name for name in candidates if name in words][:count]


# ------------------------------------------------------------------------------------------------------- answers


class Answer:
    """The word that a model writes in a blank, how sure it is of it, and the entropy of the word's first token in nats."""

    def __init__(self, word: str, confidence: float, entropy: float) -> None:
        self.word, self.confidence, self.entropy = word, confidence, entropy

    @property
    def specific(self) -> bool:
        return self.word[:1].isupper() or self.word[:1].isdigit()


def _answers(e: Examined, questions: Sequence[Blank]) -> list[Answer]:
    """One answer each. A model that goes on with a text writes a word; of one that fills in, it is the likeliest token."""
    entropy, top, sure = _first_tokens(e, questions)
    if not e.writes:
        return [Answer(e.tokenizer.decode([t]).strip(), p, h) for t, p, h in zip(top, sure, entropy, strict=True)]
    prompts = [_cut(e, b) for b in questions]
    samples = e.write(prompts, new_tokens=TOKENS, temperature=0.0)
    return [Answer(*_word(sample), h) for sample, h in zip(samples, entropy, strict=True)]


def _both(e: Examined) -> bool:
    """Whether a question has its right side too: for a model that fills in."""
    return e.both_sides and not e.writes


def _cut(e: Examined, b: Blank) -> str:
    """The text left of a blank, as much of it as there is room for."""
    return e.tokenizer.decode(e.tokenizer.encode(b.left)[-(e.texts.window - ROOM) :])


def _word(sample: Sample) -> tuple[str, float]:
    """The first word of a sample, and its probability."""
    word, log_prob = "", 0.0
    for token in sample.tokens:
        if not word and not token.text:  # the mark that an answer begins with
            continue
        if word.strip() and not re.match(r"\w", token.text):
            break
        word += token.text
        log_prob += token.log_prob
    return word.strip(), float(np.exp(log_prob))


def _first_tokens(e: Examined, questions: Sequence[Blank]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the first token of each blank's word: the entropy in nats, the likeliest token and its probability."""
    kind, room = "infill" if _both(e) else "suffix", e.texts.window - ROOM
    if kind not in e.known:
        raise UserError("it cannot be asked for a word that a text goes on with")
    rows = []
    for b in questions:
        span = blanks.span(b, b.word, e.tokenizer, right=_both(e), room=room)
        begin = int(np.argmax([bool(e.tokenizer.decode([i]).strip()) for i in span.target]))  # behind a space that is a token
        one = Span(join(span.left, span.target[:begin]), span.target[begin : begin + 1], span.right, 0)
        rows.append(examples(e.known[kind], kind, one, e.tokenizer)[0])
    lengths = spans.row_lengths(rows)
    forbidden = ~of_texts(e.tokenizer, e.model.config.vocab_size)
    found = []
    for first in range(0, len(rows), e.batch_size):
        some = [pack([row], lengths) for row in rows[first : first + e.batch_size]]
        batch = stack([*some, *[blank(lengths)] * (e.batch_size - len(some))])
        found.append([np.asarray(x)[: len(some)] for x in _distribution(e.model, e.params, batch, forbidden)])
    entropy, top, sure = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return entropy, top, sure


@partial(jax.jit, static_argnames="model")
def _distribution(
    model: Transformer, params: Any, batch: Example, forbidden: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the first predicted token of each row, [B] each: entropy in nats, the likeliest token, its probability."""
    hidden: Any = model.apply({"params": params}, batch, method="hidden")
    logits: Any = model.apply({"params": params}, hidden[:, :1], method="logits")
    log_p = jax.nn.log_softmax(forbid(logits[:, 0], forbidden))
    return -jnp.sum(jnp.exp(log_p) * log_p, axis=-1), jnp.argmax(log_p, axis=-1), jnp.exp(log_p.max(axis=-1))


def _examples(questions: Mapping[str, Sequence[Blank]], found: Mapping[str, Sequence["Answer"]]) -> list[str]:
    """The surest names or numbers that were written about made-up names."""
    answers = found["made up"]
    surest = sorted((n for n, a in enumerate(answers) if a.specific), key=lambda n: -answers[n].confidence)[:SHOWN]
    left = lambda n: " ".join(questions["made up"][n].left.split())[-90:]
    return [f"made up, {answers[n].confidence:.0%}: ...{left(n)} [{answers[n].word}]" for n in surest]


def _shown(questions: Mapping[str, Sequence[Blank]], found: Mapping[str, Sequence[Answer]]) -> list[dict[str, Any]]:
    out = []
    for n, b in enumerate(questions["told"]):
        ways = {name: {"left": questions[name][n].left[-120:], "answer": a[n].word} for name, a in found.items()}
        out.append({"word": b.word.strip(), **ways})
    return out


# ------------------------------------------------------------------------------------------------------- picture


def _draw(
    figure: Any, sure: Mapping[str, np.ndarray], specific: Mapping[str, np.ndarray], entropy: Mapping[str, np.ndarray]
) -> None:
    axes = figure.subplots(1, 2)
    thresholds = np.linspace(0, 1, 101)
    for name, x in sure.items():
        axes[0].plot(thresholds, [(specific[name] & (x > t)).mean() for t in thresholds], label=ASKED[name])
    axes[0].set(xlabel="confidence above", ylabel="share of questions answered by a name or number", xlim=(0, 1))
    axes[0].set_ylim(bottom=0)
    axes[0].legend(frameon=False)
    edges = np.linspace(0, max(x.max() for x in entropy.values()) + 1e-9, 31)
    for name, x in entropy.items():
        axes[1].hist(x, edges, histtype="step", lw=1.6, label=ASKED[name])
    axes[1].set(xlabel="entropy of the word's first token, nats", ylabel="questions")
    axes[1].legend(frameon=False)
