"""Preparation: MB/s of text by stage beside datatrove, and the memory of its processes as a corpus grows.

  python -m experiments.speed.prepare --sizes=1000
  python -m experiments.speed.prepare --sizes=100,5000 --contenders=ours

The corpus is made: JSON lines of words by Zipf's law, a tenth of them copies, exact and near, a tenth mis-encoded. Both
contenders read it, repair it with ftfy, drop near copies by MinHash and write tokens of the same tokenizer.json, on all cores;
each is a process, and they take turns in every round. datatrove's stages: ftfy, signatures, buckets, clusters, filter, tokens.
Ours keeps the documents as text too, and holds out a share. The peak of memory is that of the process that takes most, without
pages of files, which the system takes back when it needs them. Prints a table and writes prepare.json next to this file.
datatrove 0.10.1 is no dependency: pip install datatrove spacy nltk tldextract 'xxhash<4'.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lm import cli
from lm.config.ranges import Count, Positive

ROOT = Path(__file__).parents[2]
CONTENDERS = ("ours", "datatrove")
SEED, WORDS, RECENT = 0, 60_000, 20_000  # of the corpus: its words, and the documents that copies are of
SYLLABLES = [c + v for c in "b c d f g h k l m n p r s t v w st tr ch th".split() for v in "a e i o u ea ou".split()]
VOCAB = 8192


# ----------------------------------------------------------------------------------------------------------- the corpus


def texts(size: float) -> Iterator[str]:
    """Documents of `size` bytes in all: the same ones, whatever comes after them."""
    rng = np.random.default_rng(SEED)
    words = np.array(
        ["".join(rng.choice(SYLLABLES, 1 + int(np.log2(i + 2) / 5) + rng.integers(2))) for i in range(WORDS)], object
    )
    cdf = np.cumsum(1 / (np.arange(WORDS) + 2.7))
    recent: list[str] = []
    made = 0
    while made < size:
        kind = rng.random()
        if recent and kind < 0.1:
            text = recent[rng.integers(len(recent))]
            if kind < 0.05:
                changed = text.split(" ")
                changed[rng.integers(len(changed))] = "changed"
                text = " ".join(changed)
        else:
            count = int(min(4000, max(20, rng.lognormal(5.6, 0.8))))
            text = _sentences(words[np.searchsorted(cdf / cdf[-1], rng.random(count))].tolist(), rng)
            recent.append(text)
            if len(recent) > RECENT:
                recent[rng.integers(RECENT)] = recent.pop()
        made += len(text.encode())
        yield text


def _sentences(words: list[str], rng: np.random.Generator) -> str:
    start = 0
    while start < len(words):
        end = min(len(words) - 1, start + int(rng.integers(6, 25)))
        words[start] = words[start].capitalize()
        words[(start + end) // 2] += "," * int(rng.random() < 0.3)
        words[end] += ".\n\n" if rng.random() < 0.15 else "."
        start = end + 1
    return ("It\u00e2\u20ac\u2122s " if rng.random() < 0.1 else "") + " ".join(words)


def write_corpus(folder: Path, size: float) -> int:
    """Writes JSON lines, in files of a quarter, and a tokenizer of the first of them. Returns the bytes of the texts."""
    folder.mkdir()
    quarter, total, number, held = size / 4, 0, 0, 0
    out = (folder / "0.jsonl").open("w", encoding="utf-8")
    for text in texts(size):
        if held > quarter:
            out.close()
            number, held = number + 1, 0
            out = (folder / f"{number}.jsonl").open("w", encoding="utf-8")
        out.write(json.dumps({"text": text, "id": str(total)}, ensure_ascii=False) + "\n")
        held, total = held + len(text.encode()), total + len(text.encode())
    out.close()
    return total


def write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts(4e6), trainer)
    tokenizer.save(str(path))


# -------------------------------------------------------------------------------------------------------- the contenders


def ours(folder: Path, out: Path, memory: float) -> dict[str, float]:
    """Seconds of each stage."""
    from lm import config
    from lm.data.corpus import build, executors
    from lm.data.corpus.prepare import prepare

    seconds: dict[str, float] = {}
    stage = build.Build._stage

    def timed(self: Any, name: str, make: Any) -> Any:
        start = time.monotonic()
        found = stage(self, name, make)
        seconds[name.split("/")[-1]] = seconds.get(name.split("/")[-1], 0.0) + time.monotonic() - start
        return found

    build.Build._stage = timed
    source = config.Source("jsonl", str(folder / "*.jsonl"))
    data = config.Data(
        {"texts": source}, tokenizer=config.Tokenizer(path=str(folder.parent / "tokenizer.json")), cache=str(out)
    )
    with executors.using("processes", int(memory * 1e9)):
        prepare(data, progress=False)
    return seconds


def datatrove(folder: Path, out: Path, memory: float) -> dict[str, float]:
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
    from datatrove.pipeline.dedup.minhash import MinhashConfig
    from datatrove.pipeline.formatters import FTFYFormatter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer
    from datatrove.pipeline.writers import JsonlWriter

    cores, place = os.cpu_count() or 1, lambda name: str(out / name)
    how = MinhashConfig()
    plain = dict(output_filename="${rank}.jsonl", compression=None)
    files = len(list(folder.glob("*.jsonl")))
    steps: dict[str, tuple[int, list[Any]]] = {
        "ftfy": (files, [JsonlReader(str(folder)), FTFYFormatter(), JsonlWriter(place("clean"), **plain)]),
        "signatures": (files, [JsonlReader(place("clean")), MinhashDedupSignature(place("signatures"), config=how)]),
        "buckets": (how.num_buckets, [MinhashDedupBuckets(place("signatures"), place("buckets"), config=how)]),
        "clusters": (1, [MinhashDedupCluster(place("buckets"), place("remove"), config=how)]),
        "filter": (
            files,
            [JsonlReader(place("clean")), MinhashDedupFilter(place("remove")), JsonlWriter(place("kept"), **plain)],
        ),
        "tokens": (
            files,
            [
                JsonlReader(place("kept")),
                DocumentTokenizer(
                    place("tokens"), str(folder.parent / "tokenizer.json"), eos_token="</s>", shuffle_documents=False
                ),
            ],
        ),
    }
    seconds = {}
    for name, (tasks, pipeline) in steps.items():
        start = time.monotonic()
        LocalPipelineExecutor(pipeline, tasks=tasks, workers=min(cores, tasks), logging_dir=place(f"logs/{name}")).run()
        seconds[name] = time.monotonic() - start
    return seconds


# ------------------------------------------------------------------------------------------------------------- measuring


class Memory(threading.Thread):
    """Watches the memory of a process and of those that it starts: the most that one of them took, in bytes, without files."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.peak, self.ended = pid, 0, threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.1):
            for pid in _family(self.pid):
                self.peak = max(self.peak, _anonymous(pid))


def _family(pid: int) -> list[int]:
    found = [pid]
    for one in found:
        try:
            found += map(int, Path(f"/proc/{one}/task/{one}/children").read_text(encoding="utf-8").split())
        except OSError:
            continue  # it ended meanwhile
    return found


def _anonymous(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


def measured(contender: str, folder: Path, memory: float) -> dict[str, Any]:
    """Seconds of each stage and of all, and the peak of memory, of a contender in a process of its own."""
    with tempfile.TemporaryDirectory(dir=folder.parent) as out:
        worker = [sys.executable, "-m", "experiments.speed.prepare", "--worker", contender, str(folder), out, str(memory)]
        start = time.monotonic()
        process = subprocess.Popen(worker, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        watch = Memory(process.pid)
        watch.start()
        said, error = process.communicate()
        seconds = time.monotonic() - start
        watch.ended.set()
    if process.returncode:
        raise SystemExit(f"{contender} failed: {error[-2000:]}")
    return {"stages": json.loads(said.splitlines()[-1]), "seconds": seconds, "peak": watch.peak}


def table(results: list[dict[str, Any]]) -> str:
    """A line for each contender and size: MB/s of text, of all and by stage, as medians over rounds, and the peak of memory."""
    lines = ["| MB | contender | MB/s | by stage, MB/s | peak GB |", "|---|---|---|---|---|"]
    for size, contender in dict.fromkeys((r["megabytes"], r["contender"]) for r in results):
        of = [r for r in results if (r["megabytes"], r["contender"]) == (size, contender)]
        speed = lambda seconds, size=size: f"{size / max(statistics.median(seconds), 1e-3):.2f}"
        stages = ", ".join(f"{name} {speed([r['stages'][name] for r in of])}" for name in of[0]["stages"])
        peak = max(r["peak"] for r in of) / 1e9
        lines.append(f"| {size:.0f} | {contender} | {speed([r['seconds'] for r in of])} | {stages} | {peak:.2f} |")
    return "\n".join(lines)


@cli.command
def main(argv: list[str] | None = None) -> int:
    flags = parser().parse(argv)
    if flags.worker:
        contender, folder, out, memory = flags.worker
        print(json.dumps({"ours": ours, "datatrove": datatrove}[contender](Path(folder), Path(out), float(memory))))
        return 0
    results = []
    folder = Path(tempfile.mkdtemp(dir=flags.folder))
    try:
        write_tokenizer(folder / "tokenizer.json")
        for size in map(float, flags.sizes.split(",")):
            corpus = folder / f"{size:g}"
            megabytes = write_corpus(corpus, size * 1e6) / 1e6
            for _ in range(flags.rounds):
                for contender in flags.contenders.split(","):
                    found = measured(contender, corpus, flags.memory)
                    results.append({"contender": contender, "megabytes": megabytes, **found})
                    print(f"{size:g} MB {contender}: {found['seconds']:.1f} s, {found['peak'] / 1e9:.2f} GB", flush=True)
            shutil.rmtree(corpus)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    about = {"cores": os.cpu_count(), "memory": flags.memory, "results": results}
    (ROOT / flags.out).write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    print(table(results))
    return 0


def parser() -> cli.Parser:
    p = cli.parser("experiments.speed.prepare", __doc__)
    p.add_argument("--sizes", default="100,1000", metavar="MB,...", help="megabytes of text (default %(default)s)")
    p.add_argument("--contenders", default=",".join(CONTENDERS), help="which take part (default %(default)s)")
    p.add_argument("--rounds", hint=Count, default=3, help="turns of each")
    p.add_argument("--memory", hint=Positive, default=0.25, metavar="GB", help="lm.prepare --memory")
    p.add_argument("--folder", metavar="FOLDER", help="for corpora and results while they are needed (default: /tmp)")
    p.add_argument("--out", default="experiments/speed/prepare.json", help="the results (default %(default)s)")
    p.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    return p


if __name__ == "__main__":
    cli.enter(main)
