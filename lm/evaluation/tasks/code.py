"""Whether the functions that a model wrote pass their tests. The programs run in the sandbox of `lm.evaluation.sandbox`."""

import math
from collections.abc import Sequence
from typing import Any

from lm.evaluation import sandbox

CUTS = (1, 5, 10)  # k of pass@k


def pass_at(k: int, n: int, passed: int) -> float:
    """The chance that one of k samples passes, of n of which so many did: unbiased (arXiv 2107.03374, equation 1)."""
    return 1.0 - math.comb(n - passed, k) / math.comb(n, k)


def passed(doc: dict[str, Any], results: Sequence[Any]) -> dict[str, float]:
    """1 if the first program written for a question of HumanEval ends without an error, and 0 if it does not."""
    return {"pass_at_1": float(_passes(doc, results[0] if isinstance(results[0], str) else results[0][0]))}


def passed_of_several(doc: dict[str, Any], results: Sequence[Sequence[str]]) -> dict[str, float]:
    """pass@k of a question, estimated from all of its samples."""
    n, right = len(results[0]), sum(_passes(doc, written) for written in results[0])
    return {f"pass_at_{k}": pass_at(k, n, right) for k in CUTS if k <= n}


def _passes(doc: dict[str, Any], written: str) -> bool:
    return sandbox.run(f"{doc['prompt']}{written}\n{doc['test']}\ncheck({doc['entry_point']})\n").ok
