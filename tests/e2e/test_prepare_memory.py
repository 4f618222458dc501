"""The memory that preparing takes, measured of a process of its own."""

import subprocess
import sys

LONG_LINE = """
import json, random, resource, sys
from pathlib import Path
from lm import config
from lm.data.corpus.prepare import prepare

folder, rng = Path(sys.argv[1]), random.Random(0)
base = "".join(rng.choice("the state of the union and congress people war peace law".split()) + " " for _ in range(2000))

def peak(name, texts, tokenizer):
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\\n" for text in texts))
    source = config.Source(kind="jsonl", path=str(path))
    settings = dict(tokenizer=tokenizer, cache=str(folder / name), dedup=config.Dedup(near=None))
    report = prepare(config.Data({name: source}, **settings), progress=False).report
    assert report["sources"][name]["bytes"] > sum(map(len, texts)) - 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

ours, given = config.Tokenizer(vocab_size=400), config.Tokenizer(path=str(folder / "tokenizer.json"))
long = [base * 400, base[:5000] + "fin"]
peak("little", [base, long[1]], ours)
before = peak("little", [base, long[1]], given)
print(len(long[0]) / 1024, *(peak(name, long, kind) - before for name, kind in (("ours", ours), ("given", given))))
"""


def test_a_line_of_megabytes_costs_a_few_times_its_size(tmp_path):
    """All of the process's memory, that of the tokenizers' libraries too: a tokenizer.json took 110 times the line."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    alphabet = {piece: i for i, piece in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    file = Tokenizer(models.BPE(alphabet, []))
    file.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    file.save(str(tmp_path / "tokenizer.json"))
    run = subprocess.run([sys.executable, "-c", LONG_LINE, str(tmp_path)], capture_output=True, text=True, check=True)
    size, ours, given = map(float, run.stdout.split())
    assert size > 3500 and ours < 50 * size and given < 80 * size
