"""Addition modulo a prime, as words: "17 + 45 = 9" modulo 53 (Power et al., arXiv 2201.02177, section 2).

The table has a line for each ordered pair. A pair and its mirror, 17 + 45 and 45 + 17, are both taught or both asked: otherwise
a model that learned nothing but that order does not matter would be right on most of the questions.
"""

import random
from functools import lru_cache

from experiments import languages


@lru_cache
def language(modulus: int = 53, taught: float = 0.7, seed: int = 0) -> languages.Language:
    """Files of records {"question": "17 + 45", "answer": "9"}: `taught`, a random share of the pairs, and `asked`, the others.
    The texts `train` and `heldout` are the same lines, written out."""
    pairs = [(a, b) for a in range(modulus) for b in range(a, modulus)]
    random.Random(f"pairs {seed}").shuffle(pairs)
    count = round(taught * len(pairs))
    parts = {"taught": pairs[:count], "asked": pairs[count:]}
    ordered = {name: sorted({p for a, b in part for p in ((a, b), (b, a))}) for name, part in parts.items()}
    records = {
        name: [{"question": f"{a} + {b}", "answer": f"{(a + b) % modulus}"} for a, b in part] for name, part in ordered.items()
    }
    texts = {name: [f"{r['question']} = {r['answer']}" for r in part] for name, part in records.items()}
    return languages.write(f"modular{modulus}", texts["taught"], texts["asked"], items=records)
