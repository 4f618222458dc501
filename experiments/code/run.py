"""What a small model of Python can do: completions that parse, functions that pass their tests, middles that are found.

  python -m experiments.code.run --from=runs/code --out=experiments/code

Completes the functions of `experiments.code.tasks` with and without the grammar of `experiments.code.grammar`, with the model
of a run, with the same model untrained, and with tokens that are drawn uniformly among those that the grammar allows. What is
written runs in `lm.evaluation.sandbox`. Writes results.json and prints a table in Markdown.
"""

import ast
import json
import re
import shlex
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.code import grammar
from experiments.code.tasks import Task, tasks
from lm import cli
from lm.config.ranges import Count
from lm.errors import UserError
from lm.evaluation.tasks.code import CUTS, pass_at

BEFORE, AFTER = 450, 200  # characters around a middle: about as much as a row of training has
UNFINISHED = re.compile(r"[^\n]*\Z")


@dataclass(frozen=True)
class Model:
    """A model and what it is asked with."""

    module: Any
    params: Any
    tokenizer: Any
    objective: Any
    slots: int = 16


# ------------------------------------------------------------------------------------------------------- what is measured


def body(written: str) -> tuple[str, bool]:
    """The function's body in a completion, and whether it has come to its end: a line that is not indented.

    One that has none is cut after its last complete line.
    """
    lines = written.split("\n")
    for i, line in enumerate(lines):
        if line and not line[0].isspace():
            return "\n".join(lines[:i]) + "\n", True
    return UNFINISHED.sub("", written), False


def parses(program: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(program)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def judged(asked: Sequence[Task], written: Sequence[Sequence[tuple[str, bool]]]) -> dict[str, Any]:
    """Shares over all samples, and pass@k over all tasks. `written`: for each task its samples, and whether the model ended
    them itself."""
    from lm.evaluation import sandbox

    known: dict[str, bool] = {}
    ended = valid = whole = 0
    passed, examples = [], []
    for task, samples in zip(asked, written, strict=True):
        right = 0
        for text, finished in samples:
            inside, over = body(text + "\n" if finished else text)
            program = task.program(inside)
            fine = bool(inside.strip()) and parses(task.prompt + inside)  # a docstring alone is no body
            over = over or finished
            ended, valid, whole = ended + over, valid + fine, whole + (over and fine)
            if fine and program not in known:
                known[program] = sandbox.run(program, seconds=2).ok
            right += fine and known[program]
            if fine and known[program]:
                examples.append(task.prompt + inside)
        passed.append(right)
    count, each = sum(map(len, written)), len(written[0])
    return {
        "samples": count,
        "ended": ended / count,
        "ended_and_parses": whole / count,
        "parses": valid / count,
        **{f"pass@{k}": float(np.mean([pass_at(k, each, right) for right in passed])) for k in CUTS if k <= each},
        "tasks_solved": sum(map(bool, passed)),
        "tasks": len(passed),
        "examples": sorted(set(examples), key=len)[:8],
    }


# ------------------------------------------------------------------------------------------------------------ who writes


def complete(m: Model, asked: Sequence[Task], constraint: Any, how: dict[str, Any]) -> list[list[tuple[str, bool]]]:
    """Samples of each task by the engine, as texts."""
    from lm.config import Sampling
    from lm.generation.engine import Request
    from lm.generation.text_engine import engine_for

    tokenizer = m.tokenizer
    sampling = Sampling(temperature=how["temperature"], seed=how["seed"])
    prompts = [np.concatenate([[tokenizer.bos_id], tokenizer.encode(task.prompt)]).astype(np.int32) for task in asked]
    requests = [Request(p, how["new_tokens"], sampling, samples=how["samples"], constraint=constraint) for p in prompts]
    engine = engine_for(requests, m.module, m.params, tokenizer, slots=m.slots, ends=[tokenizer.eos_id])
    of = lambda ids: (tokenizer.decode([i for i in ids if i != tokenizer.eos_id]), ids[-1] == tokenizer.eos_id)
    return [[of([w.token for w in some]) for some in samples] for samples in engine.write(requests)]


def uniform(m: Model, asked: Sequence[Task], constraint: Any, how: dict[str, Any]) -> list[list[tuple[str, bool]]]:
    """Each token drawn evenly among those that the grammar allows."""
    rng, eos = np.random.default_rng(how["seed"]), m.tokenizer.eos_id

    def one() -> tuple[str, bool]:
        walk, ids = constraint.begin(), []
        for _ in range(how["new_tokens"]):
            bits = np.unpackbits(walk.allowed().view(np.uint8), bitorder="little")
            token = int(rng.choice(np.flatnonzero(bits)))
            if token == eos:
                return m.tokenizer.decode(ids), True
            ids.append(token)
            walk.add(token)
        return m.tokenizer.decode(ids), False

    return [[one() for _ in range(how["samples"])] for _ in asked]


# --------------------------------------------------------------------------------------------------------------- middles


def middles(texts: Sequence[str], kind: str, count: int, seed: int) -> list[tuple[str, str, str]]:
    """(before, middle, after): a "word" of held-out code, or the "rest" of a line from one of its words on."""
    rng, out = np.random.default_rng(seed), []
    pattern = re.compile(r"[A-Za-z_]\w*" if kind == "word" else r"(?<![\w\"'#])[A-Za-z_]\w*[^\n#]{0,60}(?=\n)")
    while len(out) < count:
        text = texts[int(rng.integers(len(texts)))]
        found = [m for m in pattern.finditer(text) if m.start() > 100]
        if found:
            m = found[int(rng.integers(len(found)))]
            first, last = m.span()
            out.append((text[max(0, first - BEFORE) : first], text[first:last], text[last : last + AFTER]))
    return out


def found_middles(m: Model, kind: str, asked: Sequence[tuple[str, str, str]]) -> list[str]:
    """What the model puts between both sides, the likeliest tokens: its first word, or its first line.

    Training cuts a row at two places of the whole text, so that a middle is mostly of many lines and is seldom ended so soon.
    """
    from lm.generation.infill import infill
    from lm.objectives.prompts import MASK

    # A mark in the code itself would be another one.
    texts = [MASK.join(side.replace(MASK, "[mask]") for side in (before, after)) for before, _, after in asked]
    filled = infill(m.module, m.params, m.tokenizer, m.objective, texts, new_tokens=32, slots=m.slots)
    first = re.compile(r"\s*([A-Za-z_]\w*|)" if kind == "word" else r"([^\n]*)")
    return [first.match((f.spans or ("",))[0])[1].strip() for (f,) in filled]


def infilling(
    m: Model, untrained: Model, held_out: Sequence[str], trained: Sequence[str], how: dict[str, Any]
) -> dict[str, Any]:
    """Exact match of middles of held-out files, and its floors; the majority is that of the files of training."""
    out: dict[str, Any] = {}
    for kind in ("word", "rest"):
        asked = middles(held_out, kind, how["middles"], how["seed"])
        wanted = [middle.strip() for _, middle, _ in asked]
        usual = Counter(middle.strip() for _, middle, _ in middles(trained, kind, 2000, 1)).most_common(1)[0][0]
        share = lambda given, wanted=wanted: float(np.mean([a == b for a, b in zip(given, wanted, strict=True)]))
        out[kind] = {
            "middles": len(asked),
            "model": share(found_middles(m, kind, asked)),
            "untrained": share(found_middles(untrained, kind, asked)),
            "majority": share([usual] * len(asked)),
            "majority_is": usual,
            "empty": share([""] * len(asked)),
        }
    return out


def covered(constraint: Any, tokenizer: Any, texts: Sequence[str]) -> dict[str, int]:
    """How many bodies of functions at the top level of these files the grammar derives."""
    accepted = total = 0
    for inside in _bodies(texts):
        walk, fits = constraint.begin(), True
        for token in tokenizer.encode(inside):
            bits = walk.allowed()
            fits = bool(bits[token // 32] >> np.uint32(token % 32) & np.uint32(1))
            if not fits:
                break
            walk.add(int(token))
        eos = tokenizer.eos_id
        accepted += fits and bool(walk.allowed()[eos // 32] >> np.uint32(eos % 32) & np.uint32(1))
        total += 1
    return {"bodies": total, "in_grammar": accepted}


def _bodies(texts: Sequence[str]) -> Iterator[str]:
    """The bodies of functions, behind their docstrings."""
    for text in texts:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                tree = ast.parse(text)
        except SyntaxError:
            continue
        lines = text.split("\n")
        for node in tree.body:
            if not isinstance(node, ast.FunctionDef):
                continue
            start = (node.body[0].end_lineno or 0) if ast.get_docstring(node) else node.body[0].lineno - 1
            inside = "\n".join(lines[start : node.end_lineno]).lstrip("\n") + "\n"
            if inside.startswith("    "):
                yield inside


# --------------------------------------------------------------------------------------------------------------- command


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    cli.start_jax()
    import jax
    from flax import linen as nn

    from lm import saved
    from lm.data.corpus.prepare import prepare
    from lm.generation.grammar import Grammars
    from lm.models.transformer import Transformer
    from lm.types import Example, TokenStream

    source = saved.open(flags.source)
    if source.run is None or source.model.architecture != "decoder":
        raise UserError(f"--from={flags.source} is no run of a decoder; train one with configs/code.py")
    tokenizer, module = source.tokenizer(), Transformer(source.model)
    m = Model(module, source.params(device=jax.local_devices()[0]), tokenizer, source.run.objective)
    row = np.ones((1, 8), np.int32)
    fresh = jax.jit(lambda key: nn.unbox(module.init(key, Example(None, TokenStream(row, row, row), None, None)))["params"])
    untrained = Model(module, fresh(jax.random.key(flags.seed)), tokenizer, source.run.objective)
    data = prepare(source.run.data, progress=False)
    constraint = Grammars(tokenizer, vocab_size=source.model.vocab_size, eos=[tokenizer.eos_id]).lark(grammar.of_bodies())
    how = {name: getattr(flags, name) for name in ("variants", "samples", "new_tokens", "temperature", "middles", "seed")}
    asked = tasks(flags.seed, flags.variants)
    writers: dict[str, Callable[[], list[list[tuple[str, bool]]]]] = {
        "model": partial(complete, m, asked, None, how),
        "model, grammar": partial(complete, m, asked, constraint, how),
        "untrained": partial(complete, untrained, asked, None, how),
        "untrained, grammar": partial(complete, untrained, asked, constraint, how),
        "uniform tokens, grammar": partial(uniform, m, asked, constraint, how),
    }
    completions = {}
    for name, write in writers.items():
        completions[name] = judged(asked, write())
        print(f"{name}: { ({k: v for k, v in completions[name].items() if k != 'examples'}) }", file=sys.stderr, flush=True)
    held_out, trained = (
        [d.text for name in source.run.data.sources for d in data.documents(name, split) if len(d.text) > BEFORE]
        for split in ("holdout", "train")
    )
    results = {
        "command": f"python -m experiments.code.run {shlex.join(sys.argv[1:] if argv is None else argv)}",
        "step": source.step,
        "settings": how,
        "completions": completions,
        "infilling": infilling(m, untrained, held_out, trained, how),
        "grammar": covered(constraint, tokenizer, held_out),
    }
    if flags.out:
        (Path(flags.out) / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    return 0


def table(results: dict[str, Any]) -> str:
    """The results in Markdown."""
    cuts = [k for k in CUTS if f"pass@{k}" in results["completions"]["model"]]
    head = ["written by", "ended", "ended and parses", "parses", *(f"pass@{k}" for k in cuts), "tasks solved"]
    lines = [f"| {' | '.join(head)} |", f"|---{'|---:' * (len(head) - 1)}|"]
    for name, r in results["completions"].items():
        shares = (f"{r[key]:.3f}" for key in ("ended", "ended_and_parses", "parses", *(f"pass@{k}" for k in cuts)))
        lines.append(f"| {name} | {' | '.join(shares)} | {r['tasks_solved']} of {r['tasks']} |")
    lines += ["", "| middle of held-out code, exact | model | untrained | majority | empty |", "|---|---:|---:|---:|---:|"]
    for kind, r in results["infilling"].items():
        name = {"word": "a word", "rest": "the rest of a line"}[kind]
        lines.append(f"| {name} | " + " | ".join(f"{r[k]:.3f}" for k in ("model", "untrained", "majority", "empty")) + " |")
    return "\n".join(lines)


def parser() -> cli.Parser:
    p = cli.parser("experiments.code.run", __doc__)
    p.add_argument("--from", dest="source", required=True, metavar="FOLDER", help="workdir of a run of configs/code.py")
    p.add_argument("--out", metavar="FOLDER", help="where results.json is written")
    p.add_argument("--variants", hint=Count, default=1, help="of each task's template")
    p.add_argument("--samples", hint=Count, default=10, help="of each task")
    p.add_argument("--new_tokens", hint=Count, default=48, help="of a completion, at most")
    p.add_argument("--temperature", hint=float, default=0.6, help="of completions")
    p.add_argument("--middles", hint=Count, default=200, help="of held-out code, of each kind")
    p.add_argument("--seed", type=int, default=0, help="of the tasks and of all draws")
    return p


if __name__ == "__main__":
    cli.enter(main)
