"""The ledger against XLA's own count of an unrolled model, and against sums done by hand."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from lm import config, flops
from lm.config import Attention, Block, Head, Mlp, Model, Rope, Stack
from lm.data.rows import blank, stack
from lm.losses.contrastive import vectors
from lm.losses.cross_entropy import cross_entropy
from lm.models.mask import Mask
from lm.models.presets.gpt import GPT2
from lm.models.transformer import Transformer, head_params
from lm.objectives import Lengths, build, pairs
from lm.recipes import task
from lm.types import Example, TokenStream

B, V, D = 2, 2048, 512
BLOCK = Block(Attention(4), Mlp(4 * D, "relu"), norm=config.Norm("rms"))
GQA = replace(BLOCK, attention=Attention(8, 2, head_dim=32), ffn=Mlp(768, "relu", gated=True))
ENCODER, DECODER, BOTH = Lengths(128, None, 24), Lengths(None, 128), Lengths(128, 64)
CROSS = Stack(2, {"L": replace(BLOCK, cross=True)})
PLAIN = dict(encoder=Stack(2, {"L": BLOCK}), decoder=Stack(2, {"L": BLOCK}))
QUERIES = config.Bottleneck(vectors=16, pool="queries", num_heads=4, width=128)
CASES = {
    "decoder": (Model(V, D, decoder=Stack(2, {"L": BLOCK}, position=Rope())), DECODER),
    "decoder, GQA, gated": (Model(V, D, decoder=Stack(2, {"L": GQA}), head=Head(tied=False)), DECODER),
    "encoder": (Model(V, D, encoder=Stack(2, {"L": BLOCK}), head=Head(transform="relu")), ENCODER),
    "encoder-decoder": (Model(V, D, encoder=Stack(2, {"L": BLOCK}), decoder=CROSS), BOTH),
    "bottleneck": (Model(V, D, encoder=Stack(2, {"L": BLOCK}), decoder=CROSS, bottleneck=QUERIES), BOTH),
    "bottleneck, prefix": (Model(V, D, **PLAIN, bottleneck=replace(QUERIES, latent="gaussian"), join="prefix"), BOTH),
    "mean, prefix": (Model(V, D, **PLAIN, bottleneck=config.Bottleneck(documents=4), join="prefix"), BOTH),
    "prefix": (Model(V, D, **PLAIN, join="prefix"), BOTH),
}


@pytest.mark.parametrize("name", CASES)
def test_as_many_as_xla_counts(name):
    model, lengths = CASES[name]
    example = jax.tree.map(jnp.asarray, stack([blank(lengths)] * B))
    module = Transformer(model)
    params = jax.eval_shape(lambda key: nn.unbox(module.init(key, example))["params"], jax.random.key(0))

    def loss(params, example):
        settings = dict(head_params=head_params, vocab_size=V, chunks=1)
        return cross_entropy(params, module.apply, example, **settings).total

    xla = jax.jit(jax.grad(loss)).lower(params, example).cost_analysis()["flops"]
    sizes = dict(encoder=lengths.encoder, decoder=lengths.decoder, predicted=lengths.predicted)
    ours = flops.count(model, batch=B, **sizes, causal_share=1.0)
    assert ours.train == pytest.approx(xla, rel=0.02)


@pytest.mark.parametrize("predict", ["replaced", "masked", "all"])
def test_two_models_are_as_many_as_xla_counts(predict):
    """A generator whose logits are at the masks alone, with tables that are projected, and the model that it trains."""
    head = Head(tied=False, outputs=1, transform="relu") if predict == "replaced" else Head(transform="relu")
    encoder = lambda width: Stack(2, {"L": replace(BLOCK, ffn=Mlp(4 * width, "relu"))}, position=Rope())
    generator = Model(V, D // 2, encoder=encoder(D // 2), embed=config.Embed(width=D), head=Head(transform="relu"))
    objective = config.ReplacedTokens(generator, predict=predict)
    what = task(config.Run(Model(V, D, encoder=encoder(D), head=head), objective=objective))
    example = jax.tree.map(jnp.asarray, stack([blank(ENCODER)] * B))
    params = nn.unbox(jax.eval_shape(what.init, jax.random.key(0), example))
    loss = lambda params, example: what.loss(params, None, example, None)[0].total
    xla = jax.jit(jax.grad(loss)).lower(params, example).cost_analysis()["flops"]
    passes = [flops.count(m, batch=B, encoder=ENCODER.encoder, predicted=p, causal_share=1.0) for m, p in what.passes(ENCODER)]
    assert sum(p.train for p in passes) == pytest.approx(xla, rel=0.02)
    assert all(p.head for p in passes) and passes[0].embed == 2 * B * 128 * D * D // 2 and passes[1].embed == 0


FEW = 512  # tokens: to draw one takes a cumulative sum, which XLA counts as quadratic in them
VOCABULARY = SimpleNamespace(
    vocab_size=FEW,
    bos_id=1,
    eos_id=2,
    mask_id=3,
    sentinel_ids=tuple(range(4, 40)),
    special=np.arange(FEW) < 40,
    sentence_ends=lambda tokens: np.ones(len(tokens), bool),
)
# Parts of a mixture: two of the architecture's own, the second with a mode, which takes a place of the row.
PARTS = {
    "decoder": (config.Causal(), config.SpanCorruption()),
    "encoder": (config.Masked(), config.NextSentence()),
    "encoder_decoder": (config.Denoise(), config.SpanCorruption()),
}


def objective_of(architecture, kind):
    if kind is config.Mixture:
        first, second = PARTS[architecture]
        return kind({"a": config.Part(first), "b": config.Part(second, mode="b")})
    if kind is config.ReplacedTokens:
        small = Stack(1, {"L": replace(BLOCK, ffn=Mlp(D, "relu"))})
        return kind(Model(FEW, D // 2, encoder=small, embed=config.Embed(width=D), head=Head(transform="relu")))
    return kind()


def test_contrast_is_two_passes_without_logits():
    """Without dropout, whose random bits XLA counts as well; the cosines are too few to matter."""
    data = config.Data(encoder_length=128)
    lengths = build(config.Contrastive(), "encoder", data, VOCABULARY).lengths
    model = Model(FEW, D, encoder=Stack(1, {"L": BLOCK}, dropout=0.1))
    what = task(config.Run(model, data, config.Contrastive()))
    example = jax.tree.map(jnp.asarray, stack([blank(lengths)] * B))
    params = nn.unbox(jax.eval_shape(what.init, jax.random.key(0), example))
    loss = lambda params, e: jnp.sum(vectors(params, Transformer(model).apply, e, None) ** 2)
    xla = jax.jit(jax.grad(loss)).lower(params, example).cost_analysis()["flops"]
    ours = sum(flops.count(m, batch=B, encoder=128, predicted=p, causal_share=1.0).train for m, p in what.passes(lengths))
    assert ours == pytest.approx(2 * xla, rel=0.02)


PAIRS = [(architecture, kind) for architecture, kind in pairs() if kind is not config.Contrastive]


@pytest.mark.parametrize("architecture,kind", PAIRS, ids=lambda x: x if isinstance(x, str) else x.__name__)
def test_every_objective_is_as_many_as_xla_counts(architecture, kind):
    """Rows are blank: of an objective only the shapes decide, and XLA counts every place, padding too."""
    objective = objective_of(architecture, kind)
    data = config.Data(encoder_length=128, decoder_length=64 if architecture == "encoder_decoder" else 128)
    lengths = build(objective, architecture, data, VOCABULARY).lengths
    cross = replace(BLOCK, cross=architecture == "encoder_decoder")
    model = Model(
        FEW,
        D,
        encoder=Stack(1, {"L": BLOCK}) if "encoder" in architecture else None,
        decoder=Stack(1, {"L": cross}) if "decoder" in architecture else None,
        embed=config.Embed(types=2 if lengths.types else 0),
        head=Head(tied=False, outputs=1) if kind is config.ReplacedTokens else Head(),
        bottleneck=config.Bottleneck(latent="gaussian", width=64) if kind is config.Variational else None,
    )
    what = task(config.Run(model, data, objective))
    example = jax.tree.map(jnp.asarray, stack([blank(lengths)] * B))
    params = nn.unbox(jax.eval_shape(what.init, jax.random.key(0), example))
    loss = lambda params, example: what.loss(params, None, example, None)[0].total
    xla = jax.jit(jax.grad(loss)).lower(params, example).cost_analysis()["flops"]
    sizes = dict(encoder=lengths.encoder, decoder=lengths.decoder, causal_share=1.0)
    ours = sum(flops.count(m, batch=B, predicted=p, **sizes).train for m, p in what.passes(lengths))
    assert ours == pytest.approx(xla, rel=0.02)


def count(block, length=10, **changes):
    return flops.count(Model(50, 8, decoder=Stack(1, {"L": block}), **changes), batch=3, decoder=length)


def test_by_hand():
    """Width 8, rows of 10 tokens, 3 rows; a product of [m, k] and [k, n] is 2 m k n."""
    plain = count(Block(Attention(2), Mlp(32)))
    assert plain.projections == 3 * 4 * (2 * 10 * 8 * 8)
    assert plain.attention == 3 * 2 * (2 * 10 * 5 * 8)  # half the keys
    assert plain.ffn == 3 * 2 * (2 * 10 * 8 * 32)
    assert plain.head == 3 * 2 * 10 * 8 * 50
    assert plain.train == 3 * plain.forward == 3 * (plain.projections + plain.attention + plain.ffn + plain.head)


def test_variations_by_hand():
    plain = count(Block(Attention(2), Mlp(32)))
    assert count(Block(Attention(2), Mlp(32, gated=True))).ffn == 1.5 * plain.ffn
    gqa = count(Block(Attention(4, 1, head_dim=3), Mlp(32)))  # q and out 8 x 12, k and v 8 x 3
    assert gqa.projections == 3 * 2 * 10 * 8 * (2 * 12 + 2 * 3)
    assert gqa.attention == 3 * 2 * (2 * 10 * 5 * 12)
    transform = count(Block(Attention(2), Mlp(32)), head=Head(transform="gelu"))
    assert transform.head == plain.head + 3 * 2 * 10 * 8 * 8


@pytest.mark.parametrize("window", [1, 2, 4, 10, 100])
def test_windows_by_hand(window):
    """A causal query t of a window sees min(t + 1, window) keys; the ledger takes the area of it, without the stairs."""
    windowed = count(Block(Attention(2, window=window), Mlp(32)), length=1000).attention
    exact = sum(min(t + 1, window) for t in range(1000))
    assert windowed == pytest.approx(3 * 2 * 2 * exact * 8, rel=0.01 if window > 50 else 0.5 / window + 0.01)
    model = Model(50, 8, encoder=Stack(1, {"L": Block(Attention(2, window=window), Mlp(32))}))
    both_sides = flops.count(model, batch=1, encoder=50)
    assert both_sides.attention == 2 * 2 * 50 * min(window, 50) * 8


def test_predicted_places_and_patterns():
    local, full = Block(Attention(2, window=4), Mlp(32)), Block(Attention(2), Mlp(16))
    stack_ = Stack(3, {"L": local, "G": full}, "LG")
    whole = flops.count(Model(50, 8, decoder=stack_), batch=3, decoder=20)
    parts = [count(b, 20) for b in (local, full, local)]
    for name in ("projections", "attention", "ffn"):
        assert getattr(whole, name) == sum(getattr(p, name) for p in parts)
    some = flops.count(Model(50, 8, encoder=stack_), batch=3, encoder=20, predicted=4)
    assert some.head == 3 * 2 * 4 * 8 * 50


def test_near_six_flops_a_parameter():
    """6 N a token, as PaLM counts, plus attention: GPT-2 at 1,024 tokens."""
    got = flops.count(GPT2, batch=1, decoder=1024).train / 1024
    n = 124_439_808 - 1024 * 768  # all but the positions
    attention = 12 * 12 * 768 * 1024 / 2
    assert got == pytest.approx(6 * n + attention, rel=0.002)


PACKED = TokenStream(
    *np.array([[[1] * 9], [[0, 1, 2, 3, 4, 0, 1, 2, 0]], [[1, 1, 1, 1, 1, 2, 2, 2, 0]]]),
    prefix=np.array([[1, 1, 1, 0, 0, 1, 0, 0, 0]], bool),
)
READ = TokenStream(*np.array([[[1] * 6], [[0, 1, 0, 1, 2, 0]], [[1, 1, 2, 2, 2, 0]]]))


@pytest.mark.parametrize("window", [None, 2, 3, 4, 100])
@pytest.mark.parametrize("streams", [(None, PACKED), (PACKED, None), (READ, PACKED)])
def test_of_rows_counts_the_pairs_that_the_mask_lets_through(streams, window):
    encoder, decoder = streams
    block = Block(Attention(2, window=window), Mlp(32))
    model = Model(
        50,
        8,
        encoder=Stack(2, {"L": block}) if encoder else None,
        decoder=Stack(3, {"L": replace(block, cross=encoder is not None)}) if decoder else None,
    )
    weights = np.array([[0, 1, 1, 0, 0.5, 0, 0, 0, 0]])
    got = flops.of_rows(model, Example(encoder, decoder, np.zeros_like(weights), weights))

    def pairs(q, k, causal):
        # A row of padding looks at padding: not counted.
        seen = Mask(q.segments, k.segments, k.prefix if causal else None, causal=causal).dense(window if q is k else None)
        return int((np.asarray(seen) & (q.segments[:, :, None] > 0)).sum())

    tokens = lambda stream: int((stream.segments > 0).sum())
    attention = projections = ffn = 0
    for stream, layers, causal in ((encoder, 2, False), (decoder, 3, True)):
        if stream is not None:
            attention += layers * 2 * 2 * 8 * pairs(stream, stream, causal)
            projections += layers * 4 * 2 * 8 * 8 * tokens(stream)
            ffn += layers * 2 * 2 * 8 * 32 * tokens(stream)
    if encoder and decoder:
        attention += 3 * 2 * 2 * 8 * pairs(decoder, encoder, False)
        projections += 3 * 2 * 2 * 8 * 8 * (tokens(decoder) + tokens(encoder))
    assert (got.attention, got.projections, got.ffn, got.head) == (attention, projections, ffn, 2 * 3 * 8 * 50)


def test_of_rows_is_count_where_nothing_is_padding():
    ones = np.ones((3, 20), np.int32)
    row = TokenStream(ones, ones, ones)
    model = Model(50, 8, decoder=Stack(2, {"L": Block(Attention(2), Mlp(32))}))
    whole = flops.of_rows(model, Example(None, row, ones, ones))
    counted = flops.count(model, batch=3, decoder=20, causal_share=21 / 40)  # half, and the diagonal
    assert whole.train == pytest.approx(counted.train, rel=1e-12)


def test_peaks():
    assert flops.peak("TPU v4") == 275e12
    assert flops.peak("cpu") is None


@pytest.mark.parametrize("name", ["decoder, GQA, gated", "encoder-decoder"])
def test_frozen_matrices_have_no_gradient_and_adapters_cost_their_own(name):
    model, lengths = CASES[name]
    sizes = dict(encoder=lengths.encoder, decoder=lengths.decoder, predicted=lengths.predicted)
    full, count = flops.count(model, batch=B, **sizes), lambda lora: flops.count(model, batch=B, **sizes, lora=lora)
    # By hand, tokens times inputs and outputs of each matrix: GQA's hidden of 768 has three, 4 D has two.
    if name == "encoder-decoder":
        layer, source, read = 4 * 2 * D + 2 * 5 * D, 2 * 2 * D, 2 * 2 * D
        sides = 2 * (128 * layer + 64 * layer + 64 * read + 128 * source)
    else:
        sides = 2 * 128 * (2 * (D + 256) + 2 * (D + 64) + 3 * (D + 768))
    found = count(config.Lora(rank=8))
    assert found.adapters == 2 * B * 8 * sides
    linear = full.projections + full.ffn + full.head + full.embed
    assert found.train == 3 * full.attention + 2 * linear + 3 * found.adapters
    assert found.forward == full.forward + found.adapters
    queries = count(config.Lora(rank=8, modules=("query",))).adapters
    own = count(config.Lora(rank=8, modules=("attention/query",))).adapters
    assert 0 < own <= queries < found.adapters / 4 and (own < queries) == (name == "encoder-decoder")
