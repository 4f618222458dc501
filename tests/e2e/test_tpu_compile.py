"""`tpu.compile` with libtpu: a small decoder for eight v5e chips, its report against sums done by hand.

Skipped where there is no libtpu: install `jax[tpu]`, or name a libtpu.so in LM_LIBTPU. XLA takes no pains here.
"""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import HANGS

CONFIG = Path(__file__).parent / "tiny_pod.py"
LIBRARY = os.environ.get("LM_LIBTPU")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not LIBRARY and importlib.util.find_spec("libtpu") is None, reason="no libtpu"),
]
LAYERS, WIDTH, HIDDEN, VOCAB, LENGTH, ROWS, DEVICES = 2, 256, 1024, 2048, 256, 16, 8


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Runs it; returns the exit code, what it said, and the report if it wrote one."""
    folder = tmp_path_factory.mktemp("reports")
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"JAX_OPTIMIZATION_LEVEL": "O0"}
    if LIBRARY:
        env["TPU_LIBRARY_PATH"] = LIBRARY

    def run(*flags, what="causal"):
        path = folder / f"{len(list(folder.iterdir()))}.json"
        logs = {"TPU_LOG_DIR": str(path.with_suffix(".logs"))}
        os.mkdir(logs["TPU_LOG_DIR"])
        words = [sys.executable, "-m", "tpu.compile", f"--config={CONFIG}:{what}", f"--json={path}", *flags]
        done = subprocess.run(words, env=env | logs, capture_output=True, text=True, timeout=HANGS, cwd=CONFIG.parents[2])
        report = json.loads(path.read_text()) | {"logs": Path(logs["TPU_LOG_DIR"])} if path.exists() else None
        return done.returncode, done.stdout + done.stderr, report

    return run


@pytest.fixture(scope="module")
def scanned(command):
    code, said, report = command("--config.model.decoder.remat=full")
    assert code == 0, said
    return report


def test_memory(scanned):
    """Matrices lie over all devices, norms over the four of fsdp; moments as parameters do."""
    matrices = 2 * VOCAB * WIDTH + LAYERS * (4 * WIDTH**2 + 3 * WIDTH * HIDDEN)
    norms = (2 * LAYERS + 1) * WIDTH
    hbm = scanned["hbm"]
    assert scanned["parameters"] == matrices + norms and scanned["fits"] and scanned["short_by"] == 0
    assert hbm["parameters"] == 4 * (matrices / DEVICES + norms / 4)
    assert 0 <= hbm["optimizer"] - 2 * hbm["parameters"] < 100  # and a few counters
    assert hbm["batch"] == 5 * 4 * LENGTH * ROWS / 4  # tokens, positions, segments, targets, weights
    parts = ("parameters", "optimizer", "batch", "activations", "temporaries")
    assert sum(hbm[name] for name in parts) == pytest.approx(hbm["peak"]) and hbm["capacity"] == 15.75 * 2**30


def test_the_peak_is_what_libtpu_itself_adds_up(command):
    code, said, report = command("--config.data.decoder_length=2048")
    assert code == 0, said
    log = next(path for path in sorted(report["logs"].iterdir()) if ".INFO." in path.name).read_text()
    size = lambda name, text: float(re.search(rf"{name} +([\d.]+)M", text)[1]) * 2**20
    total = log[log.rindex("Total hbm usage") :]
    assert report["hbm"]["peak"] == pytest.approx(size("program", total) + size("arguments", total), rel=0.02)
    assert size("HLO temp", log[log.rindex("Program hbm requirement") :]) > 0.5 * report["hbm"]["peak"]


def test_activations(scanned):
    """With full remat the forward pass leaves each layer's input, the last hidden vectors, and the loss two gradients."""
    hidden = ROWS / 2 / 4 * LENGTH * WIDTH * 2  # of a microbatch on a device, in bfloat16
    head = VOCAB * WIDTH / DEVICES * 2
    assert scanned["hbm"]["activations"] == pytest.approx((LAYERS + 2) * hidden + head, rel=0.05)


def test_flops(scanned):
    """Each layer forward, twice as much backward, and forward again but for its last product, whose result nobody needs."""
    layer = 2 * (4 * WIDTH**2 + 3 * WIDTH * HIDDEN) + 4 * LENGTH * WIDTH
    token = LAYERS * (4 * layer - 2 * WIDTH * HIDDEN) + 3 * 2 * WIDTH * VOCAB
    executed = scanned["flops"]["executed"]
    assert executed == pytest.approx(ROWS * LENGTH * token, rel=0.05) and executed > ROWS * LENGTH * token
    assert scanned["tokens_per_step"] == ROWS * LENGTH
    half = LAYERS * 2 * LENGTH * WIDTH  # of the pairs: the ledger's masks leave no more
    assert scanned["flops"]["model"] == pytest.approx(3 * ROWS * LENGTH * (LAYERS * layer - half + 2 * WIDTH * VOCAB))


def test_collectives(scanned):
    """Parameters are gathered over fsdp and their gradients scattered there; heads and hidden units are summed over tensor."""
    sent = {(c["kind"], *c["axes"]): c["bytes"] for c in scanned["collectives"]}
    layers = LAYERS * (4 * WIDTH**2 + 3 * WIDTH * HIDDEN) / 2  # on a device, once gathered
    # In bfloat16, three quarters of each come from others; at least in both passes of both microbatches.
    assert sent["all-gather", "fsdp"] >= 2 * 2 * layers * 2 * 3 / 4
    assert sent["reduce-scatter", "fsdp"] >= 2 * layers * 2 * 3 / 4
    assert (
        sent["all-reduce", "tensor"] >= 2 * LAYERS * ROWS / 4 * LENGTH * WIDTH * 2
    )  # attention's and the feed-forward's output
    assert max(sent, key=lambda k: sent[k])[1] in ("fsdp", "tensor")


def test_the_ceiling(scanned):
    roof = scanned["roofline"]
    seconds = {name: roof[f"{name}_s"] for name in ("compute", "hbm", "ici", "dcn")}
    assert roof["step_s"] == max(seconds.values()) == seconds[roof["bound"]] and seconds["dcn"] == 0
    assert seconds["compute"] == pytest.approx(scanned["flops"]["executed"] / DEVICES / 197e12)
    assert roof["mfu_ceiling"] == pytest.approx(scanned["flops"]["model"] / DEVICES / 197e12 / roof["step_s"])


def test_moments_on_the_host(command, scanned):
    """Two float32 moments of each parameter are read and written once a step, and not on the device in the backward pass."""
    long = ("--config.model.decoder.remat=full", "--config.data.decoder_length=2048")
    code, said, here = command(*long)
    assert code == 0, said
    code, said, away = command(*long, "--config.optimizer.offload=('moments',)")
    assert code == 0, said
    moments = 2 * here["hbm"]["parameters"]
    assert away["hbm"]["on_host"] == moments and 0 <= away["hbm"]["optimizer"] < 100 and here["hbm"]["on_host"] == 0
    roof, before = away["roofline"], here["roofline"]
    assert roof["host_s"] == roof["update_s"] == pytest.approx(2 * moments / 16e9) and before["host_s"] == 0
    assert roof["step_s"] == pytest.approx(before["step_s"] + roof["update_s"], rel=0.02)
    assert 0.85 * moments < here["hbm"]["peak"] - away["hbm"]["peak"] <= moments


def test_an_unrolled_model_executes_as_much(command, scanned):
    code, said, report = command("--config.model.decoder.remat=full", "--config.model.decoder.scan=False")
    assert code == 0, said
    assert report["flops"]["executed"] == pytest.approx(scanned["flops"]["executed"], rel=0.05)
    assert report["hbm"]["activations"] == pytest.approx(scanned["hbm"]["activations"], rel=0.05)


def test_too_large_advised_and_fitting(command):
    too_large = ("--config.train.batch_size=32768", "--config.train.microbatches=1")
    code, said, report = command(*too_large, "--advise")
    assert code == 1 and "DOES NOT FIT" in said, said
    hbm = report["hbm"]
    assert not report["fits"] and report["short_by"] == hbm["peak"] - hbm["capacity"] > 0
    assert report["roofline"]["step_s"] is None and report["collectives"] == []
    advice = said.strip().splitlines()[-1]
    assert advice.startswith("add --config."), said
    flags = advice.removeprefix("add ").split()
    kept = [flag for flag in too_large if flag.split("=")[0] not in [f.split("=")[0] for f in flags]]
    code, said, report = command(*kept, *flags)
    assert code == 0 and report["fits"], said


def test_a_faster_setting_is_found_and_is_faster(command):
    size = ("model.width=2048", "model.decoder.blocks.L.ffn.hidden=8192", "model.kernel=splash", "train.batch_size=512")
    slow = ("--config.model.decoder.remat=full", *(f"--config.{setting}" for setting in size))
    code, said, before = command(*slow, "--advise")
    assert code == 0, said
    advice = said.strip().splitlines()[-1]
    assert advice.startswith("add --config.") and "remat=dots" in advice, said
    flags = shlex.split(advice.removeprefix("add "))
    kept = [flag for flag in slow if flag.split("=")[0] not in [f.split("=")[0] for f in flags]]
    code, said, after = command(*kept, *flags)
    assert code == 0 and after["fits"], said
    assert after["roofline"]["step_s"] < before["roofline"]["step_s"]
    assert after["flops"]["executed"] < before["flops"]["executed"] and after["remat"] == "dots, keeping attention"


def test_serving(command):
    code, said, step = command("--serve")
    assert code == 0, said
    prefill = step["prefill"]
    assert (step["step"], prefill["step"]) == ("decode", "prefill") and step["tokens_per_step"] == ROWS
    cache = LAYERS * 2 * ROWS / 4 * LENGTH * WIDTH / 2 * 2  # keys and values of a device, in bfloat16
    others = ROWS / 4 * VOCAB * 13  # logits, bias and counts in 4 bytes, and what was read
    assert cache + others <= step["hbm"]["batch"] < 1.1 * (cache + others)
    assert step["hbm"]["optimizer"] == step["hbm"]["activations"] == 0 and step["roofline"]["bound"] == "hbm"
    assert prefill["tokens_per_step"] == LENGTH - 1


def matrices():
    return 2 * VOCAB * WIDTH + LAYERS * (4 * WIDTH**2 + 3 * WIDTH * HIDDEN)


@pytest.mark.parametrize("what", ["sft", "lora"])
def test_conversations(command, what):
    code, said, report = command(what=what)
    assert code == 0, said
    assert (report["step"], report["tokens_per_step"]) == ("train", ROWS * LENGTH) and report["fits"]
    norms = (2 * LAYERS + 1) * WIDTH
    whole = matrices() + norms
    if what == "sft":
        assert (report["parameters"], report["frozen_parameters"], report["hbm"]["frozen"]) == (whole, 0, 0)
        return
    ranks = LAYERS * 4 * (4 * 2 * WIDTH + 3 * (WIDTH + HIDDEN))
    assert report["parameters"] == ranks and "decode" not in report
    full = 4 * (matrices() / DEVICES + norms / 4)
    assert 2 * VOCAB * WIDTH / DEVICES * 4 < report["hbm"]["frozen"] < 0.6 * full  # layers in four bits, tables in float32


def test_a_policy(command):
    """Its update reads a reference of its own size, and its engine has a slot for each sample."""
    code, said, update = command(what="grpo")
    assert code == 0, said
    decode, prefill = update["decode"], update["prefill"]
    assert [each["step"] for each in (update, decode, prefill)] == ["train", "decode", "prefill"]
    assert update["frozen_parameters"] == update["parameters"] and update["hbm"]["frozen"] == update["hbm"]["parameters"]
    assert update["hbm"]["beside"] == decode["hbm"]["batch"] > 0
    assert decode["hbm"]["beside"] == update["hbm"]["frozen"] + update["hbm"]["optimizer"]
    assert (decode["tokens_per_step"], prefill["tokens_per_step"]) == (ROWS, 128)
    sent = {(c["kind"], *c["axes"]) for c in decode["collectives"]}
    assert ("all-reduce", "tensor") in sent  # the outputs of heads and hidden units
    gathered = sum(c["bytes"] for c in update["collectives"] if c["axes"] == ["fsdp"])
    assert gathered > 0 and update["flops"]["executed"] > update["flops"]["model"]


def test_a_topology_that_is_none(command):
    code, said, _ = command("--topology=v5e:3x5")
    assert code == 2 and "libtpu knows no topology v5e:3x5" in said
