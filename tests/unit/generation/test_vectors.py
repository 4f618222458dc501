"""Vectors of texts equal those of a plain loop that reads one text at a time without padding."""

from dataclasses import replace
from types import SimpleNamespace
from typing import get_args

import jax
import numpy as np
import pytest
from flax import linen as nn

from lm import config, embed
from lm.config import Alibi, Buckets, Learned, Mlp, Moe, Rope
from lm.errors import UserError
from lm.generation import vectors as module
from lm.generation.vectors import POOLINGS, Embedder, cosines, usual_length, usual_pooling
from lm.models.transformer import Transformer
from lm.types import Example, TokenStream
from tests.fakes import WORDS, WordTokenizer, random_params, small_model

BOS, EOS = 1, 2
SIZES = (3, 30, 0, 15, 14, 9)  # words of texts; with bos and eos those of 14 and 30 fill a bucket, that of 15 exceeds one


class Words(WordTokenizer):
    fingerprint = "words"
    sentinel_ids = (20, 21, 22, 23, 24)


def texts(*sizes, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(WORDS[i] for i in rng.integers(3, len(WORDS), n)) for n in sizes]


def made(architecture="encoder", position=None, ffn=None, **changes):
    """A model with parameters so large that its hidden vectors differ much."""
    model = small_model(architecture, **changes)
    for name in ("encoder", "decoder"):
        if (stack := getattr(model, name)) and (position or ffn):
            block = replace(stack.blocks["L"], ffn=ffn or stack.blocks["L"].ffn)
            model = replace(model, **{name: replace(stack, blocks={"L": block}, position=position or stack.position)})
    stream = TokenStream(*[np.ones((1, 4), np.int32)] * 3)
    example = Example(*(stream if s in model.architecture else None for s in ("encoder", "decoder")), None, None)
    return Transformer(model), random_params(Transformer(model), example, 0.3)


def embedder(made, objective=None, **settings):
    return Embedder(*made, Words(), objective, **{"length": 64, "batch_size": 4, "normalise": False, **settings})


def hidden(made, ids, prefix=None, blocks=None):
    """float32 [n, D]: what the model makes of one text, in a row of its own."""
    model, params = made
    row = lambda x: None if x is None else np.asarray(x)[None]
    stream = TokenStream(row(ids), row(np.arange(len(ids))), row(np.ones(len(ids), np.int32)), row(prefix), blocks=row(blocks))
    return np.asarray(model.apply({"params": params}, stream, method="encode" if model.config.encoder else "decode"))[0]


def ids_of(text):
    return np.array([BOS, *(WORDS.index(w) for w in text.split()), EOS], np.int32)


LOOPS = {
    "mean": lambda x: sum(x) / len(x),
    "cls": lambda x: x[0],
    "last": lambda x: x[len(x) - 1],
    "max": lambda x: np.array([max(row[d] for row in x) for d in range(x.shape[1])]),
}


def test_the_command_offers_all_poolings():
    assert set(get_args(embed.Pooling)) == set(POOLINGS) == set(LOOPS)


@pytest.mark.parametrize(
    ("architecture", "position"),
    [
        ("encoder", Learned(32)),
        ("encoder", Buckets(8, 20)),
        ("decoder", Rope()),
        ("decoder", Alibi()),
        ("encoder_decoder", Learned(32, offset=2)),
    ],
)
def test_a_vector_is_that_of_the_text_alone(architecture, position):
    """In the order of the texts, whatever texts of other lengths are read with it."""
    model, given = made(architecture, position), texts(*SIZES)
    alone = [hidden(model, ids_of(text)) for text in given]
    for pooling, loop in LOOPS.items():
        found = embedder(model, pooling=pooling, length=32)(given)
        wanted = np.array([loop(x) for x in alone])
        assert found.dtype == np.float32 and found.shape == (len(SIZES), 32)
        np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)
        apart = np.abs(wanted[:, None] - wanted[None]).max(-1)[~np.eye(len(wanted), dtype=bool)]
        assert apart.min() > 1e-2 or (pooling == "cls" and architecture == "decoder")  # whose first token sees no other


def test_the_last_token_is_the_texts_own():
    """A short text beside a long one ends in padding, whose hidden vector is another."""
    model = made("decoder")
    short, long = texts(4, 20)
    found = embedder(model, pooling="last")([long, short])
    np.testing.assert_allclose(found[1], hidden(model, ids_of(short))[5], atol=1e-5)
    ids = np.pad(ids_of(short), (0, 26))
    padded = TokenStream(ids[None], (np.arange(32) * (ids > 0))[None], np.int32(ids > 0)[None])
    at_end = model[0].apply({"params": model[1]}, padded, method="decode")[0, -1]
    assert np.abs(at_end - found[1]).max() > 1e-2


def test_experts_with_a_capacity_drop_nothing():
    """The number of tokens that an expert takes is a share of the row, padding included."""
    ffn = Moe(num_experts=4, top_k=1, expert=Mlp(16), capacity=0.5)
    model, params = made("decoder", ffn=ffn)
    ours = embedder((model, params), pooling="last")
    given = texts(3, 30, 9)
    found = ours(given)
    limited = [hidden((model, params), ids_of(text))[-1] for text in given]
    free = [hidden((ours.model, params), ids_of(text))[-1] for text in given]
    np.testing.assert_allclose(found, free, atol=1e-5, rtol=0)
    assert np.abs(found - limited).max() > 1e-2  # which capacity would have changed


@pytest.mark.parametrize(
    ("objective", "ahead"),
    [(config.MaskedDiffusion(), 0), (config.BlockDiffusion(block=4), 0), (config.AnyOrder(), 33)],
)
def test_a_decoder_reads_as_it_was_trained(objective, ahead):
    """All tokens see each other; or those of their block and before; or are told the position after their own."""
    model = made("decoder", embed=config.Embed(ahead=ahead))
    given, wanted = texts(3, 30, 9), []
    for text in given:
        ids = ids_of(text)
        prefix = np.ones(len(ids), bool) if isinstance(objective, config.MaskedDiffusion) else None
        blocks = 2 * (np.arange(len(ids)) // 4) + 1 if isinstance(objective, config.BlockDiffusion) else None
        wanted.append(hidden(model, ids, prefix, blocks).mean(0))
    found = embedder(model, objective, length=32)(given)
    np.testing.assert_allclose(found, wanted, atol=1e-5, rtol=0)
    causal = np.array([hidden(model, ids_of(text)).mean(0) for text in given])
    assert (np.abs(found - causal).max() > 1e-2) == (not ahead)


@pytest.mark.parametrize(
    ("architecture", "objective", "before", "after"),
    [
        ("encoder", None, [BOS], [EOS]),
        ("encoder", config.Masked(), [BOS], [EOS]),
        ("encoder", config.Contrastive(), [BOS], [EOS]),
        ("decoder", None, [BOS], [EOS]),
        ("decoder", config.Contrastive(), [BOS], [EOS]),
        ("decoder", config.MaskedDiffusion(), [BOS], [EOS]),
        ("decoder", config.SpanCorruption(), [], [EOS]),
        ("encoder_decoder", None, [BOS], [EOS]),
        ("encoder_decoder", config.Prefix(), [BOS], [EOS]),
        ("encoder_decoder", config.SpanCorruption(), [], [EOS]),
        ("encoder_decoder", config.Denoise(), [], [EOS]),
        ("encoder", config.Mixture({"a": config.Part(config.Masked(), mode="m")}), [21, BOS], [EOS]),
    ],
)
def test_the_ends_are_those_that_the_model_was_trained_on(monkeypatch, architecture, objective, before, after):
    read = []

    def pooled(model, params, stream, counted, *, pooling):
        read.append((stream.tokens[0].tolist(), np.flatnonzero(counted[0]).tolist()))
        return np.zeros((len(stream.tokens), 32), np.float32)

    monkeypatch.setattr(module, "_pooled", pooled)
    embedder((Transformer(small_model(architecture)), None), objective)(["w0 w1"])
    ((tokens, counted),) = read
    row = [*before, 3, 4, *after]
    assert tokens == row + [0] * (16 - len(row))
    assert counted == list(range(len(before) - (BOS in before), len(row)))  # without the token of a mode


def test_ends_that_the_tokenizer_lacks_are_left_out():
    model = made("encoder")
    tokenizer = Words()
    tokenizer.bos_id = tokenizer.eos_id = None
    ours = Embedder(*model, tokenizer, None, length=8, normalise=False)
    np.testing.assert_allclose(ours(["w0 w1"])[0], hidden(model, np.array([3, 4])).mean(0), atol=1e-5)
    with pytest.raises(
        UserError, match=r"^text 2 \(''\) has no tokens, and the tokenizer has neither bos nor eos: leave it out$"
    ):
        ours(["w0", ""])


def test_vectors_have_length_1_unless_told_otherwise():
    model = made("encoder")
    given = texts(*SIZES)
    raw, scaled = embedder(model)(given), embedder(model, normalise=True)(given)
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.05
    np.testing.assert_allclose(scaled, raw / np.linalg.norm(raw, axis=1)[:, None], atol=1e-6)


def test_no_texts_have_no_vectors():
    assert embedder(made("encoder"))([]).shape == (0, 32)


# -------------------------------------------------------------------------------------------------------------- length


@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_long_texts_are_averages_of_windows(pooling):
    """Windows of 8 words that begin every 6, each with bos and eos, weighted by their words."""
    model = made("encoder", Learned(10))
    given = texts(8, 9, 21, 2)
    found = embedder(model, pooling=pooling, long="windows", length=10)(given)
    for text, vector in zip(given, found, strict=True):
        words, windows, start = text.split(), [], 0
        while True:
            windows.append(words[start : start + 8])
            if start + 8 >= len(words):
                break
            start += 6
        total = sum(map(len, windows))
        parts = [LOOPS[pooling](hidden(model, ids_of(" ".join(w)))) * (len(w) / total) for w in windows]
        np.testing.assert_allclose(vector, sum(parts), atol=1e-5, rtol=0)
    assert [len(embedder(model, long="windows", length=10)._windows(np.arange(n), str)) for n in (8, 9, 14, 15, 20, 21)] == [
        *(1, 2, 2, 3, 3, 4)
    ]


@pytest.mark.parametrize("room", range(1, 12))
def test_windows_hold_every_token(room):
    ours = embedder(made("encoder"), long="windows", length=room + 2)
    for n in range(1, 60):
        windows = ours._windows(np.arange(n), str)
        assert set(np.concatenate(windows)) == set(range(n)) and max(map(len, windows)) <= room
        assert all(b[0] <= a[-1] for a, b in zip(windows, windows[1:], strict=False)) or room < 3
        assert all(w[-1] < n - 1 for w in windows[:-1])  # no window adds nothing


def test_long_texts_are_refused():
    model = made("encoder", Learned(10))
    ours = embedder(model, length=10)
    assert ours(texts(8)).shape == (1, 32)
    with pytest.raises(UserError) as error:
        ours([*texts(8), "w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12 w13 w14"])
    assert str(error.value) == (
        "text 2 ('w0 w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w…') has 17 tokens with its ends, and 10 are read at once: shorten it, "
        "or give --long=windows"
    )
    with pytest.raises(UserError, match="^a.txt has 11 tokens .*--long=windows, or a higher --length$"):
        embedder(made("encoder"), length=10)(texts(9), ["a.txt"])


def test_lengths_that_no_text_can_have_are_refused():
    with pytest.raises(
        UserError, match="^length=11 is more than the 10 positions that the model has learned: give 10 or less$"
    ):
        embedder(made("encoder", Learned(10)), length=11)
    with pytest.raises(UserError, match="^length=33 is more than the 32 positions"):
        embedder(made("decoder", embed=config.Embed(ahead=33)), config.AnyOrder(), length=33)
    with pytest.raises(UserError, match="^length=2 leaves no room for a text beside its 2 special tokens: raise it$"):
        embedder(made("encoder"), length=2)


def test_the_usual_length():
    rows = config.Data(encoder_length=48, decoder_length=24)
    learned, free = made("encoder", Learned(10))[0].config, made("encoder_decoder")[0].config
    assert [usual_length(learned, rows), usual_length(learned, None)] == [10, 10]
    assert [usual_length(free, rows), usual_length(free, None)] == [48, 512]
    assert usual_length(made("encoder", Learned(64))[0].config, rows) == 48  # no position that training never reached
    assert usual_length(made("decoder")[0].config, rows) == 24
    assert usual_length(small_model("decoder", embed=config.Embed(ahead=33)), None) == 32


@pytest.mark.parametrize(
    ("architecture", "objective", "pooling"),
    [
        ("encoder", config.Contrastive(), "cls"),
        ("decoder", config.Contrastive(), "last"),
        ("encoder", config.Masked(), "mean"),
        ("decoder", config.Causal(), "mean"),
        ("encoder_decoder", None, "mean"),
    ],
)
def test_the_usual_pooling(architecture, objective, pooling):
    assert usual_pooling(architecture, objective) == pooling
    assert embedder((Transformer(small_model(architecture)), None), objective).pooling == pooling


# ------------------------------------------------------------------------------------------------------------- programs


def test_few_programs_are_compiled(monkeypatch):
    shapes = []

    def pooled(model, params, stream, counted, *, pooling):
        shapes.append(stream.tokens.shape)
        return np.zeros((len(stream.tokens), 32), np.float32)

    monkeypatch.setattr(module, "_pooled", pooled)
    ours = embedder((Transformer(small_model("encoder")), None), length=100, batch_size=8)
    ours(texts(*np.random.default_rng(0).integers(0, 99, 203)))
    assert {length for _, length in shapes} == {16, 32, 64, 100} and len(shapes) == 26
    assert {rows for rows, _ in shapes} == {8, 4}  # the last three texts take a batch of 4


# ---------------------------------------------------------------------------------------------------------- comparisons


def test_cosines_are_of_float32():
    """Of half-precision vectors too: in float16 the squares of these overflow, and the cosines of the second and third tie."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=256) * 300
    given = np.stack([base, base + rng.normal(size=256), base + 1.2 * rng.normal(size=256), -base]).astype(np.float16)
    exact = given.astype(np.float64)
    exact /= np.linalg.norm(exact, axis=1, keepdims=True)
    found = cosines(given, given)
    assert found.dtype == np.float32 and np.isfinite(found).all()
    np.testing.assert_allclose(found, exact @ exact.T, atol=1e-6)
    assert found[0, 1] > found[0, 2] and np.float16(found[0, 1]) == np.float16(found[0, 2])
    with np.errstate(over="ignore"):
        assert not np.isfinite((given * given).sum(1)).any()
    assert np.array_equal(cosines(np.zeros((1, 4)), np.ones((1, 4))), [[0.0]])


def test_vectors_of_bfloat16_models_are_summed_in_float32():
    """A bfloat16 sum of 200 vectors of one sign stops growing."""
    x = jax.numpy.full((1, 600, 2), 1.0, jax.numpy.bfloat16)
    fake = SimpleNamespace(config=SimpleNamespace(encoder=True), apply=lambda *given, method: x)
    ones = np.ones((1, 600), bool)
    found = module._pooled.__wrapped__(fake, None, None, ones, pooling="mean")
    assert found.dtype == np.float32 and np.array_equal(found, [[1.0, 1.0]])


def test_the_fingerprint_is_of_what_decides_a_vector():
    model = made("encoder")
    one = embedder(model)
    same = embedder(model, batch_size=2, length=32, long="windows")
    changed = jax.tree.map(lambda x: x, model[1])
    changed["embed"]["tokens"]["embedding"] = changed["embed"]["tokens"]["embedding"].at[0, 0].add(1e-3)
    other = Words()
    other.fingerprint = "others"
    others = [
        embedder(model, pooling="cls"),
        embedder((model[0], changed)),
        embedder((Transformer(replace(model[0].config, dtype="bfloat16")), model[1])),
        Embedder(*model, other, None, length=64),
    ]
    assert one.fingerprint == same.fingerprint and len({o.fingerprint for o in [one, *others]}) == 5


def test_a_tokenizer_of_another_model_is_named():
    model = Transformer(replace(small_model("encoder"), vocab_size=10))
    stream = TokenStream(*[np.ones((1, 4), np.int32)] * 3)
    params = nn.unbox(model.init(jax.random.key(0), Example(stream, None, None, None))["params"])
    with pytest.raises(
        UserError, match=r"^the vector of text 2 \('w19'\) is not finite: its tokens are not among the model's 10"
    ):
        embedder((model, params))(["w0", "w19"])
