"""How right answers are: classes by their scores, words by what is said."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np


def classified(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores [N, C] (log-probabilities, or logits) and labels [N] -> accuracy, and nll: nats an example, -log softmax over
    the C of them.
    """
    scores = np.asarray(scores, np.float64)
    top = scores.max(axis=1, keepdims=True)
    log_z = top[:, 0] + np.log(np.exp(scores - top).sum(axis=1))
    nll = log_z - scores[np.arange(len(labels)), labels]
    return {"accuracy": float((scores.argmax(axis=1) == labels).mean()), "nll": float(nll.mean())}


def words(text: str) -> list[str]:
    """What counts of an answer: no case, no punctuation, no articles (SQuAD, arXiv 1606.05250, section 6.1)."""
    plain = "".join(c for c in text.casefold() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def exact(said: str, answer: str) -> bool:
    return words(said) == words(answer)


def token_f1(said: str, answer: str) -> float:
    """Harmonic mean of precision and recall over the words of both, as bags; 1 where neither has any."""
    a, b = words(said), words(answer)
    if not a or not b:
        return float(a == b)
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b))


def qa_metrics(said: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """Exact match and F1, means over the answers."""
    pairs = list(zip(said, answers, strict=True))
    return {name: float(np.mean([f(s, a) for s, a in pairs])) for name, f in (("exact", exact), ("f1", token_f1))}
