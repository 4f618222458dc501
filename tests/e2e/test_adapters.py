"""Runs with adapters: they begin as their base, go on to the bit, and every command opens them as one model."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from lm import recipes, saved
from lm.config import resolve
from lm.convert import main as convert
from lm.errors import UserError
from tests.e2e.conftest import TINY

FINETUNE = Path(__file__).parents[2] / "configs" / "finetune.py"
LIFE = FINETUNE.parent / "life"
LITTLE = {"train.steps": "4", "checkpoint.every": "2", "evaluate.every": "2", "log.tensorboard": "False", "adapter.rank": "2"}


def settings(corpus, base, **more):
    paths = {"data.sources.tiny.path": f"{corpus}/tiny.jsonl", "data.cache": f"{corpus}/cache", "train.init_from": str(base)}
    return LITTLE | paths | more


def flat(folder):
    return flatten_dict(saved.open(folder).params(), sep="/")


@pytest.fixture(scope="module")
def base(runs, tmp_path_factory):
    """A copy, which tests may change."""
    return shutil.copytree(runs / "decoder.causal", tmp_path_factory.mktemp("base") / "run")


@pytest.fixture(scope="module")
def tuned(corpus, base, tmp_path_factory):
    """Pretraining that goes on with adapters, on a base of another run."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    summary = recipes.train(resolve.load(f"{TINY}:decoder.causal", settings(corpus, base)), folder, quiet=True)
    return folder, summary


def test_only_adapters_are_trained_and_saved(base, tuned):
    folder, summary = tuned
    whole = json.loads((base / "summary.json").read_text())["parameters"]
    assert 0 < summary["parameters"] < whole / 5
    assert summary["model_flops"] > 0
    size = lambda run: sum(f.stat().st_size for f in (run / "checkpoints").glob("*/state/**/*") if f.is_file())
    assert size(folder) / 2 < size(base) / 2
    before, after = flat(base), flat(folder)
    assert before.keys() == after.keys()
    changed = {path for path in before if not np.array_equal(before[path], after[path])}
    assert changed and all(path.startswith("decoder/") and path.endswith("/kernel") for path in changed)
    saved_run = saved.open(folder).run
    assert saved_run.adapter.digest == saved.open(base).digest() and saved_run.train.init_from == str(base)


def test_a_run_goes_on_to_the_bit(corpus, base, tuned, tmp_path):
    """From its checkpoint of step 2, as if it had been killed after that."""
    folder, whole = shutil.copytree(tuned[0], tmp_path / "run"), tuned[1]
    shutil.rmtree(folder / "checkpoints" / "4")
    found = recipes.train(resolve.load(f"{TINY}:decoder.causal", settings(corpus, base)), folder, quiet=True)
    assert found["params_sha256"] == whole["params_sha256"] and found["heldout"] == whole["heldout"]


def test_the_merged_model_is_the_run(tuned, tmp_path, capsys):
    folder, summary = tuned
    assert convert(["merge", str(folder), str(tmp_path / "merged")]) == 0
    merged, run = flat(tmp_path / "merged"), flat(folder)
    for path in run:
        np.testing.assert_array_equal(merged[path], run[path])
    assert saved.open(tmp_path / "merged").tokenizer_bytes() == saved.open(folder).tokenizer_bytes()
    on_device = flatten_dict(saved.open(folder).params(device=jax.devices()[0]), sep="/")
    assert all(np.array_equal(on_device[path], run[path]) for path in run)
    assert convert(["merge", str(tmp_path / "merged"), str(tmp_path / "again")]) == 2
    assert "has no adapters" in capsys.readouterr().err


def test_adapters_beside_adapters(corpus, tuned, tmp_path):
    recipes.train(
        resolve.load(f"{TINY}:decoder.causal", settings(corpus, tuned[0], **{"train.steps": "1"})), tmp_path, quiet=True
    )
    first, second = flat(tuned[0]), flat(tmp_path)
    assert any(not np.array_equal(first[path], second[path]) for path in first)


@pytest.mark.parametrize("kind", ["float", "nf4"])
def test_a_new_head_is_trained_in_full(corpus, runs, tmp_path, kind):
    if kind == "nf4":
        pytest.importorskip("qwix")
    records = [json.dumps({"text": f"word {n} here", "label": "odd" if n % 2 else "even"}) for n in range(40)]
    (tmp_path / "records.jsonl").write_text("\n".join(records))
    more = {"data.sources.mine.path": f"{tmp_path}/records.jsonl", "data.cache": f"{tmp_path}/cache", "data.holdout": "0.2"}
    more |= {
        "train.init_from": str(runs / "encoder.masked"),
        "recipe.length": "16",
        "train.batch_size": "4",
        "adapter.base": kind,
    }
    run = resolve.load(f"{FINETUNE}:labelled", LITTLE | more)
    summary = recipes.train(run, tmp_path / "run", quiet=True)
    opened = saved.open(tmp_path / "run")
    assert opened.run.adapter.whole == ("head",)
    own, whole = opened.adapters()
    assert set(whole) == {"head"} and opened.params()["head"]["out"]["kernel"].any()
    again = recipes.train(run, tmp_path / "run", quiet=True)  # at its end: only evaluates the restored state
    assert again["params_sha256"] == summary["params_sha256"] and again["heldout"] == summary["heldout"]


def test_a_table_of_tokens_is_trained_in_full_where_it_is_named(corpus, base, tmp_path):
    """As new tokens need: without it, nothing outside of the linear layers changes."""
    whole = settings(corpus, base, **{"adapter.whole": "('embed',)", "train.steps": "1"})
    recipes.train(resolve.load(f"{TINY}:decoder.causal", whole), tmp_path / "run", quiet=True)
    name, before, after = "embed/tokens/embedding", flat(base), flat(tmp_path / "run")
    assert not np.array_equal(before[name], after[name])
    np.testing.assert_allclose(before[name], after[name], atol=0.1)  # begun from the base, not from the seed


def test_a_base_with_other_tokens_is_refused(corpus, base, tmp_path):
    more = settings(corpus, base, **{"model.vocab_size": "520"})
    with pytest.raises(UserError, match="embed/tokens/embedding"):
        recipes.train(resolve.load(f"{TINY}:decoder.causal", more), tmp_path, quiet=True)


def test_a_base_that_changed_or_is_gone_is_refused_with_the_way_out(corpus, base, tmp_path, capsys):
    copy = shutil.copytree(base, tmp_path / "base")
    run = lambda init_from: resolve.load(f"{TINY}:decoder.causal", settings(corpus, init_from))
    recipes.train(run(copy), tmp_path / "run", quiet=True)
    expected = flat(tmp_path / "run")
    copy.rename(tmp_path / "moved")
    with pytest.raises(UserError, match=r"cannot be opened.*lm\.convert merge .* --base=COPY"):
        saved.open(tmp_path / "run").params()
    assert convert(["merge", str(tmp_path / "run"), str(tmp_path / "merged"), f"--base={tmp_path / 'moved'}"]) == 0
    merged = flat(tmp_path / "merged")
    assert all(np.array_equal(merged[path], expected[path]) for path in expected)
    recipes.train(run(tmp_path / "moved"), tmp_path / "run", quiet=True)  # a copy elsewhere is the same base
    listing = next((tmp_path / "moved" / "checkpoints").glob("*/SHA256.json"))
    listing.write_text(listing.read_text() + "\n")  # as of a base that was trained on
    with pytest.raises(UserError, match="has changed since adapters were trained beside it"):
        recipes.train(run(tmp_path / "moved"), tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="has changed since"):
        saved.open(tmp_path / "run", base=str(tmp_path / "moved")).params()
    with pytest.raises(UserError, match="adapter"):
        recipes.train(resolve.load(f"{TINY}:decoder.causal", settings(corpus, base) | {"adapter.rank": "3"}), tmp_path / "run")


@pytest.mark.parametrize("what", ["preference.py:dpo.own", "reward.py:own"])
def test_other_recipes_have_adapters_too(corpus, base, tmp_path, what):
    """A policy that begins as its reference has a margin of 0, so that its first loss is log 2; the reference is the base."""
    talks = [json.loads(line)["text"].split() for line in (corpus / "tiny.jsonl").read_text(encoding="utf-8").splitlines()]
    pairs = [dict(prompt=f"{n} {' '.join(t[:4])}", chosen=" ".join(t[4:6]), rejected=t[6]) for n, t in enumerate(talks)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")
    more = {"data.sources.own.path": f"{tmp_path}/pairs.jsonl", "data.cache": f"{tmp_path}/cache", "data.holdout": "0.3"}
    more |= {
        "train.init_from": str(base),
        "recipe.length": "40",
        "recipe.answer": "20",
        "train.batch_size": "4",
        "log.every": "1",
    }
    run = resolve.load(f"{LIFE}/{what}", LITTLE | more | {"evaluate.every": "4"})
    summary = recipes.train(run, tmp_path / "run", quiet=True)
    losses = [
        row["loss"] for row in map(json.loads, (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) if "loss" in row
    ]
    opened = saved.open(tmp_path / "run")
    if what.startswith("preference"):
        assert losses[0] == pytest.approx(np.log(2), abs=2e-6) and losses[-1] != losses[0]
        assert opened.run.adapter.whole == ()
        held = json.loads((base / "summary.json").read_text(encoding="utf-8"))["parameters"]
        assert f"{held:>14,}  frozen, beside them" in recipes.dry_run(run)  # as a reference of its own it would be twice that
    else:
        assert opened.run.adapter.whole == ("head",) and opened.params()["head"]["out"]["kernel"].shape == (32, 1)
    assert summary["heldout"]["accuracy"] >= 0 and summary["step"] == 4
