"""What the harness asks a saved model: the join of context and continuation, bos, long texts, settings."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import model_registry  # noqa: E402
from lm_eval.utils import get_rolling_token_windows  # noqa: E402

from lm import checkpoint, config  # noqa: E402
from lm.data import tokenizer as tokenizers  # noqa: E402
from lm.errors import UserError  # noqa: E402
from lm.evaluation import registered, text_scores  # noqa: E402
from lm.evaluation.harness import Harness, _asked  # noqa: E402
from tests.fakes import small_model, small_params  # noqa: E402

TEXT = "the cat sat on a mat and the dog did not see it. "
LONG = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Converted models of each architecture over the pieces of TEXT."""
    root = tmp_path_factory.mktemp("models")
    proto = tokenizers.train([TEXT * 30], config.Tokenizer(vocab_size=400)).proto
    for architecture in ("encoder", "decoder", "encoder_decoder"):
        model = small_model(architecture, vocab_size=400)
        checkpoint.save_params(root / architecture, model, small_params(model))
        (root / architecture / "hf").mkdir()
        (root / architecture / "hf" / "tokenizer.model").write_bytes(proto)
    return root


@pytest.fixture(scope="module")
def decoder(folder):
    return Harness(str(folder / "decoder"), batch_size=4, max_length=LONG)


def asked(*arguments):
    return [Instance("loglikelihood", {}, one, 0) for one in arguments]


def nats(model, *pairs):
    return [value for value, _ in model.loglikelihood(asked(*pairs))]


def test_its_name_is_known_to_the_harness(monkeypatch):
    monkeypatch.setenv("LM_CPU_TUNING", "0")
    registered.register()
    registered.register()
    assert model_registry.get("lm") is Harness


def test_without_the_harness_the_extra_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"need lm-eval: pip install -e '\.\[harness\]'"):
        registered.require()


def test_white_space_at_the_join_belongs_to_the_continuation(decoder):
    assert decoder._pair("the cat ", "sat") == decoder._pair("the cat", " sat")
    assert nats(decoder, ("the cat ", "sat")) == pytest.approx(nats(decoder, ("the cat", " sat")), abs=1e-5)


def test_a_token_across_the_join_leaves_the_continuation_its_own_tokens(decoder, monkeypatch):
    """Where the whole text has no more tokens than the context, the harness's own models stop with an error."""
    encode = decoder.tokenizer.encode

    def joined(text):  # "sat" is one token; "sa" alone is one too
        return np.array([399], np.int32) if text in ("sa", "sat") else encode(text)

    monkeypatch.setattr(decoder, "tokenizer", SimpleNamespace(**_fields(decoder.tokenizer), encode=joined))
    before, after = decoder._pair("sa", "t")
    assert before == [decoder.tokenizer.bos_id, 399] and after == encode("t").tolist() != []


def _fields(tokenizer):
    return {name: getattr(tokenizer, name) for name in ("bos_id", "eos_id", "piece", "decode")}


def test_what_is_not_asked_for_is_certain(decoder):
    assert decoder.loglikelihood(asked(("the cat", ""), ("", ""))) == [(0.0, True), (0.0, True)]
    assert decoder.loglikelihood_rolling(asked(("",))) == [0.0] and decoder.loglikelihood([]) == []


def test_bos_comes_once(decoder, folder):
    bos = decoder.tokenizer.bos_id
    for context in ("the cat", "", "<s>the cat", "<s>"):
        before, after = decoder._pair(context, " sat")
        assert before[0] == bos and [*before, *after].count(bos) == 1
    assert decoder._pair("<s>the cat", " sat") == decoder._pair("the cat", " sat")
    without = Harness(str(folder / "decoder"), add_bos_token=False)
    assert without._pair("the cat", " sat")[0] == decoder._pair("the cat", " sat")[0][1:]
    assert without._pair("", " sat")[0] == [bos]  # something stands before the first token


def test_windows_are_those_of_the_harness(decoder):
    """Each token once, each window full but the first, bos in the first alone."""
    ids = decoder.tokenizer.encode(TEXT * 9).tolist()
    spans = decoder._windows(ids, before=[decoder.tokenizer.bos_id])
    wanted = list(get_rolling_token_windows(ids, decoder.tokenizer.bos_id, LONG, 1))
    assert len(spans) == len(wanted) > 2
    for span, (read, predicted) in zip(spans, wanted, strict=True):
        assert span.target.tolist() == predicted
        assert [*span.left.tolist(), *predicted[:-1]] == read and len(read) == LONG
    assert [decoder.tokenizer.bos_id in span.left for span in spans] == [True] + [False] * (len(spans) - 1)
    (found,) = decoder.loglikelihood_rolling(asked((TEXT * 9,)))
    each = decoder._ask([[span] for span in spans])
    assert found == pytest.approx(sum(value for value, _ in each), rel=1e-6)


@pytest.mark.parametrize("architecture", ["decoder", "encoder", "encoder_decoder"])
def test_a_context_that_is_too_long_loses_its_beginning_and_that_is_said(architecture, folder, caplog):
    settings = {"objective": "prefix"} if architecture == "encoder_decoder" else {}
    model = Harness(str(folder / architecture), batch_size=4, max_length=LONG, **settings)
    pairs = [("the dog " + TEXT * 5, " the cat"), ("the cat", " sat")]
    long, short = nats(model, *pairs)
    assert "1 of 2 contexts are too long for the 40 tokens that the model reads" in caplog.text
    assert model.get_model_info()["truncated"] == 1
    assert nats(model, ("another dog " + TEXT * 5, " the cat")) == pytest.approx([long], abs=1e-5)  # what was cut off
    assert nats(model, ("the cat", " sat")) == pytest.approx([short], abs=1e-5)
    # A continuation that does not fit by itself is read in windows, of which the first sees the last token of its context.
    several = [nats(model, (context, TEXT * 9)) for context in ("the cat ", "a dog in the cat ", "the dog ")]
    assert several[0] != several[2] and (architecture == "encoder" or several[0] == several[1])
    if architecture == "decoder":
        (whole,) = model.loglikelihood_rolling(asked((TEXT * 9,)))
        assert nats(model, ("", TEXT * 9)) == pytest.approx([whole], rel=1e-6)


def test_an_encoder_is_no_likelihood_and_says_so(folder, caplog):
    model = Harness(str(folder / "encoder"), batch_size=4, max_length=LONG)
    assert "pseudo-log-likelihoods, which rank answers and are no likelihoods" in caplog.text
    about = model.get_model_info()
    assert (about["likelihood"], about["score"], about["note"]) == (
        False,
        "pll",
        "each token given the rest, words left to right",
    )
    for text in (TEXT, TEXT * 6):  # in one window, and in several
        (found,) = model.loglikelihood_rolling(asked((text,)))
        how = dict(length=LONG, stride=LONG // 2)
        (wanted,) = text_scores.score(model._model, model._params, config.Masked(), model.tokenizer, [text], **how)
        assert found == pytest.approx(-wanted.nats, rel=1e-5)
    with pytest.raises(UserError, match="an encoder fills in"):
        model.generate_until(asked(("the cat", {"until": ["."], "max_gen_toks": 4})))


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_texts_end_before_a_stop_string_and_repeats_differ(architecture, folder):
    model = Harness(str(folder / architecture), batch_size=4, max_length=LONG)
    drawn = {"until": [], "max_gen_toks": 12, "do_sample": True, "temperature": 1.5}
    one = Instance("generate_until", {}, ("the cat", drawn), 0)
    first, second = model.generate_until([one, one])
    assert first != second and model.generate_until([one]) == [first]
    stop = next(c for c in first[1:] if c != "\ufffd")
    (cut,) = model.generate_until(asked(("the cat", drawn | {"until": [stop]})))
    assert cut == first[: first.index(stop)]


def test_no_room_for_what_is_written_is_refused(decoder):
    with pytest.raises(UserError, match="max_gen_toks=40 leaves no room in max_length=40: lower it, or raise that"):
        decoder.generate_until(asked(("the cat", {"until": [], "max_gen_toks": LONG})))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"temperature": 0.0, "new_tokens": 256}),
        ({"until": "\n", "max_new_tokens": 3}, {"stop": ("\n",), "new_tokens": 3}),
        ({"until": ["", "a"]}, {"stop": ("a",)}),
        ({"do_sample": False, "temperature": 0.7, "top_p": 0.5}, {"temperature": 0.0, "top_p": 1.0}),
        ({"do_sample": True, "temperature": 0.7, "top_k": 5, "seed": 3}, {"temperature": 0.7, "top_k": 5, "seed": 5}),
        ({"temperature": 0.0, "repetition_penalty": 1.2}, {"temperature": 0.0, "repetition": 1.2}),
        ({"num_beams": 4}, {"beams": 4, "temperature": 1.0}),
        ({"num_beams": 1}, {"beams": 0, "temperature": 0.0}),
    ],
)
def test_settings_of_the_harness_are_those_of_the_engine(given, wanted):
    found = _asked("a", given, 256, repeat=2)
    assert {name: getattr(found, name) for name in wanted} == wanted


def test_an_unknown_setting_is_refused():
    with pytest.raises(UserError, match="'penalty_alpha' is not known here"):
        _asked("a", {"penalty_alpha": 0.6}, 256, repeat=0)


def test_nothing_else_imports_the_harness():
    assert "lm_eval" in sys.modules  # here
    import ast
    from pathlib import Path

    import lm

    for path in Path(lm.__file__).parent.rglob("*.py"):
        names = {node.module for node in ast.parse(path.read_text()).body if isinstance(node, ast.ImportFrom)}
        assert path.name == "harness.py" or not any((name or "").startswith("lm_eval") for name in names), path
