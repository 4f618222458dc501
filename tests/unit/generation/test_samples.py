"""What a prompt becomes under each objective: what the model is given to read, and how the answer is shown."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import linen as nn

from lm import config, objectives
from lm.config import Attention, Block, Learned, Mlp, Model, Stack
from lm.errors import UserError
from lm.generation import samples as module
from lm.generation.padding import left_padded
from lm.generation.rank import rank
from lm.generation.samples import predict_tokens
from lm.models.transformer import Transformer
from lm.objectives import prompts
from lm.types import Example, TokenStream
from tests.fakes import Backwards, small_model

BOS, EOS, MASK, V = 1, 2, 3, 40
S = tuple(range(4, 12))


class Letters:
    """A letter a token: a is 12. Spaces are nothing."""

    vocab_size, bos_id, eos_id, mask_id, sentinel_ids = V, BOS, EOS, MASK, S
    special = np.arange(V) < 12

    def encode(self, text):
        return np.array([ord(c) - 97 + 12 for c in text.replace(" ", "")], np.int32)

    def decode(self, ids):
        return "".join(chr(i - 12 + 97) for i in ids)


def asked(monkeypatch, objective, architecture, prompt, answer=(12, 13, 14, EOS, 15)):
    """The streams that reach the model, and the sample; the model's answer is given."""
    seen = {}

    def engine_for(requests, model, params, tokenizer, **settings):
        (request,) = requests
        seen.update(request=request, **settings)
        written = [SimpleNamespace(token=token) for token in answer[: request.new_tokens]]
        return SimpleNamespace(write=lambda requests: [[written]])

    monkeypatch.setattr(module, "engine_for", engine_for)
    model = SimpleNamespace(config=SimpleNamespace(architecture=architecture, vocab_size=V + 2))
    shown = module.samples(model, None, Letters(), objective, (prompt,), new_tokens=5, temperature=0.0, seed=0)
    assert shown[0]["prompt"] == prompt
    request = seen["request"]
    encoder = None if request.encoder is None else request.encoder.tolist()
    return request.prompt[request.blank :].tolist(), encoder, shown[0]["text"], seen


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
    assert seen["prefix"] == (not causal) and seen["request"].blank == 0
    spans = isinstance(objective, config.SpanCorruption | config.Mixture) and not causal
    assert seen["ends"] == [EOS] and tuple(seen["may_write"]) == (S if spans else ())


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


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_an_answer_at_once_is_written_from_the_prompt_alone(architecture):
    """What one pass over the prompt and masks finds likeliest at each place."""
    wide, new = V + 8, 4
    model = small_model(architecture, vocab_size=wide)
    tokens = lambda ids: np.asarray([ids], np.int32)
    stream = lambda ids, prefix=0: TokenStream(
        tokens(ids), tokens(range(len(ids))), tokens([1] * len(ids)), np.arange(len(ids))[None] < prefix if prefix else None
    )
    both = architecture == "encoder_decoder"
    given, masks = [BOS, 12, 13], [MASK] * (new - 1)
    example = (
        Example(stream(given), stream([BOS, *masks]), None, None)
        if both
        else Example(None, stream([*given, *masks], 3), None, None)
    )
    params = Transformer(model).init(jax.random.key(0), example)["params"]
    params = jax.tree.map(lambda x: 3 * x, nn.unbox(params))
    logits = np.array(Transformer(model).apply({"params": params}, example)[0, -new:], float)
    tokenizer = Letters()
    allowed = module.of_texts(tokenizer, wide)
    allowed[EOS] = True
    best = np.where(allowed, logits, -np.inf).argmax(axis=-1)
    (shown,) = module.samples(
        Transformer(model), params, tokenizer, config.Teacherless(), ("ab",), new_tokens=new, temperature=0.0, seed=0
    )
    assert shown == {"prompt": "ab", "text": module._text(tokenizer, best)}


def test_deshuffle_reads_the_prompt_shuffled(monkeypatch):
    _, encoder, _, _ = asked(monkeypatch, config.Deshuffle(), "encoder_decoder", "abcdefgh")
    assert encoder[-1] == EOS and sorted(encoder[:-1]) == list(range(12, 20)) != encoder[:-1]


@pytest.mark.parametrize("prompt,place", [("a [MASK] b", 1), ("ab", 2)])
def test_mass_is_asked_for_as_much_as_it_reads(monkeypatch, prompt, place):
    decoder, encoder, text, seen = asked(monkeypatch, config.Mass(), "encoder_decoder", prompt)
    wanted = [12, 13]
    wanted[place:place] = [MASK, MASK]
    assert decoder == [MASK] and encoder == [*wanted, EOS] and text == "ab"
    assert (seen["request"].blank, seen["request"].new_tokens) == (place, 2)
    _, encoder, _, seen = asked(monkeypatch, mixed(config.Mass(), "m"), "encoder_decoder", prompt)
    assert encoder == [S[-4], *wanted, EOS] and seen["request"].blank == place + 1


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

    def predict_tokens(model, params, stream, forbidden):
        seen.extend(stream.tokens[0].tolist())
        return np.arange(12, 12 + len(seen))[None]

    monkeypatch.setattr(module, "predict_tokens", predict_tokens)
    model = SimpleNamespace(config=SimpleNamespace(architecture="encoder", vocab_size=V))
    (shown,) = module.samples(model, None, Letters(), objective, ("a [MASK] b",), new_tokens=5, temperature=0.0, seed=0)
    assert seen == reads and shown["text"] == f"a[{chr(97 + reads.index(MASK))}] b"


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
        assert shown["text"].startswith("ab[") and shown["text"].endswith("] c") and "MASK" not in shown["text"]


# ----------------------------------------------------------------------------------------- what cannot be had is refused


def positions_of(architecture, length):
    """A tiny model that has learned so many positions."""
    block = Block(Attention(2), Mlp(16))
    stack = lambda cross: Stack(1, {"L": replace(block, cross=cross)}, position=Learned(length))
    both = architecture == "encoder_decoder"
    return Model(V, 8, **{n: stack(both and n == "decoder") for n in ("encoder", "decoder") if n in architecture})


REACH = [  # what is read, and how many positions that takes with 5 new tokens, of which the last is not read
    ("decoder", config.Causal(), "abc", 4 + 4, "decoder"),
    ("decoder", config.SpanCorruption(), "ab [MASK]", 4 + 4, "decoder"),
    ("decoder", config.Teacherless(), "abc", 4 + 4, "decoder"),
    ("decoder", config.MaskedDiffusion(), "abc", 4 + 5, "decoder"),  # all masks are read
    ("encoder", config.MaskedDiffusion(), "abc", 4 + 5, "encoder"),
    ("decoder", mixed(config.SpanCorruption(), "m"), "ab", 4 + 4, "decoder"),
    ("encoder", config.Masked(), "abcdef", 7, "encoder"),
    ("encoder", config.NextSentence(), "abcdef", 8, "encoder"),
    ("encoder_decoder", config.Denoise(), "abcdefgh", 9, "encoder"),
    ("encoder_decoder", config.Prefix(), "a", 5, "decoder"),
    ("encoder_decoder", config.Mass(), "abcde [MASK] f", 12, "encoder"),
]


@pytest.mark.parametrize("architecture,objective,prompt,needed,stack", REACH, ids=lambda x: type(x).__name__)
def test_samples_past_learned_positions_are_refused(architecture, objective, prompt, needed, stack):
    ask = lambda length: module.check(
        positions_of(architecture, length), Letters(), objective, ("a", prompt), new_tokens=5, seed=0
    )
    ask(needed)
    words = f"log.samples take {needed} positions of the {stack}, which has learned {needed - 1}: lower log.sample_tokens"
    with pytest.raises(UserError, match=words):
        ask(needed - 1)


def test_marks_that_the_tokenizer_has_no_token_for_are_refused():
    class Maskless(Letters):
        mask_id = None

    ask = lambda tokenizer, objective, prompt, architecture: module.check(
        positions_of(architecture, 64), tokenizer, objective, (prompt,), new_tokens=5, seed=0
    )
    with pytest.raises(UserError, match=r"a prompt of log.samples has 9 marks, the tokenizer 8 sentinels: leave some out"):
        ask(Letters(), config.SpanCorruption(), "[MASK]a" * 9, "decoder")
    ask(Letters(), config.SpanCorruption(), "[MASK]a" * 8, "decoder")
    with pytest.raises(UserError, match=r"has \[MASK\] in it, and the tokenizer has no mask token"):
        ask(Maskless(), config.Denoise(infill=0.0, delete=0.2), "a [MASK]", "encoder_decoder")
    ask(Maskless(), config.Denoise(infill=0.0, delete=0.2), "a", "encoder_decoder")


@pytest.mark.parametrize("position", [config.Rope(), None, config.Alibi()])
def test_positions_that_are_not_learned_have_no_end(position):
    model = positions_of("decoder", 4)
    model = replace(model, decoder=replace(model.decoder, position=position))
    module.check(model, Letters(), config.Causal(), ("abcdefgh" * 20,), new_tokens=50, seed=0)


@pytest.mark.parametrize("what", ["rank", "rank from", "fill"])
def test_decoding_past_learned_positions_is_refused(what):
    """Before anything runs: past the table a model gives NaN, whose likeliest token is 0."""
    both = Transformer(positions_of("encoder_decoder" if "from" in what else what == "fill" and "encoder" or "decoder", 6))
    prompt = lambda n: left_padded([np.arange(12, 12 + n)])
    long = dict(encoder=prompt(7)) if "from" in what else {}
    with pytest.raises(UserError, match="the prompt takes 7 positions of the (en|de)coder, which has learned 6: shorten"):
        if "rank" in what:
            rank(both, None, prompt(1 if long else 4), np.zeros((2, 4), np.int32), np.ones((2, 4), np.float32), **long)
        else:
            predict_tokens(both, None, prompt(7))


def test_a_prompt_of_a_new_objective_is_refused_by_name():
    for objective in (Backwards(), config.Mixture({"a": config.Part(Backwards())})):
        with pytest.raises(UserError, match="no way to put a prompt to a model of 'backwards': set log.samples"):
            module.check(positions_of("decoder", 64), Letters(), objective, ("a",), new_tokens=5, seed=0)


def test_every_objective_has_a_prompt():
    without = {kind for kind, declared in objectives.DECLARATIONS.items() if declared.prompt is None}
    assert without == {config.Mixture, config.Contrastive}  # it has that of a part; and it writes nothing


def test_a_new_objective_is_asked_as_its_entries_say(monkeypatch):
    suit = objectives.Suit(objectives.causal.build_decoder, factors=False, reads_prefix=True)
    declared = objectives.Declaration(Backwards, {"decoder": suit}, prompt=prompts.TextPrompt(prompts.as_is))
    monkeypatch.setitem(objectives.DECLARATIONS, Backwards, declared)
    decoder, _, _, seen = asked(monkeypatch, Backwards(), "decoder", "ab")
    assert decoder == [BOS, 12, 13] and seen["prefix"]


def test_an_encoder_fills_in_letters_alone(monkeypatch):
    """Special tokens would be silent, and ids past the vocabulary nothing at all."""
    seen = {}

    def predict_tokens(model, params, stream, forbidden):
        seen["forbidden"] = forbidden
        return np.full(stream.tokens.shape, 12)

    monkeypatch.setattr(module, "predict_tokens", predict_tokens)
    model = SimpleNamespace(config=SimpleNamespace(architecture="encoder", vocab_size=V + 2))
    module.samples(model, None, Letters(), config.Masked(), ("[MASK]",), new_tokens=5, temperature=0.5, seed=0)
    assert np.flatnonzero(~seen["forbidden"]).tolist() == list(range(12, V))


def test_what_is_forbidden_is_not_filled_in():
    model = Transformer(positions_of("encoder", 8))
    stream = left_padded([np.arange(12, 16)])
    params = nn.unbox(jax.jit(model.init)(jax.random.key(0), Example(stream, None, stream.tokens, None)))["params"]
    assert (np.asarray(predict_tokens(model, params, stream, np.arange(V) != 30)) == 30).all()


@pytest.mark.parametrize("mode", [None, "d"])
def test_masks_are_filled_in_several_steps_in_a_mixture_too(monkeypatch, mode):
    """One row writes behind its prompt up to the end, the other in place; the first part says how much it is told."""
    seen = {}

    def fill(model, params, stream, masked, key, **settings):
        seen.update(settings, masked=masked.sum(axis=1).tolist())
        filled = np.where(masked, 14, stream.tokens)
        filled[masked & (masked.cumsum(axis=1) == 2)] = EOS
        return filled

    monkeypatch.setattr(module, "fill", fill)
    part = config.Part(config.MaskedDiffusion(time_steps=7), mode=mode)
    objective = config.Mixture({"a": part, "b": config.Part(config.MaskedDiffusion())})
    model = SimpleNamespace(config=SimpleNamespace(architecture="encoder", vocab_size=V))
    shown = module.samples(model, None, Letters(), objective, ("ab", "a [MASK] b"), new_tokens=5, temperature=0.0, seed=0)
    assert [s["text"] for s in shown] == ["c", "a[c] b"]
    assert seen["masked"] == [5, 1] and seen["steps"] == 5 and seen["time_steps"] == 7 and not seen["forbidden"][EOS]
