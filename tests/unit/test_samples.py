"""What a prompt becomes under each objective: what the model is given to read, and how the answer is shown."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import linen as nn

from lm import config
from lm.config import Attention, Block, Learned, Mlp, Model, Stack
from lm.generate import samples as module
from lm.models.transformer import Transformer
from lm.types import Example, TokenStream

BOS, EOS, MASK, V = 1, 2, 3, 40
S = tuple(range(4, 12))


class Letters:
    """A letter a token: a is 12. Spaces are nothing."""

    vocab_size, bos_id, eos_id, mask_id, sentinel_ids, reserved = V, BOS, EOS, MASK, S, 12

    def encode(self, text):
        return np.array([ord(c) - 97 + 12 for c in text.replace(" ", "")], np.int32)

    def decode(self, ids):
        return "".join(chr(i - 12 + 97) for i in ids)


def asked(monkeypatch, objective, architecture, prompt, answer=(12, 13, 14, EOS, 15)):
    """The streams that reach the model, and the sample; the model's answer is given."""
    seen = {}

    def generate(model, params, prompt, key, *, encoder, **settings):
        seen.update(prompt=prompt, encoder=encoder, **settings)
        return np.array([answer])

    monkeypatch.setattr(module, "generate", generate)
    model = SimpleNamespace(config=SimpleNamespace(architecture=architecture, vocab_size=V + 2))
    shown = module.samples(model, None, Letters(), objective, (prompt,), new_tokens=5, temperature=0.0, seed=0)
    assert shown[0]["prompt"] == prompt
    tokens = lambda s: None if s is None else s.tokens[0].tolist()
    return tokens(seen["prompt"]), tokens(seen["encoder"]), shown[0]["text"], seen


def mixed(objective, mode):
    return config.Mixture({"b": config.Part(config.Causal()), "a": config.Part(objective, mode=mode)})


@pytest.mark.parametrize(
    "objective,prompt,reads",
    [
        (config.Causal(), "a [MASK] b", [BOS, 12, 13]),
        (config.Prefix(), "ab", [BOS, 12, 13]),
        (config.SpanCorruption(), "a [MASK] b [MASK]", [12, S[0], 13, S[1], EOS]),
        (config.FillInMiddle(), "ab", [BOS, 12, 13]),
        (config.FillInMiddle(), "a [MASK] b", [BOS, S[-3], 12, S[-2], 13, S[-1]]),
        (mixed(config.SpanCorruption(), "r"), "a [MASK] b", [S[-4], 12, S[0], 13, EOS]),
        (mixed(config.Causal(), None), "a", [BOS, 12]),
    ],
)
def test_a_decoder_reads(monkeypatch, objective, prompt, reads):
    decoder, encoder, text, seen = asked(monkeypatch, objective, "decoder", prompt)
    assert decoder == reads and encoder is None and text == "abc"
    causal = isinstance(objective, config.Causal | config.FillInMiddle) or objective == mixed(config.Causal(), None)
    assert (seen["prompt"].prefix is None) == causal
    assert not seen["forbidden"][[EOS, 12, V - 1]].any() and seen["forbidden"][[BOS, MASK, V, V + 1]].all()


@pytest.mark.parametrize(
    "objective,reads",
    [
        (config.Prefix(), [BOS, 12, 13]),
        (config.Masked(), [12, MASK, 13, EOS]),
        (config.Denoise(), [12, MASK, 13, EOS]),
        (config.SpanCorruption(), [12, S[0], 13, EOS]),
        (mixed(config.Denoise(), "x"), [S[-4], 12, MASK, 13, EOS]),
    ],
)
def test_an_encoder_decoder_reads(monkeypatch, objective, reads):
    decoder, encoder, text, _ = asked(monkeypatch, objective, "encoder_decoder", "a [MASK] b")
    assert (decoder, encoder, text) == ([BOS], reads, "abc")


def test_deshuffle_reads_the_prompt_shuffled(monkeypatch):
    _, encoder, _, _ = asked(monkeypatch, config.Deshuffle(), "encoder_decoder", "abcdefgh")
    assert encoder[-1] == EOS and sorted(encoder[:-1]) == list(range(12, 20)) != encoder[:-1]


@pytest.mark.parametrize("prompt,place", [("a [MASK] b", 1), ("ab", 2)])
def test_mass_is_asked_for_as_much_as_it_reads(monkeypatch, prompt, place):
    decoder, encoder, text, seen = asked(monkeypatch, config.Mass(), "encoder_decoder", prompt)
    wanted = [12, 13]
    wanted[place:place] = [MASK, MASK]
    assert decoder == [MASK] and encoder == [*wanted, EOS] and text == "ab"
    assert seen["prompt"].positions.tolist() == [[place]]
    _, encoder, _, seen = asked(monkeypatch, mixed(config.Mass(), "m"), "encoder_decoder", prompt)
    assert encoder == [S[-4], *wanted, EOS] and seen["prompt"].positions.tolist() == [[place + 1]]


@pytest.mark.parametrize(
    "objective,reads",
    [
        (config.Masked(), [BOS, 12, MASK, 13]),
        (config.NextSentence(), [BOS, 12, MASK, 13, EOS]),
        (mixed(config.NextSentence(), "n"), [S[-4], BOS, 12, MASK, 13, EOS]),
    ],
)
def test_an_encoder_reads(monkeypatch, objective, reads):
    seen = []

    def fill(model, params, stream, vocab_size):
        seen.extend(stream.tokens[0].tolist())
        return np.arange(12, 12 + len(seen))[None]

    monkeypatch.setattr(module, "fill", fill)
    model = SimpleNamespace(config=SimpleNamespace(architecture="encoder", vocab_size=V))
    (shown,) = module.samples(model, None, Letters(), objective, ("a [MASK] b",), new_tokens=5, temperature=0.0, seed=0)
    assert seen == reads and shown["text"] == f"a [{chr(97 + reads.index(MASK))}] b"


def model_of(objective):
    block = Block(Attention(2), Mlp(16))
    stack = lambda cross: Stack(1, {"L": Block(Attention(2), Mlp(16), cross=cross)}, position=Learned(64))
    encoder_only = isinstance(objective, config.NextSentence | config.Mixture)
    if encoder_only:
        return Model(V, 8, encoder=Stack(1, {"L": block}, position=Learned(64)), embed=config.Embed(types=2))
    return Model(V, 8, stack(False), stack(True))


@pytest.mark.parametrize(
    "objective",
    [config.Mass(), config.Denoise(), config.NextSentence(), mixed(config.NextSentence(), "n")],
    ids=lambda o: type(o).__name__,
)
def test_real_models_answer(objective):
    """Through the jitted functions: a filled-in prompt has its marks replaced, a generated text is letters."""
    model = Transformer(model_of(objective))
    row = np.ones((1, 4), np.int32)
    stream = TokenStream(row, row, row)
    example = Example(stream, stream if model.config.decoder else None, row, row.astype(np.float32))
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), example))["params"]
    settings = dict(new_tokens=5, temperature=0.5, seed=0)
    tokenizer = Letters()
    tokenizer.decode = lambda ids: "".join(chr(97 + i % 26) for i in ids)
    (shown,) = module.samples(model, params, tokenizer, objective, ("ab [MASK] c",), **settings)
    if model.config.decoder:
        assert shown["text"].isalpha() and len(shown["text"]) <= 5
    else:
        assert shown["text"].startswith("ab [") and shown["text"].endswith("] c") and "MASK" not in shown["text"]
