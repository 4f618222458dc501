"""`python -m lm.generate` fills in masks over several steps, and one call fills in for real runs of every architecture."""

import jax
import pytest

from lm import saved
from lm.generate import main
from lm.generation.infill import infill
from lm.models.transformer import Transformer


@pytest.fixture
def ask(piped):
    return lambda *words: piped(main, words, "")


def test_orders_and_steps(runs, ask):
    source, prompt = f"--from={runs / 'encoder.masked'}", "abc [MASK][MASK] fa [MASK]"
    for order in ("left", "confidence", "mask_predict", "gibbs"):
        code, out, err = ask(source, f"--order={order}", "--temperature=0", prompt)
        assert code == 0, err
        assert out.startswith("abc") and " fa" in out and "[MASK]" not in out
    code, out, err = ask(source, "--order=gibbs", "--samples=3", "--seed=1", prompt)
    assert code == 0 and out.count("--- ") == 3, err
    assert out == ask(source, "--order=gibbs", "--samples=3", "--seed=1", prompt)[1]
    assert out != ask(source, "--order=gibbs", "--samples=3", "--seed=2", prompt)[1]
    once = ask(source, "--order=mask_predict", "--steps=1", "--temperature=0", prompt)
    assert once[0] == 0 and once[1] == ask(source, "--order=confidence", "--steps=1", "--temperature=0", prompt)[1]


def test_a_mixture_is_asked_as_its_first_part(runs, ask):
    code, out, err = ask(f"--from={runs / 'encoder.mixture'}", "abc [MASK] fa")
    assert code == 0 and out.startswith("abc ") and "[MASK]" not in out, err


def test_mistakes_take_one_line(runs, ask):
    for words, cause in (
        ((f"--from={runs / 'decoder.causal'}", "--order=left", "a"), "order=left is of models that fill in masks, and this"),
        ((f"--from={runs / 'decoder.causal'}", "--steps=3", "a"), "steps=3 is of models that fill in masks, and this one"),
        ((f"--from={runs / 'encoder.masked'}", "--order=left", "a"), "the text 'a' has no [MASK]: put one where"),
        ((f"--from={runs / 'encoder.masked'}", "--order=lift", "a [MASK]"), "--order"),
    ):
        code, _, err = ask(*words)
        assert code == 2 and cause in err and err.startswith("error: ") and err.count("\n") == 1, err


@pytest.mark.parametrize(
    "name",
    ["encoder.masked", "encoder.mixture", "decoder.fill_in_middle", "decoder.mixture", "decoder.masked_diffusion"]
    + ["encoder_decoder.span_corruption", "encoder_decoder.denoise", "encoder_decoder.mass"],
)  # fmt: skip
def test_one_call_fills_in(runs, name):
    source = saved.open(runs / name)
    params, tokenizer = source.params(device=jax.local_devices()[0]), source.tokenizer()
    found = infill(Transformer(source.model), params, tokenizer, source.run.objective, ["abc [MASK] de"], new_tokens=8)
    (filled,) = found[0]
    assert filled.spans is None or filled.text == f"abc{filled.spans[0]} de"
