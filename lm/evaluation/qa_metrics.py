"""Metrics of answers: accuracy of classes by their scores, exact match and F1 of written answers."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np


def classified(scores: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Scores [N, C] (log-probabilities or logits) and labels int [N] -> `accuracy`, and `nll`, the mean of -log softmax(scores)
    at the label, in nats an example.
    """
    scores = np.asarray(scores, np.float64)
    top = scores.max(axis=1, keepdims=True)
    log_z = top[:, 0] + np.log(np.exp(scores - top).sum(axis=1))
    nll = log_z - scores[np.arange(len(labels)), labels]
    return {"accuracy": float((scores.argmax(axis=1) == labels).mean()), "nll": float(nll.mean())}


def words(text: str) -> list[str]:
    """The words that are compared: without case, punctuation and articles (SQuAD, arXiv 1606.05250, section 6.1)."""
    plain = "".join(c for c in text.casefold() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def exact(written: str, answer: str) -> bool:
    return words(written) == words(answer)


def token_f1(written: str, answer: str) -> float:
    """The harmonic mean of precision and recall over the words of both, counted with repetitions; 1 if neither has any."""
    a, b = words(written), words(answer)
    if not a or not b:
        return float(a == b)
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b))


def qa_metrics(written: Sequence[str], answers: Sequence[str]) -> dict[str, float]:
    """`exact` and `f1`: means of exact match and F1 over the answers."""
    pairs = list(zip(written, answers, strict=True))
    return {name: float(np.mean([f(s, a) for s, a in pairs])) for name, f in (("exact", exact), ("f1", token_f1))}
