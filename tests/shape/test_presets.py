"""Every preset at its full published size, by `eval_shape`: nothing is allocated."""

import dataclasses
import math

import jax
import pytest

from lm import config
from lm.data.rows import blank, stack
from lm.models.presets.bert import BERT_BASE, BERT_LARGE
from lm.models.presets.gpt import GPT2, GPT2_LARGE, GPT2_MEDIUM, GPT2_XL
from lm.models.presets.t5 import T5_BASE, T5_LARGE, T5_SMALL
from lm.models.transformer import Transformer
from lm.objectives import Lengths

PUBLISHED = {
    "gpt2": (GPT2, 124_439_808),
    "gpt2-medium": (GPT2_MEDIUM, 354_823_168),
    "gpt2-large": (GPT2_LARGE, 774_030_080),
    "gpt2-xl": (GPT2_XL, 1_557_611_200),
    "bert-base-uncased": (BERT_BASE, 109_514_298),
    "bert-large-uncased": (BERT_LARGE, 335_174_458),
    "t5-small": (T5_SMALL, 60_506_624),
    "t5-base": (T5_BASE, 222_903_552),
    "t5-large": (T5_LARGE, 737_668_096),
}


def num_parameters(model: config.Model) -> int:
    row = blank(Lengths(16 if model.encoder else None, 16 if model.decoder else None))
    init = lambda key: Transformer(model).init(key, stack([row]))
    params = jax.eval_shape(init, jax.random.key(0))["params"]
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_parameter_count(name):
    model, published = PUBLISHED[name]
    assert num_parameters(model) == published


def theirs(name: str):
    """transformers' model of the same size, on the meta device, from sizes alone."""
    import transformers as t

    model, _ = PUBLISHED[name]
    stack = model.encoder or model.decoder
    heads, hidden = stack.blocks["L"].attention.num_heads, stack.blocks["L"].ffn.hidden
    if name.startswith("gpt2"):
        return t.GPT2LMHeadModel(t.GPT2Config(n_embd=model.width, n_layer=stack.num_layers, n_head=heads))
    if name.startswith("bert"):
        sizes = dict(hidden_size=model.width, num_hidden_layers=stack.num_layers)
        return t.BertForMaskedLM(t.BertConfig(**sizes, num_attention_heads=heads, intermediate_size=hidden))
    sizes = dict(d_model=model.width, num_layers=stack.num_layers, num_heads=heads, d_ff=hidden)
    return t.T5ForConditionalGeneration(t.T5Config(vocab_size=32_128, **sizes))


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_many_parameters_as_transformers(name):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    with torch.device("meta"):
        model = theirs(name)
    assert sum(p.numel() for p in model.parameters()) == PUBLISHED[name][1]


@pytest.mark.parametrize("name", PUBLISHED)
def test_scanned_is_as_large(name):
    """The same parameters with the layers stacked, and more than one turn."""
    model, published = PUBLISHED[name]
    stacks = {n: getattr(model, n) for n in ("encoder", "decoder")}
    scanned = {n: s and dataclasses.replace(s, scan=True) for n, s in stacks.items()}
    assert num_parameters(dataclasses.replace(model, **scanned)) == published
