"""Twenty of the campaign's injections, of every kind; `python -m tests.campaign` does all."""

import pytest

from tests.campaign.__main__ import INJECTIONS
from tests.campaign.bench import Bench

CHOSEN = (
    "config: `optimizer.b2=1.0`",
    "config: `model.width=33`",
    "config: `data.dedup.near=5.0` under --dry_run",
    "config: `data.sources.tiny.weight=1e999`",
    "config file: `none.py`",
    "side file: metrics.jsonl: a byte above 127",
    "side file: goodput.jsonl: a last line cut short",
    "side file: samples.jsonl: a folder",
    "checkpoint: metrics: not JSON",
    "checkpoint: 8 renamed to 12",
    "checkpoint: checkpoints/ gone",
    "data cache: tokenizer.model: a bit flipped",
    "data cache: report.json: empty",
    "corpus: UTF-16",
    "corpus: deep nesting, skipped",
    "workdir: `a\\b/r`",
    "conversion: an index that leaves the folder",
    "conversion: a tensor in two files",
    "signal: SIGTERM before anything is prepared",
    "surroundings: standard error on a full disk",
)
BY_NAME = {f"{i.area}: {i.name}": i for i in INJECTIONS}


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    bench = Bench(tmp_path_factory.mktemp("campaign") / "root")
    yield bench
    bench.close()


@pytest.mark.parametrize("name", CHOSEN)
def test_what_must_hold_does(bench, name):
    assert BY_NAME[name].run(bench)
