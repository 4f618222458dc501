"""Metrics of answers: accuracy of classes by their scores, exact match and F1 of written answers."""

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

Split = Callable[[str], list[str]]  # a text -> what is compared


def classified(scores: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Scores [N, C] (log-probabilities or logits) and labels int [N] -> of each example, float64 [N]: `accuracy`, which is 1 if
    the label has the highest score and otherwise 0, and `nll`, -log softmax(scores) at the label, in nats.
    """
    scores = np.asarray(scores, np.float64)
    top = scores.max(axis=1, keepdims=True)
    log_z = top[:, 0] + np.log(np.exp(scores - top).sum(axis=1))
    nll = log_z - scores[np.arange(len(labels)), labels]
    return {"accuracy": (scores.argmax(axis=1) == labels).astype(float), "nll": nll}


def words(text: str) -> list[str]:
    """The words that are compared: without case, punctuation and articles (SQuAD, arXiv 1606.05250, section 6.1)."""
    plain = "".join(c for c in text.casefold() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", plain).split()


def symbols(text: str) -> list[str]:
    """The white-space separated symbols as they are: to `words`, "a" and "the" are nothing, and "-" is "+"."""
    return text.split()


SPLIT: Mapping[str, Split] = {"words": words, "symbols": symbols}  # by `recipe.compare`


def exact(written: str, answer: str, *, split: Split = words) -> bool:
    return split(written) == split(answer)


def token_f1(written: str, answer: str, *, split: Split = words) -> float:
    """The harmonic mean of precision and recall over the words of both, counted with repetitions; 1 if neither has any."""
    a, b = split(written), split(answer)
    if not a or not b:
        return float(a == b)
    common = sum((Counter(a) & Counter(b)).values())
    return 2 * common / (len(a) + len(b))


def qa_metrics(written: Sequence[str], answers: Sequence[str], *, split: Split = words) -> dict[str, np.ndarray]:
    """`exact` match and `f1` of each answer, float64 [N]."""
    pairs = list(zip(written, answers, strict=True))
    return {name: np.array([f(s, a, split=split) for s, a in pairs], float) for name, f in (("exact", exact), ("f1", token_f1))}
