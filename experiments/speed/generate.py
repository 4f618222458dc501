"""Greedy decoding on a CPU, or on a GPU if there is one: this library's engine against `transformers` on the same weights.

  python -m experiments.speed.generate --models=W1,W2,L135M --batches=1,16

Models of random weights: W1 and W2 are GPT-2's with the sizes of `workloads.py`, L135M is the LLaMA of SmolLM2-135M. Each
contender is a process; they take turns in every round. Measured are decoded tokens/s, from the time that 128 tokens take
more than one, after a prompt of 32; and the time to the first token after a prompt of 512. The greedy tokens of both are
compared. Prints a table, and writes generate.json and generate.md next to this file.
"""

import argparse
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from experiments.speed.run import QUIET, check_known, machine, python_version
from experiments.speed.worker import ROOT, busy_elsewhere
from experiments.speed.workloads import VOCAB, WORKLOADS
from lm import cli

MODELS = ("W1", "W2", "L135M")
CONTENDERS = ("transformers", "ours")
PROMPT, NEW, LONG = 32, 128, 512  # tokens
POSITIONS = 1024
Generate = Callable[[np.ndarray, int], np.ndarray]  # prompts int32 [B, T], new tokens -> int32 [B, N]


# ------------------------------------------------------------------------------------------------------- contenders


def save(name: str, folder: str) -> None:
    """Writes a model of random weights as transformers does."""
    import torch
    import transformers as hf

    torch.manual_seed(0)
    if name == "L135M":
        from lm.models.presets.llama import SMOLLM2_135M as of

        block = of.decoder.blocks["L"]
        settings = dict(num_attention_heads=9, num_key_value_heads=3, rope_theta=100_000.0, tie_word_embeddings=True)
        sizes = dict(hidden_size=of.width, intermediate_size=block.ffn.hidden, num_hidden_layers=of.decoder.num_layers)
        ends = dict(bos_token_id=None, eos_token_id=None, max_position_embeddings=POSITIONS)
        model = hf.LlamaForCausalLM(hf.LlamaConfig(vocab_size=of.vocab_size, **settings, **sizes, **ends))
    else:
        w = WORKLOADS[name]
        sizes = dict(n_embd=w.width, n_layer=w.layers, n_head=w.heads, n_positions=POSITIONS)
        model = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=VOCAB, bos_token_id=None, eos_token_id=None, **sizes))
    model.save_pretrained(folder)


def theirs(folder: str, dtype: str) -> Generate:
    import torch
    import transformers as hf

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = hf.AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype)).eval().to(device)

    def generate(prompts: np.ndarray, new: int) -> np.ndarray:
        ids = torch.from_numpy(prompts.astype(np.int64)).to(device)
        settings: dict[str, Any] = dict(max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
        with torch.inference_mode():
            out = model.generate(ids, attention_mask=torch.ones_like(ids), **settings)
        return out[:, prompts.shape[1] :].cpu().numpy()

    return generate


def ours(folder: str, dtype: str) -> Generate:
    from lm import startup

    startup.before_jax()
    from dataclasses import replace

    import jax

    from lm import conversion
    from lm.config import Sampling
    from lm.generation.engine import Engine, Request
    from lm.models.transformer import Transformer

    imported = conversion.read(Path(folder))
    params = jax.device_put(jax.tree.map(lambda x: np.asarray(x, dtype), imported.params))
    model = Transformer(replace(imported.model, dtype=dtype, param_dtype=dtype))
    engines: dict[Any, Engine] = {}

    def generate(prompts: np.ndarray, new: int) -> np.ndarray:
        slots, length = prompts.shape
        room = length + NEW
        if (slots, room) not in engines:
            engines[slots, room] = Engine(model, params, slots=slots, length=room, steps=32)
        engine, greedy = engines[slots, room], Sampling(temperature=0.0)
        requests = [Request(prompt, new, greedy) for prompt in prompts]
        for request in requests:
            engine.submit(request)
        texts: dict[int, list[int]] = {id(request): [] for request in requests}
        for written in engine.run():
            texts[id(written.request)].append(written.token)
        return np.array([texts[id(request)] for request in requests])

    return generate


def work(contender: str, folder: str, dtype: str) -> None:
    """A contender's process: answers lines of JSON, {"batch", "prompt", "new"}, with the seconds and the tokens."""
    import os

    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    generate = (ours if contender == "ours" else theirs)(folder, dtype)
    for line in sys.stdin:
        asked = json.loads(line)
        prompts = np.random.default_rng(asked["seed"]).integers(3, VOCAB, (asked["batch"], asked["prompt"])).astype(np.int32)
        start, elsewhere = time.perf_counter(), busy_elsewhere()
        tokens = generate(prompts, asked["new"])
        seconds = time.perf_counter() - start
        others = max(0.0, busy_elsewhere() - elsewhere) / seconds
        replies.write(json.dumps({"seconds": seconds, "others": others, "tokens": tokens.tolist()}) + "\n")
        replies.flush()


class Process:
    """The parent's end."""

    def __init__(self, python: str, *arguments: str) -> None:
        command = [python, "-m", "experiments.speed.generate", "--worker", *arguments]
        self._process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __call__(self, **asked: int) -> dict[str, Any]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{' '.join(map(str, self._process.args))} ended with {self._process.wait()}; see above")
        return json.loads(line)

    def close(self) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait()


# ------------------------------------------------------------------------------------------------------ measurement


def measure(processes: dict[str, Process], batch: int, rounds: int) -> dict[str, dict[str, list[float]]]:
    """Contender -> "decode" (tokens/s), "first" (seconds; batch 1 alone), "others" (cores) of each round, and "same": the share
    of rows whose tokens are those of the first contender."""
    found: dict[str, dict[str, list[float]]] = {
        name: {"decode": [], "first": [], "others": [], "same": []} for name in processes
    }
    for i in range(-1, rounds):  # the first round compiles
        turn = max(i, 0) % len(processes)
        names = [*processes][turn:] + [*processes][:turn]
        tokens: dict[str, Any] = {}
        for name in names:
            ask = partial(processes[name], batch=batch, seed=i + 1)
            one, many = ask(prompt=PROMPT, new=1), ask(prompt=PROMPT, new=NEW)
            first = ask(prompt=LONG, new=1)["seconds"] if batch == 1 else 0.0
            tokens[name] = many["tokens"]
            if i >= 0:
                speed = batch * (NEW - 1) / (many["seconds"] - one["seconds"])
                for key, value in (("decode", speed), ("first", first), ("others", many["others"])):
                    found[name][key].append(value)
        if i >= 0:
            for name in names:
                rows = zip(tokens[name], tokens[CONTENDERS[0]] if CONTENDERS[0] in tokens else tokens[name], strict=True)
                found[name]["same"].append(statistics.mean(a == b for a, b in rows))
    return found


COLUMNS = ("model", "batch", "contender", "tokens/s", "ours / theirs", "range", "first token, ms", "same texts", "others")


def cells(result: dict[str, Any]) -> list[tuple[str, ...]]:
    """Rows of the table. A ratio is of one round, with the dtype that each contender is faster with."""
    best = {}
    for contender in CONTENDERS:
        by_dtype = {d: of[contender] for d, of in result["dtypes"].items() if contender in of}
        if by_dtype:
            best[contender] = max(by_dtype, key=lambda d: statistics.median(by_dtype[d]["decode"]))
    of = lambda contender, d: result["dtypes"][d][contender]
    rows = []
    for d, contender in itertools.product(result["dtypes"], best):
        some = of(contender, d)
        first = f"{statistics.median(some['first']) * 1e3:.0f}" if any(some["first"]) else ""
        busy = statistics.median(some["others"])
        ratio = spread = ""
        if contender == "ours" and len(best) == 2:
            with_dtype = best if d == best["ours"] else {"ours": d, "transformers": d}
            each = [
                a / b
                for a, b in zip(
                    of("ours", with_dtype["ours"])["decode"],
                    of("transformers", with_dtype["transformers"])["decode"],
                    strict=True,
                )
            ]
            better = f" ({with_dtype['ours']} against {with_dtype['transformers']})" if d == best["ours"] else ""
            ratio, spread = f"{statistics.median(each):.2f}{better}", f"{min(each):.2f}-{max(each):.2f}"
        speed = f"{statistics.median(some['decode']):,.0f}"
        same = f"{statistics.mean(some['same']):.0%}"
        label = f"{contender} {d}"
        shown = f"{busy:.2f}" + ("!" if busy > QUIET else "")
        rows.append((result["model"], str(result["batch"]), label, speed, ratio, spread, first, same, shown))
    return rows


def markdown(report: dict[str, Any]) -> str:
    m = report["machine"]
    return "\n".join(
        [
            f"{m['cpu']}, {m['cores']} cores; {report['rounds']} rounds; ours on {report['jax_python']}.",
            "",
            "| " + " | ".join(COLUMNS) + " |",
            "|" + "---|---:|---|" + "---:|" * (len(COLUMNS) - 3),
            *("| " + " | ".join(row) + " |" for result in report["results"] for row in cells(result)),
            "",
        ]
    )


def compare(name: str, flags: argparse.Namespace, report: dict[str, Any]) -> None:
    """Measures a model with all dtypes and batches; each result is written when it is there."""
    pythons = {"ours": flags.jax_python, "transformers": flags.torch_python}
    with tempfile.TemporaryDirectory() as folder:
        code = f"from experiments.speed.generate import save; save({name!r}, {folder!r})"
        subprocess.run([flags.torch_python, "-c", code], cwd=ROOT, check=True)
        every = {
            d: {c: Process(pythons[c], c, folder, d) for c in flags.contenders.split(",")} for d in flags.dtypes.split(",")
        }
        try:
            for batch in flags.batches:
                dtypes = {d: measure(processes, batch, flags.rounds) for d, processes in every.items()}
                result = {"model": name, "batch": batch, "dtypes": dtypes}
                report["results"].append(result)
                for row in cells(result):
                    print("| " + " | ".join(row) + " |", flush=True)
                flags.out.write_text(json.dumps(report, indent=1) + "\n")
                flags.out.with_suffix(".md").write_text(markdown(report))
        finally:
            for processes in every.values():
                for process in processes.values():
                    process.close()


@cli.command
def main(argv: list[str] | None = None) -> int:
    p = cli.parser("experiments.speed.generate", __doc__)
    p.add_argument("--models", default=",".join(MODELS))
    p.add_argument("--dtypes", default="float32,bfloat16")
    p.add_argument("--batches", type=lambda text: [int(n) for n in text.split(",")], default=[1, 16])
    p.add_argument("--contenders", default=",".join(CONTENDERS))
    p.add_argument("--rounds", type=int, default=5)
    p.add_argument("--jax-python", default=sys.executable, help="interpreter of ours")
    p.add_argument("--torch-python", default=sys.executable, help="interpreter of transformers")
    p.add_argument("--out", type=Path, default=Path(__file__).with_name("generate.json"))
    p.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    flags = p.parse(argv)
    if flags.worker:
        work(*flags.worker)
        return 0
    check_known(p, flags.models.split(","), MODELS)
    report: dict[str, Any] = {"machine": machine(), "rounds": flags.rounds}
    report |= {"jax_python": python_version(flags.jax_python), "results": []}
    for name in flags.models.split(","):
        compare(name, flags, report)
    print(f"{flags.out}, {flags.out.with_suffix('.md')}")
    return 0


if __name__ == "__main__":
    cli.enter(main)
