"""Models of several, by command: their mean, task vectors, a run's last checkpoints."""

import json

import numpy as np
import pytest
from flax import traverse_util

from lm import recipes, saved
from lm.config import resolve
from lm.convert import main
from lm.data import chat
from tests.e2e.conftest import TINY


@pytest.fixture(scope="module")
def tuned(corpus, runs, tmp_path_factory):
    """`runs / "decoder.causal"` trained for four more steps, of which two checkpoints are kept."""
    folder = tmp_path_factory.mktemp("tuned") / "run"
    settings = {"data.sources.tiny.path": f"{corpus}/tiny.jsonl", "data.cache": f"{corpus}/cache", "train.steps": "4"}
    settings |= {"train.init_from": str(runs / "decoder.causal"), "checkpoint.every": "2", "evaluate.every": "None"}
    recipes.train(resolve.load(f"{TINY}:decoder.causal", settings), folder, quiet=True)
    return folder


def params(folder, step=None):
    opened = saved.open(folder)
    return traverse_util.flatten_dict((opened if step is None else saved.last(folder, 2)[step]).params(), sep="/")


def same(a, b):
    assert a.keys() == b.keys()
    return all(np.array_equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a)


def made(capsys, *words):
    capsys.readouterr()
    code = main(["average", *map(str, words)])
    return code, capsys.readouterr()


def test_a_model_averaged_with_itself_is_itself_and_opens_like_one(runs, tmp_path, capsys):
    base = runs / "decoder.causal"
    code, said = made(capsys, base, base, base, tmp_path / "soup", "--weights=0.3,0.3,0.7")
    assert code == 0 and "0.2308 of" in said.out, said.err
    assert same(params(base), params(tmp_path / "soup")) and saved.open(tmp_path / "soup").model == saved.open(base).model
    assert saved.open(tmp_path / "soup").tokenizer_bytes() == saved.open(base).tokenizer_bytes()
    code, said = made(capsys, tmp_path / "soup", base, tmp_path / "again")  # a converted model and a run
    assert code == 0 and same(params(base), params(tmp_path / "again"))
    from lm.generate import main as generate

    capsys.readouterr()
    assert generate([f"--from={tmp_path / 'soup'}", "--new_tokens=3", "--temperature=0", "a"]) == 0
    soup = capsys.readouterr().out
    assert generate([f"--from={base}", "--new_tokens=3", "--temperature=0", "a"]) == 0
    assert capsys.readouterr().out == soup


def test_an_average_of_a_chat_model_is_one(talks, tmp_path, capsys):
    talker = talks / "decoder.causal"
    code, said = made(capsys, talker, talker, tmp_path / "soup")
    assert code == 0 and "chat_template.jinja" in said.out, said.err
    before, after = (chat.of(saved.open(folder)) for folder in (talker, tmp_path / "soup"))
    asked = [{"role": role, "content": f"the {role}"} for role in ("system", "user", "assistant", "user")]
    assert after.ids(asked).tolist() == before.ids(asked).tolist() and after.end == before.end


@pytest.mark.parametrize("scale", [0, 1, 0.5, -1])
def test_a_task_vector_leads_from_the_base_to_what_was_tuned(runs, tuned, tmp_path, capsys, scale):
    base = runs / "decoder.causal"
    code, said = made(capsys, tuned, tmp_path / "new", f"--base={base}", f"--weights={scale}")
    assert code == 0, said.err
    before, after, found = params(base), params(tuned), params(tmp_path / "new")
    if scale in (0, 1):
        assert same(found, after if scale else before) and not same(before, after)
    for name, x in found.items():
        np.testing.assert_allclose(x, before[name] + scale * (after[name] - before[name]), rtol=1e-5, atol=1e-6)


def test_the_mean_of_models_and_of_checkpoints(runs, tuned, tmp_path, capsys):
    base = runs / "decoder.causal"
    assert made(capsys, base, tuned, tmp_path / "soup", "--weights=3,1")[0] == 0
    before, after = params(base), params(tuned)
    for name, x in params(tmp_path / "soup").items():
        np.testing.assert_allclose(x, 0.75 * before[name] + 0.25 * after[name], rtol=1e-5, atol=1e-7)
    assert made(capsys, tuned, tmp_path / "mean", "--last=2")[0] == 0
    last = [params(tuned, step) for step in (0, 1)]
    assert not same(*last) and [model.step for model in saved.last(tuned, 2)] == [4, 2]
    for name, x in params(tmp_path / "mean").items():
        np.testing.assert_array_equal(x, ((np.float64(last[0][name]) + last[1][name]) / 2).astype(x.dtype))


def test_what_cannot_be_averaged_is_named_in_a_line(runs, tuned, corpus, tmp_path, capsys):
    base, other = runs / "decoder.causal", tmp_path / "other"
    settings = {"data.sources.tiny.path": f"{corpus}/tiny.jsonl", "data.cache": f"{corpus}/cache", "train.steps": "0"}
    recipes.train(resolve.load(f"{TINY}:decoder.causal", settings | {"data.tokenizer.vocab_size": "410"}), other, quiet=True)
    for words, cause in (
        ((base, other), "different tokenizers"),
        ((base, runs / "encoder.masked"), "different models"),
        ((base, tuned, "--weights=1"), "a finite number for each of the 2 models"),
        ((base, tuned, "--weights=1,-1"), "not above 0"),
        ((base, tuned, "--weights=1,nan"), "a finite number"),
        ((base, tuned, "--last=2"), "one run"),
        ((tuned, "--last=9"), "keeps 2 checkpoints"),
    ):
        code, said = made(
            capsys,
            *[w for w in words if not str(w).startswith("--")],
            tmp_path / "new",
            *[w for w in words if str(w).startswith("--")],
        )
        assert code == 2 and cause in said.err and len(said.err.strip().splitlines()) == 1, said.err
        assert not (tmp_path / "new").exists()
    assert json.loads((base / "summary.json").read_text(encoding="utf-8"))["step"] == 2, "nothing was written there"
