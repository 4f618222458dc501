"""Generated tasks on letters, told in words: sets of `lm.data.corpus.generated`.

    told          first turn it round then add one : a c b d     e c d b      one or two operations, in several phrasings
    told_phrased  now turn it round then add one : a c b d       e c d b      a phrasing that no record of "told" has
    told_unseen   first swap the halves then swap the ends : a c b d   c d a b   two operations that no record of "told" joins
    untold, untold_unseen                        a c b d         e c d b      the same without the words

So "told_unseen" asks for what only the words say (FLAN, arXiv 2109.01652), and "untold" shows what is known without them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from lm.data.records import Pair

VERSION = 2  # of the sets; raise it to have them prepared again
LETTERS = "abcdefgh"
LENGTH = 4
Operation = Callable[[Sequence[int]], list[int]]
OPERATIONS: Mapping[str, Operation] = {
    "copy it": lambda x: [*x],
    "turn it round": lambda x: [*x[::-1]],
    "add one": lambda x: [(i + 1) % len(LETTERS) for i in x],
    "swap the halves": lambda x: [*x[LENGTH // 2 :], *x[: LENGTH // 2]],
    "swap the ends": lambda x: [x[-1], *x[1:-1], x[0]],
    "repeat the first": lambda x: [x[0]] * len(x),
}
PAIRS = [(a, b) for a in list(OPERATIONS)[1:] for b in list(OPERATIONS)[1:] if a != b]
# Of the pairs those that compute what no other task does: most operations commute, and a pair is its reverse then.
UNSEEN = [("swap the halves", "swap the ends"), ("swap the ends", "swap the halves"), ("swap the halves", "repeat the first")]
SINGLE = ("{}", "please {}", "now {}")
DOUBLE = ("first {} then {}", "please {} then {}")
PHRASED = "now {} then {}"
TRAINED, ASKED = 24_000, 500  # records of "told", and of each other set


def _records(tasks: Sequence[tuple[str, ...]], count: int, seed: int, *, told: bool, phrasing: str | None) -> Iterator[Pair]:
    rng = np.random.default_rng(seed)
    for _ in range(count):
        task = tasks[int(rng.integers(len(tasks)))]
        forms = SINGLE if len(task) == 1 else DOUBLE
        form = forms[int(rng.integers(len(forms)))] if phrasing is None else phrasing
        given = rng.integers(len(LETTERS), size=LENGTH).tolist()
        found = given
        for name in task:
            found = OPERATIONS[name](found)
        spelled = [" ".join(LETTERS[i] for i in some) for some in (given, found)]
        yield Pair(f"{form.format(*task)} : {spelled[0]}" if told else spelled[0], spelled[1])


def _set(kind: str, told: bool) -> Callable[[], Iterator[Pair]]:
    joined = [pair for pair in PAIRS if pair not in UNSEEN]
    if kind == "unseen":
        return lambda: _records(UNSEEN, ASKED, 1, told=told, phrasing=None)
    if kind == "phrased":
        return lambda: _records(joined, ASKED, 2, told=told, phrasing=PHRASED)
    return lambda: _records([*((name,) for name in OPERATIONS), *joined], TRAINED, 0, told=told, phrasing=None)


SETS: Mapping[str, Callable[[], Iterator[Pair]]] = {
    "told": _set("", True),
    "told_phrased": _set("phrased", True),
    "told_unseen": _set("unseen", True),
    "untold": _set("", False),
    "untold_unseen": _set("unseen", False),
}
