"""Policies as runs: killed within a rollout, a tool's call and an update they go on to the bit; every method, both
architectures."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from lm import recipes, saved
from lm.config import resolve
from lm.errors import UserError
from lm.generation.tools import TOOLS, Tool
from lm.losses.policy import METHODS
from lm.recipes.rollout import Sampler
from tests.processes import HANGS

CONFIG = Path(__file__).parents[2] / "configs" / "life" / "policy.py"
# Answers with an "e" in them, and short ones, are good: an untrained model finds some.
GRADERS = {"e": dict(kind="regex", pattern=".*e.*"), "short": dict(kind="regex", pattern=".{0,9}", weight=0.5), "right": dict()}


@pytest.fixture(scope="session")
def given(corpus, runs):
    """Overrides of a run of four steps from a model of the tiny corpus."""
    questions = corpus / "questions.jsonl"
    with open(questions, "w") as file:
        for line in (corpus / "tiny.jsonl").read_text().splitlines():
            a, b, c = line.split()[1:4]
            file.write(json.dumps({"question": f"{a} {b}", "answer": c}) + "\n")

    def make(start="decoder.causal", **more):
        source = dict(mine=dict(kind="jsonl", path=str(questions), format="pair"))
        settings = {"data.sources": source, "data.cache": f"{corpus}/cache", "data.tokenizer": dict(vocab_size=400)}
        settings |= {"train.init_from": str(runs / start), "train.steps": 4, "train.batch_size": 8, "recipe.group": 4}
        settings |= {"recipe.answer": 6, "recipe.graders": GRADERS, "checkpoint.every": 1, "evaluate.every": 2}
        settings |= {"data.on_long": "skip", "log.every": 1, "log.tensorboard": False, "optimizer.learning_rate": 0.01}
        return {key: str(value) for key, value in (settings | more).items()}

    return make


def summary(workdir):
    return json.loads((workdir / "summary.json").read_text())


def metrics(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "per_second" not in k} for row in rows]


def train(workdir, what, settings, **more):
    return recipes.train(resolve.load(f"{CONFIG}:{what}", settings), workdir, quiet=True, **more)


# A process that kills itself: in the call number `at` of a function.
DYING = """
import os, signal, sys, time
from lm.generation import engine
from lm.generation.tools import TOOLS, Tool
from lm.training import loop
from lm import train
where, at, saved, *argv = sys.argv[1:]
calls = 0
def dying(function, after):
    def called(*arguments, **named):
        global calls
        calls += 1
        out = function(*arguments, **named) if after else None
        if calls == int(at):
            while not os.path.exists(saved):  # the save before is under way
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return out if after else function(*arguments, **named)
    return called
if where == "rollout":  # texts are half written
    engine.Engine.step = dying(engine.Engine.step, after=True)
elif where == "tool":  # some answers have its output, others do not
    TOOLS["letters"] = Tool("([a-j])", dying(str.upper, after=True))
else:  # the update runs, and its state is not used yet
    run = loop.run
    loop.run = lambda state, step, *rest, **named: run(state, dying(step, after=True), *rest, **named)
sys.exit(train.main(argv))
"""


@pytest.fixture
def killed(corpus):
    """Runs grpo in a process that kills itself at a place, and then has the checkpoint of step `left`."""

    def run(workdir, settings, where, at, left):
        argv = [f"--config={CONFIG}:grpo", f"--workdir={workdir}"]
        argv += [f"--config.{key}={value}" for key, value in settings.items()]
        env = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(corpus / "compiled"), "JAX_PLATFORMS": "cpu"}
        last = workdir / "checkpoints" / str(left) / "SHA256.json"
        words = [sys.executable, "-c", DYING, where, str(at), str(last), *argv]
        died = subprocess.run(words, env=env, capture_output=True, timeout=HANGS)
        assert died.returncode == -signal.SIGKILL, died.stderr.decode()
        assert max(int(p.name) for p in last.parents[1].iterdir() if p.name.isdigit()) == left

    return run


def test_sigkill_within_a_rollout_and_within_an_update_goes_on_to_the_bit(given, killed, tmp_path):
    settings = given()
    train(tmp_path / "whole", "grpo", settings)
    for where, at, left in (("rollout", 3, 1), ("update", 2, 2)):  # a rollout takes two calls of the engine
        killed(tmp_path / "killed", settings, where, at, left)
    train(tmp_path / "killed", "grpo", settings)
    whole, after = summary(tmp_path / "whole"), summary(tmp_path / "killed")
    assert after["params_sha256"] == whole["params_sha256"] and after["heldout"] == whole["heldout"]
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    start = saved.open(settings["train.init_from"]).params()
    moved = saved.open(tmp_path / "whole").params()
    assert not np.array_equal(start["embed"]["tokens"]["embedding"], moved["embed"]["tokens"]["embedding"])


def test_sigkill_within_the_call_of_a_tool_goes_on_to_the_bit(given, killed, tmp_path, monkeypatch):
    """In the second rollout, in which answers with a tool's output are half written."""
    calls, after, plain = [], [], Sampler.__call__
    monkeypatch.setitem(TOOLS, "letters", Tool("([a-j])", lambda text: calls.append(text) or text.upper()))
    monkeypatch.setattr(Sampler, "__call__", lambda self, *given: (plain(self, *given), after.append(len(calls)))[0])
    settings = given(**{"recipe.tools": ("letters",), "recipe.calls": 2, "recipe.answer": 10, "train.steps": 2})
    train(tmp_path / "whole", "grpo", settings)
    assert after[1] > after[0] + 2
    killed(tmp_path / "killed", settings, "tool", (after[0] + after[1]) // 2, left=1)
    train(tmp_path / "killed", "grpo", settings)
    whole, resumed = summary(tmp_path / "whole"), summary(tmp_path / "killed")
    assert resumed["params_sha256"] == whole["params_sha256"] and resumed["heldout"] == whole["heldout"]
    assert metrics(tmp_path / "killed") == metrics(tmp_path / "whole")
    samples = [(tmp_path / name / "samples.jsonl").read_text("utf-8") for name in ("whole", "killed")]
    assert samples[0] == samples[1] and re.search("[a-j] ?[A-J]", samples[0])


def test_a_critic_inner_epochs_and_minibatches_go_on_to_the_bit(given, tmp_path):
    more = {"recipe.epochs": 2, "recipe.minibatches": 2, "optimizer.schedule.warmup": 1}
    settings = given(**more)
    train(tmp_path / "whole", "ppo", settings)
    train(tmp_path / "parts", "ppo", settings | {"train.steps": "2"})
    train(tmp_path / "parts", "ppo", settings, allow_changes=True)
    whole, parts = summary(tmp_path / "whole"), summary(tmp_path / "parts")
    assert parts["params_sha256"] == whole["params_sha256"] and whole["step"] == 4
    rows = [row for row in metrics(tmp_path / "whole") if "loss" in row]
    assert [row["learning_rate"] for row in rows] == [pytest.approx(0.01)] * 4  # a schedule counts steps, not updates
    assert rows[0]["critic_error"] > 0 and rows[-1]["kl"] > 0 and all(row["mismatch_max"] < 1e-4 for row in rows)
    read = saved.open(tmp_path / "whole")
    assert "critic" not in read.params()  # what is generated from, served and tuned on is the model alone


def in_two_parts(workdir, what, settings):
    """Two steps at once, and as two runs. Returns the summary and the rows of the log, which are the same."""
    little = {"train.steps": "2", "evaluate.every": "None", "optimizer.schedule.warmup": "0"}
    train(workdir / "whole", what, settings | little)
    train(workdir / "parts", what, settings | little | {"train.steps": "1"})
    train(workdir / "parts", what, settings | little, allow_changes=True)
    whole, parts = summary(workdir / "whole"), summary(workdir / "parts")
    assert parts["params_sha256"] == whole["params_sha256"] and parts["heldout"] == whole["heldout"] and whole["step"] == 2
    rows = [[row for row in metrics(workdir / name) if "loss" in row] for name in ("whole", "parts")]
    assert rows[0] == rows[1] and len(rows[0]) == 2 and all(row["mismatch_max"] < 1e-4 for row in rows[0])
    return whole, rows[0]


def test_conversations_and_a_tool_go_on_to_the_bit(given, corpus, tmp_path, monkeypatch):
    """The last answer of each is asked for; behind the first letter that the policy writes is what the tool makes of it."""
    monkeypatch.setitem(TOOLS, "letters", Tool("([a-j])", str.upper))
    talks, turn = corpus / "talks.jsonl", lambda role, content: {"role": role, "content": content}
    with open(talks, "w", encoding="utf-8") as file:
        for line in (corpus / "tiny.jsonl").read_text(encoding="utf-8").splitlines():
            a, b, c = json.loads(line)["text"].split()[:3]
            said = [turn("user", a), turn("assistant", b), turn("user", f"{b} {c}"), turn("assistant", c)]
            file.write(json.dumps({"messages": said}) + "\n")
    more = {"data.sources": dict(mine=dict(kind="jsonl", path=str(talks), format="messages")), "recipe.answer": 10}
    more |= {"recipe.tools": ("letters",), "recipe.calls": 1, "recipe.group": 8, "recipe.graders": {"right": dict()}}
    more["recipe.graders"] |= {
        "e": dict(kind="regex", pattern=".*[a-j] ?[A-J].*"),
        "short": dict(kind="regex", pattern=".{0,9}"),
    }
    _, rows = in_two_parts(tmp_path, "grpo", given(**more))
    samples = [json.loads(line) for line in (tmp_path / "whole" / "samples.jsonl").read_text("utf-8").splitlines()]
    assert all(len(sample["prompt"].split()) == 2 for sample in samples)
    calls = [re.search("[a-j].*", sample["text"], re.DOTALL) for sample in samples]
    called = [found[0] for found in calls if found and len(found[0].strip()) > 1]
    assert called and all(re.match("([a-j]+) ?([A-J])", text) for text in called)
    assert rows[-1]["length"] < 10 and rows[-1]["reward"] > 0


@pytest.mark.parametrize("what", ["grpo", "ppo"])
def test_adapters_under_a_policy(given, runs, tmp_path, what):
    """Only they are trained, beside a critic; the reference is the model below them."""
    found, rows = in_two_parts(tmp_path, what, given(**{"adapter.rank": 2, "recipe.kl_weight": 1.0}))
    assert found["parameters"] < summary(runs / "decoder.causal")["parameters"] / 5
    assert abs(rows[0]["kl"]) < 1e-9 < rows[1]["kl"]  # an adapter begins as nothing
    base, opened = saved.open(runs / "decoder.causal"), saved.open(tmp_path / "whole")
    before, after = (flatten_dict(each.params(), sep="/") for each in (base, opened))
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert before.keys() == after.keys() and changed
    assert all(path.startswith("decoder/") and path.endswith("/kernel") for path in changed)
    assert opened.run.adapter.whole == (("critic",) if what == "ppo" else ())


def test_an_averaged_reference_goes_on_to_the_bit(given, tmp_path):
    """It follows the policy, and needs no model to begin from again."""
    more = {"recipe.reference": "average", "optimizer.ema": 0.5, "recipe.kl_weight": 1.0}
    _, rows = in_two_parts(tmp_path, "grpo", given(**more))
    assert abs(rows[0]["kl"]) < 1e-9 < rows[1]["kl"]
    assert saved.open(tmp_path / "whole").run.recipe.reference_sha256 is None


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_a_run(given, tmp_path, name):
    start = "encoder_decoder.denoise" if name in ("dapo", "gspo") else "decoder.causal"
    found = train(tmp_path, name, given(start, **{"train.steps": 2, "checkpoint.every": None}))
    rows = [row for row in metrics(tmp_path) if "loss" in row]
    assert len(rows) == 2 and found["heldout"]["items"] > 0 and isinstance(found["heldout"]["items"], int)
    for row in rows:
        assert 0 <= row["reward"] <= 2.5 and 1 <= row["length"] <= 6 and 0 <= row["truncated"] <= 1
        assert row["mismatch"] <= row["mismatch_max"] < 1e-4
        learns = METHODS[name].truncated != "masked" or row["truncated"] < 1  # else no token has loss, and nothing moves
        assert (row["entropy"] > 0) == (row["grad_norm"] > 0) == learns and row["skipped"] == 0
        assert ("kl" in row) == (METHODS[name].kl != "without") and 0 <= row["varied"] <= 1
        assert ("draws" in row) == (name == "dapo")
        assert name != "dapo" or 1 <= row["draws"] <= METHODS["dapo"].draws
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 8 and {"prompt", "text", "reward", "step"} == samples[0].keys()
    assert np.mean([s["reward"] for s in samples]) == pytest.approx(rows[-1]["reward"])
    assert found["heldout"]["reward"] == pytest.approx(
        found["heldout"]["reward/e"] + 0.5 * found["heldout"]["reward/short"] + found["heldout"]["reward/right"]
    )


def test_what_a_policy_refuses(given, tmp_path):
    for more, cause in (
        ({"recipe.group": 3}, "train.batch_size=8 samples are no groups of recipe.group=3: take 9"),
        ({"recipe.group": 1}, "recipe.group=1 leaves no other sample to compare with, as grpo does"),
        ({"recipe.minibatches": 3}, "does not divide into recipe.minibatches=3"),
        ({"train.init_from": None}, "a policy begins with a model that can answer"),
        ({"recipe.reference_sha256": "f" * 64}, "has the digest .* and recipe.reference_sha256=ffffffff"),
        ({"recipe.graders": {}}, "recipe.graders is empty"),
        ({"data.train_share": 0.5}, "data.train_share is not for policies"),
        ({"recipe.graders": {"a": dict(kind="regex", pattern="(")}}, "is no regular expression"),
        ({"recipe.tools": ("calculater",)}, "no tool 'calculater'; did you mean 'calculator'"),
        ({"recipe.tools": ("calculator",), "recipe.prefix": True}, "a model with recipe.prefix would read an answer"),
        ({"recipe.reference": "average"}, "recipe.reference=average is of a method with a divergence"),
        ({"adapter.rank": 2, "adapter.whole": ("embed",)}, "adapter.whole: 'embed' is trained in full, and the base with it"),
        ({"train.z_loss": 1e-4}, "train.z_loss is of a cross-entropy"),
        ({"recipe.graders": {"a": dict(pattern="x")}}, "regex may have a pattern, model and reasoning_gym have a path"),
    ):
        with pytest.raises(UserError, match=cause):
            train(tmp_path, "grpo", given(**more))
