"""What lies between encoder and decoder: k vectors of each document, and vectors put before a decoder's tokens."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm.config import Attention, Block, Bottleneck, Embed, Head, Lstm, Mlp, Model, Rope, Sampling, Stack
from lm.errors import UserError
from lm.generation import beam
from lm.generation.engine import Engine, Request
from lm.generation.padding import left_padded, whole
from lm.generation.rank import rank
from lm.losses.log_probs import log_probs
from lm.models.bottleneck import gaussians
from lm.models.joined import positions_before
from lm.models.transformer import Transformer, head_params
from lm.types import Example, TokenStream
from tests.engines import greedy, tokens, written
from tests.unit.models.small import close, start, stream

V, D = 23, 16
PLAIN = Block(Attention(4), Mlp(24))
RECURRENT = Block(ffn=None, mixer=Lstm())
BOTTLENECKS = {
    "none": None,
    "mean": Bottleneck(documents=3),
    "first": Bottleneck(pool="first", width=6, documents=3),
    "last": Bottleneck(pool="last", documents=3),
    "queries": Bottleneck(vectors=2, pool="queries", num_heads=2, documents=3),
    "gaussian": Bottleneck(vectors=2, pool="queries", width=5, latent="gaussian", documents=3),
}


def model(bottleneck, join="cross", block=PLAIN, **changes) -> Model:
    across = replace(block, cross=True, attention=Attention(4)) if join == "cross" else block
    position = None if block.mixer is not None else Rope()
    stacks = dict(encoder=Stack(1, {"L": block}, position=position), decoder=Stack(2, {"L": across}, position=position))
    return Model(V, D, **stacks, head=Head(tied=False), bottleneck=bottleneck, join=join, **changes)


def packed(*lengths, size, seed=0) -> TokenStream:
    """Documents of these lengths in one row [1, size], a segment each."""
    rng, parts = np.random.default_rng(seed), [np.arange(n) for n in lengths]
    row = np.zeros((3, size), np.int32)
    row[0, : sum(lengths)] = rng.integers(1, V, sum(lengths))
    row[1, : sum(lengths)] = np.concatenate(parts)
    row[2, : sum(lengths)] = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return TokenStream(*row[:, None])


def piece(s: TokenStream, number: int) -> TokenStream:
    """A document of a row, alone."""
    mine = s.segments[0] == number
    return TokenStream(s.tokens[:, mine], s.positions[:, mine], np.ones((1, mine.sum()), np.int32))


@partial(jax.jit, static_argnames=("module", "method"))
def apply(module, params, *given, method, rngs=None):
    return module.apply({"params": params}, *given, method=method, rngs=rngs)


CASES = [(name, join) for name in BOTTLENECKS for join in ("cross", "prefix")]


@pytest.mark.parametrize("block", [PLAIN, RECURRENT], ids=["attention", "lstm"])
@pytest.mark.parametrize("name,join", CASES)
def test_documents_of_a_row_are_read_each_by_itself(name, join, block):
    module, params = start(model(BOTTLENECKS[name], join, block))
    encoder, decoder = packed(4, 3, 2, size=11), packed(3, 4, 1, size=10, seed=1)
    alone = lambda number, s: jax.tree.map(lambda x: np.pad(x, ((0, 0), (0, s.tokens.shape[1] - x.shape[1]))), piece(s, number))
    rows = [(encoder, decoder), *((alone(n, encoder), alone(n, decoder)) for n in (1, 2, 3))]
    batch = jax.tree.map(lambda *x: np.concatenate(x), *(Example(*pair, None, None) for pair in rows))
    packed_row, *others = np.asarray(apply(module, params, batch, method="hidden"))
    for number, other in enumerate(others, 1):
        mine = decoder.segments[0] == number
        close(packed_row[mine], other[: mine.sum()])


def test_vectors_are_those_of_numpy():
    """Mean, first and last token, by hand; k queries attend as a softmax of scaled products."""
    encoder = packed(4, 3, size=9)
    for name in ("mean", "first", "last", "queries"):
        module, params = start(model(BOTTLENECKS[name]))
        x = np.asarray(apply(module, params, encoder, method="encode"))[0]
        found, segments = apply(module, params, encoder, method="encoded")
        k = BOTTLENECKS[name].vectors
        assert segments.tolist() == [[1] * k + [2] * k + [0] * k]
        for number in (1, 2):
            own, p = x[encoder.segments[0] == number], jax.tree.map(np.asarray, params.get("bottleneck", {}))
            if name == "queries":
                a = p["attention"]
                project = lambda y, part, a=a: np.einsum("td,dnh->nth", y, a[part]["kernel"])
                q, key, value = project(p["queries"], "query"), project(own, "key"), project(own, "value")
                scores = np.exp(np.einsum("nth,nsh->nts", q, key) * (D // 2) ** -0.5)
                y = np.einsum("nts,nsh->nth", scores / scores.sum(-1, keepdims=True), value)
                wanted = np.einsum("nth,nhd->td", y, a["out"]["kernel"])
            else:
                wanted = {"mean": own.mean(0), "first": own[0], "last": own[-1]}[name][None]
                if name == "first":
                    down, up = p["down"], p["up"]
                    wanted = (wanted @ down["kernel"] + down["bias"]) @ up["kernel"] + up["bias"]
            close(np.asarray(found)[0, (number - 1) * k : number * k], wanted)


def test_a_row_of_more_documents_is_not_a_number():
    module, params = start(model(BOTTLENECKS["mean"]))
    vectors, _ = apply(module, params, packed(2, 2, 1, 2, size=8), method="encoded")
    assert np.isnan(vectors).all()


def test_a_prefix_is_what_tokens_of_these_vectors_would_be():
    """The decoder alone, with further rows in its table that are the prefix's vectors."""
    made = model(BOTTLENECKS["queries"], "prefix")
    module, params = start(made)
    encoder, decoder = packed(5, size=5), packed(6, size=6, seed=1)
    hidden = apply(module, params, Example(encoder, decoder, None, None), method="hidden")
    vectors, _ = apply(module, params, encoder, method="encoded")
    rows = vectors[0, :2] @ params["join"]["kernel"] + params["join"]["bias"]
    alone = Model(V + 2, D, decoder=made.decoder, head=made.head)
    table = jnp.concatenate([params["embed"]["tokens"]["embedding"], rows])
    own = {"decoder": params["decoder"], "embed": {"tokens": {"embedding": table}}, "head": params["head"]}
    text = stream(np.concatenate([[[V, V + 1]], decoder.tokens], axis=1))
    wanted = apply(Transformer(alone), own, Example(None, text, None, None), method="hidden")
    close(hidden, wanted[:, 2:])


def test_positions_before_the_tokens():
    segments = jnp.array([[1, 1, 2, 2, 0], [1, 2, 2, 2, 3]])
    assert positions_before(segments).tolist() == [[-2, -1, -2, -1, -1], [-1, -3, -2, -1, -1]]


@pytest.mark.parametrize("block", [PLAIN, RECURRENT], ids=["attention", "lstm"])
@pytest.mark.parametrize("name,join", [("none", "prefix"), ("queries", "cross"), ("gaussian", "prefix"), ("mean", "prefix")])
def test_what_is_written_is_that_of_whole_passes(name, join, block):
    """By the engine, in slots of one cache, by a beam search, and of latents instead of a text."""
    module, params = start(model(BOTTLENECKS[name], join, block))
    rng = np.random.default_rng(3)
    texts, begin = [rng.integers(3, V, n).astype(np.int32) for n in (4, 13, 7)], np.array([1, 5], np.int32)
    wanted = [greedy(module, params, begin, 8, encoder=text) for text in texts]
    engine = Engine(module, params, slots=2, length=12, source=20)
    found = written(engine, *(Request(begin, 8, Sampling(temperature=0.0), p) for p in texts))
    assert [tokens(f)[0] for f in found] == wanted
    best = beam.search(module, params, begin, beams=1, new_tokens=8, encoder=whole(texts[0]))
    assert best[0].tokens == wanted[0]
    if name != "none":
        z = np.asarray(apply(module, params, whole(texts[1]), method="latents"))[0, 0]
        (again,) = written(engine, Request(begin, 8, Sampling(temperature=0.0), z))
        assert tokens(again)[0] == wanted[1]


@pytest.mark.parametrize("block", [PLAIN, RECURRENT], ids=["attention", "lstm"])
@pytest.mark.parametrize("join", ["cross", "prefix"])
def test_answers_are_ranked_by_their_log_probabilities(join, block):
    module, params = start(model(BOTTLENECKS["queries"], join, block))
    rng = np.random.default_rng(4)
    texts, begins = ([rng.integers(3, V, n).astype(np.int32) for n in sizes] for sizes in ((4, 6), (2, 3)))
    answers = rng.integers(3, V, (3, 2)).astype(np.int32)
    found = rank(module, params, left_padded(begins), answers, np.ones((3, 2), np.float32), encoder=left_padded(texts))
    for i, (text, begin) in enumerate(zip(texts, begins, strict=True)):
        for j, answer in enumerate(answers):
            row = np.concatenate([begin, answer])
            example = Example(whole(text), whole(row[:-1]), row[None, 1:], np.ones((1, len(row) - 1), np.float32))
            settings = dict(apply=module.apply, head_params=head_params, vocab_size=V)
            each = jax.jit(partial(log_probs, **settings))(params, example=example)
            assert float(found[i, j]) == pytest.approx(float(each[0, -2:].sum()), rel=1e-4)


def test_a_gaussian_is_its_mean_without_an_rng_and_drawn_with_one():
    module, params = start(model(BOTTLENECKS["gaussian"]))
    variables, text = {"params": params}, packed(4, 3, size=9)
    apply = lambda **rngs: module.apply(variables, text, method="encoded", rngs=rngs or None, mutable=["latents"])
    (plain, _), sown = apply()
    found = gaussians(sown)
    assert found.mean.shape == found.log_var.shape == (1, 3, 2, 5) and found.there.tolist() == [[True, True, False]]
    up = params["bottleneck"]["up"]
    close(plain.reshape(1, 3, 2, D), found.mean @ up["kernel"] + up["bias"])
    close(module.apply(variables, text, method="latents"), found.mean)
    (drawn, _), _ = apply(latent=jax.random.key(1))
    noise = jax.vmap(lambda k: apply(latent=k)[0][0])(jax.random.split(jax.random.key(0), 4000))
    assert np.abs(drawn - plain).max() > 0.1
    inverse = np.linalg.pinv(np.asarray(up["kernel"]))
    z = (np.asarray(noise) - np.asarray(up["bias"])).reshape(4000, 3, 2, D) @ inverse
    np.testing.assert_allclose(z.std(0), np.exp(0.5 * found.log_var[0]), rtol=0.06)
    np.testing.assert_allclose(z.mean(0), found.mean[0], atol=0.15)


@pytest.mark.parametrize(
    "make,message",
    [
        (lambda: Bottleneck(vectors=2), "vectors=2 and pool='mean', which gives one vector"),
        (lambda: Bottleneck(num_heads=2), "num_heads=2 is of pool='queries'"),
        (lambda: Model(V, D, decoder=Stack(1, {"L": PLAIN}), join="prefix"), "join='prefix' is what a decoder reads of"),
        (lambda: Model(V, D, encoder=Stack(1, {"L": PLAIN}), bottleneck=Bottleneck()), "bottleneck is what a decoder reads"),
        (lambda: replace(model(None), join="prefix"), "set cross=False in decoder.blocks"),
        (lambda: replace(model(None, "prefix"), join="cross"), "no block of the decoder reads the encoder"),
        (lambda: model(Bottleneck(), kernel="splash"), "kernel='splash' takes rows of whole tiles"),
        (lambda: model(Bottleneck(pool="queries", num_heads=3)), "num_heads=3 does not divide width=16"),
    ],
)
def test_what_does_not_go_together_is_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()


def test_embeddings_may_be_dropped_in_the_decoder_alone():
    made = model(BOTTLENECKS["mean"], embed=Embed(token_dropout=0.5, token_dropout_in="decoder"))
    module, params = start(made)
    text, rngs = packed(6, size=6), {"dropout": jax.random.key(0)}
    embedded = lambda name, rngs=None: module.apply({"params": params}, text, name, method="embedded", rngs=rngs)
    close(embedded("encoder", rngs), embedded("encoder"))
    assert (embedded("decoder", rngs) == 0).all(axis=-1).any()
