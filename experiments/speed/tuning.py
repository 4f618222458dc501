"""Fine-tuning on a CPU: this library against `trl` on the same weights, conversations and questions.

  python -m experiments.speed.tuning --tasks=sft,sft_packed,grpo,grpo_kl --model=W2

A model of random weights (W2: a LLaMA of 14 M parameters; L135M: SmolLM2-135M). Tasks:

  sft         a step on 8 conversations, whose rows each pads as it does by default
  sft_packed  a step on 8 rows of packed conversations
  grpo        16 answers of up to 128 tokens to 2 questions, and the update by them
  grpo_kl     the same with a reference

In bfloat16 both keep float32 weights; trl has bfloat16 ones too (bfloat16_weights), which do not take small updates. Each
contender is a process, and they take turns in every round. Measured are tokens/s: of the conversations, without padding,
in a step; and of the answers, in the rollout and in the rest of the step, which has the reference's pass. Prints a table, and
writes tuning.json and tuning.md next to this file.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiments.speed.run import QUIET, check_known, machine, python_version
from experiments.speed.worker import ROOT, busy_elsewhere
from lm import cli

MODELS, TASKS = ("W2", "L135M"), ("sft", "sft_packed", "grpo", "grpo_kl")
CONTENDERS = {"trl": ("float32", "bfloat16", "bfloat16_weights"), "ours": ("float32", "bfloat16")}


def work(contender: str, task: str, folder: str, dtype: str) -> None:
    """A contender's process: a line with a number of steps is answered by a line of JSON with what they took."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    busy = busy_elsewhere()

    def answer(figures: dict[str, float]) -> int:
        nonlocal busy
        others = max(0.0, busy_elsewhere() - busy) / max(figures["seconds"], 1e-9)
        replies.write(json.dumps(figures | {"others": others}) + "\n")
        replies.flush()
        line = sys.stdin.readline()
        busy = busy_elsewhere()
        return int(line or 0)

    if contender == "trl":
        from experiments.speed.tuning_trl import Trl

        Trl(task, Path(folder), dtype).run(answer)
        return
    from experiments.speed.tuning_ours import Ours

    ours, steps = Ours(task, Path(folder), dtype), 1
    while steps:
        steps = answer(ours(steps))


class Process:
    """The parent's end. It has taken a step when it is there."""

    def __init__(self, python: str, *arguments: str) -> None:
        command = [python, "-m", "experiments.speed.tuning", "--worker", *arguments]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._read()

    def _read(self) -> dict[str, float]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(map(str, self._process.args))} ended with {self._process.wait()}; see above")
        return json.loads(line)

    def __call__(self, steps: int) -> dict[str, float]:
        assert self._process.stdin
        self._process.stdin.write(f"{steps}\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


def speeds(task: str, figures: dict[str, float]) -> dict[str, float]:
    """Tokens/s of each part of a round."""
    whole = figures["tokens"] / figures["seconds"]
    if not task.startswith("grpo"):
        return {"step": whole}
    parts = {"rollout": figures["rollout"], "update": figures["seconds"] - figures["rollout"]}
    return {"step": whole} | {name: figures["tokens"] / seconds for name, seconds in parts.items()}


def measure(task: str, processes: dict[str, Process], rounds: int, steps: int) -> dict[str, list[dict[str, float]]]:
    """Contender -> the tokens/s of each round, and how many cores others used."""
    for process in processes.values():
        process(1)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in processes}
    for i in range(rounds):
        names = [*processes]
        for name in names[i % len(names) :] + names[: i % len(names)]:
            figures = processes[name](steps)
            found[name].append(speeds(task, figures) | {"others": figures["others"]})
    return found


COLUMNS = ("model", "task", "part", "trl", "tokens/s", "ours", "tokens/s", "ours / trl", "range", "others")


def rows(result: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """A row for each part of a task: of each contender the dtype that it is faster with."""
    rounds = result["rounds"]
    median = lambda name, part: statistics.median(each[part] for each in rounds[name])
    for part in next(iter(rounds.values()))[0].keys() - {"others"}:
        best = {}
        for contender in CONTENDERS:
            names = [name for name in rounds if name.split()[0] == contender]
            best[contender] = max(names, key=lambda name: median(name, part)) if names else None
        cells = [c for name in best.values() for c in ((name.split()[1], f"{median(name, part):,.0f}") if name else ("", ""))]
        ratio = spread = ""
        if all(best.values()):
            each = [a[part] / b[part] for a, b in zip(rounds[best["ours"]], rounds[best["trl"]], strict=True)]
            ratio, spread = f"{statistics.median(each):.2f}", f"{min(each):.2f}-{max(each):.2f}"
        busy = max(median(name, "others") for name in best.values() if name)
        yield (result["model"], result["task"], part, *cells, ratio, spread, f"{busy:.2f}" + ("!" if busy > QUIET else ""))


def markdown(report: dict[str, Any]) -> str:
    m = report["machine"]
    lines = [f"{m['cpu']}, {m['cores']} cores; ours on {report['jax_python']}.", "", "| " + " | ".join(COLUMNS) + " |"]
    lines += ["|---|---|---|---|---:|---|" + "---:|" * 4]
    lines += ["| " + " | ".join(row) + " |" for result in report["results"] for row in sorted(rows(result))]
    return "\n".join(lines) + "\n"


def compare(task: str, folder: str, flags: argparse.Namespace) -> dict[str, Any]:
    pythons = {"ours": flags.jax_python, "trl": flags.torch_python}
    wanted = flags.contenders.split(",")
    names = [(c, d) for c, dtypes in CONTENDERS.items() if c in wanted for d in dtypes if d in flags.dtypes.split(",")]
    processes = {}
    try:
        for contender, dtype in names:
            processes[f"{contender} {dtype}"] = Process(pythons[contender], contender, task, folder, dtype)
        found = measure(task, processes, flags.rounds, flags.steps)
    finally:
        for process in processes.values():
            process.close()
    return {"model": flags.model, "task": task, "steps": flags.steps, "rounds": found}


@cli.command
def main(argv: list[str] | None = None) -> int:
    p = cli.parser("experiments.speed.tuning", __doc__)
    p.add_argument("--model", default="W2", choices=MODELS)
    p.add_argument("--tasks", default=",".join(TASKS))
    p.add_argument("--dtypes", default="float32,bfloat16,bfloat16_weights")
    p.add_argument("--contenders", default=",".join(CONTENDERS))
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--steps", type=int, default=1, help="of a contender in a round")
    p.add_argument("--jax-python", default=sys.executable, help="interpreter of ours")
    p.add_argument("--torch-python", default=sys.executable, help="interpreter of trl")
    p.add_argument("--folder", help="for the model and the data; by default one that is removed")
    p.add_argument("--out", type=Path, default=Path(__file__).with_name("tuning.json"))
    p.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    flags = p.parse(argv)
    if flags.worker:
        work(*flags.worker)
        return 0
    check_known(p, flags.tasks.split(","), TASKS)
    report = json.loads(flags.out.read_text(encoding="utf-8")) if flags.out.exists() else {"results": []}
    report |= {"machine": machine(), "jax_python": python_version(flags.jax_python)}
    with tempfile.TemporaryDirectory() as temporary:
        folder = flags.folder or temporary
        Path(folder).mkdir(exist_ok=True)
        if not (Path(folder) / "words.json").exists():
            code = "import sys; from pathlib import Path; from experiments.speed import tuning_data as d; "
            code += "d.make(Path(sys.argv[1]), sys.argv[2])"
            subprocess.run([flags.jax_python, "-c", code, folder, flags.model], cwd=ROOT, check=True)
        for task in flags.tasks.split(","):
            result = compare(task, folder, flags)
            kept = [r for r in report["results"] if (r["model"], r["task"]) != (flags.model, task)]
            report["results"] = [*kept, result]
            for row in sorted(rows(result)):
                print("| " + " | ".join(row) + " |", flush=True)
            flags.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            flags.out.with_suffix(".md").write_text(markdown(report), encoding="utf-8")
    print(f"{flags.out}, {flags.out.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    cli.enter(main)
