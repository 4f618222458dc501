"""One call fills in for every architecture: what each model is asked, what stands at each mark, and who cannot."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import linen as nn

from lm import config
from lm.config import Attention, Block, Learned, Mlp, Model, Stack
from lm.errors import UserError
from lm.generation import infill as module
from lm.generation import placing
from lm.generation.engine import Written
from lm.generation.infill import infill
from lm.models.transformer import Transformer
from lm.types import Example, TokenStream

BOS, EOS, MASK, SPACE, V = 1, 2, 3, 38, 40
S = tuple(range(4, 12))


class Letters:
    """A letter a token: a is 12; and a space."""

    vocab_size, bos_id, eos_id, pad_id, mask_id, sentinel_ids = V, BOS, EOS, 0, MASK, S
    special = np.arange(V) < 12

    def encode(self, text):
        return np.array([SPACE if c == " " else ord(c) - 97 + 12 for c in text], np.int32)

    def require(self, name):
        return getattr(self, f"{name}_id")

    def decode(self, ids):
        return "".join(" " if i == SPACE else chr(i - 12 + 97) for i in map(int, ids) if i >= 12)


class Said:
    """In place of the engine: answers each request in turn with the next of `answers`; keeps what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked, self.settings = list(answers), [], []

    def __call__(self, requests, model, params, tokenizer, **settings):
        self.settings.append(settings)
        return self

    def write(self, requests):
        self.asked += requests
        one = lambda request, token: Written(request, 0, int(token), -0.5, -0.5, (), False)
        return [[[one(r, token) for token in self.answers.pop(0)] for _ in range(r.samples)] for r in requests]


def ids(text):
    return Letters().encode(text).tolist()


def answered(monkeypatch, architecture, objective, texts, *answers, tokenizer=None, **settings):
    said = Said(*answers)
    monkeypatch.setattr(module, "engine_for", said)
    made = SimpleNamespace(config=SimpleNamespace(architecture=architecture, vocab_size=V, encoder=None, decoder=None))
    return infill(made, None, tokenizer or Letters(), objective, texts, **settings), said


@pytest.mark.parametrize("architecture", ["decoder", "encoder_decoder"])
def test_spans_stand_behind_their_sentinels(monkeypatch, architecture):
    answers = [S[0], *ids(" xy"), S[1], *ids("z"), EOS], [S[1], *ids("q"), S[0], *ids("p"), S[1], *ids("r"), EOS], [EOS]
    texts = ["a [MASK] b[MASK]c", "[MASK][MASK]", "ab[MASK]"]
    found, said = answered(monkeypatch, architecture, config.SpanCorruption(), texts, *answers)
    reads = [r.prompt.tolist() if architecture == "decoder" else r.encoder.tolist() for r in said.asked]
    assert reads[0] == [*ids("a"), S[0], *ids(" b"), S[1], *ids("c"), EOS]  # the space before the mark is the span's
    assert (said.settings[0]["prefix"], said.asked[0].prompt.tolist() == [BOS]) == (
        architecture == "decoder", architecture != "decoder",
    )  # fmt: skip
    assert [f.text for (f,) in found] == ["a xy bzc", "pq", "ab"]
    assert [f.spans for (f,) in found] == [(" xy", "z"), ("p", "q"), ("",)]
    assert [(f.tokens, f.log_prob) for (f,) in found] == [(7, -3.5), (7, -3.5), (1, -0.5)]
    assert said.settings[0]["ends"] == [EOS] and said.settings[0]["may_write"] == [*S]


def test_middles_are_written_one_after_another(monkeypatch):
    """Each with what was filled in before it, and without the marks behind it; samples go their own ways."""
    answers = [*ids("xy"), EOS], [*ids("z")], [*ids("p"), EOS], [EOS]
    found, said = answered(monkeypatch, "decoder", config.FillInMiddle(), ["a[MASK]b[MASK]c"], *answers, samples=2)
    P, SUFFIX, M = S[-3:]
    assert [r.prompt.tolist() for r in said.asked] == [
        [BOS, P, *ids("a"), SUFFIX, *ids("bc"), M],
        [BOS, P, *ids("axyb"), SUFFIX, *ids("c"), M],
        [BOS, P, *ids("azb"), SUFFIX, *ids("c"), M],
    ]
    assert [f.text for f in found[0]] == ["axybpc", "azbc"] and [f.spans for f in found[0]] == [("xy", "p"), ("z", "")]
    assert [f.log_prob for f in found[0]] == [-2.5, -1.0] and [r.samples for r in said.asked] == [2, 1, 1]
    assert len({r.sampling.seed for r in said.asked}) == 3


def test_an_indentation_before_a_mark_stays(monkeypatch):
    found, said = answered(monkeypatch, "decoder", config.FillInMiddle(), ["a    [MASK]b"], ids("x"))
    assert said.asked[0].prompt.tolist()[2:7] == ids("a    ") and found[0][0].text == "a    xb"


def test_a_text_that_is_rewritten_is_searched_for_its_spans(monkeypatch):
    answers = [*ids("a xy bzc"), EOS], [*ids("a xy"), EOS]
    texts = ["a [MASK] b[MASK]c", "b [MASK]"]
    found, said = answered(monkeypatch, "encoder_decoder", config.Denoise(), texts, *answers)
    assert said.asked[0].encoder.tolist() == [*ids("a"), MASK, *ids(" b"), MASK, *ids("c"), EOS]
    assert [f.spans for (f,) in found] == [(" xy", "z"), None] and [f.text for (f,) in found] == ["a xy bzc", "a xy"]


def test_converted_encoder_decoders_are_asked_as_they_were_trained(monkeypatch):
    """T5 has no bos and its decoder starts with padding; BART's reads both ends and its decoder starts with eos."""

    class OfT5(Letters):
        bos_id = None

    class OfBart(Letters):
        sentinel_ids = ()

    found, said = answered(monkeypatch, "encoder_decoder", None, ["a[MASK]"], [S[0], *ids("b"), EOS], tokenizer=OfT5())
    assert said.asked[0].prompt.tolist() == [0] and said.asked[0].encoder.tolist() == [*ids("a"), S[0], EOS]
    assert found[0][0].text == "ab"
    found, said = answered(monkeypatch, "encoder_decoder", None, ["a[MASK]"], [*ids("ab"), EOS], tokenizer=OfBart())
    assert said.asked[0].prompt.tolist() == [EOS, BOS] and said.asked[0].encoder.tolist() == [BOS, *ids("a"), MASK, EOS]
    assert found[0][0].spans == ("b",)


def test_the_part_of_a_mixture_that_fills_in_is_asked_in_its_mode(monkeypatch):
    parts = {"a": config.Part(config.Causal(), mode="x"), "b": config.Part(config.SpanCorruption(), mode="y")}
    _, said = answered(monkeypatch, "decoder", config.Mixture(parts), ["a[MASK]"], [EOS])
    assert said.asked[0].prompt.tolist() == [S[-5], *ids("a"), S[0], EOS]  # modes x and y are the last but three and four


@pytest.mark.parametrize(
    ("architecture", "objective", "name"),
    [
        ("decoder", config.Causal(), "causal"),
        ("decoder", config.Prefix(), "prefix"),
        ("decoder", config.Teacherless(), "teacherless"),
        ("decoder", config.BlockDiffusion(), "block_diffusion"),
        ("decoder", None, "causal"),
        ("encoder_decoder", config.Prefix(), "prefix"),
        ("encoder_decoder", config.Deshuffle(), "deshuffle"),
        ("decoder", config.Mixture({"a": config.Part(config.Causal())}), "causal"),
    ],
)
def test_a_model_that_only_continues_is_refused(monkeypatch, architecture, objective, name):
    with pytest.raises(UserError, match=f"trained as '{name}' continues texts and fills in none: take an encoder, a decoder"):
        answered(monkeypatch, architecture, objective, ["a[MASK]"])


def test_a_text_without_a_mark_is_refused(monkeypatch):
    with pytest.raises(UserError, match=r"the text 'ab' has no \[MASK\]: put one"):
        answered(monkeypatch, "decoder", config.FillInMiddle(), ["[MASK]", "ab"])


# ------------------------------------------------------------------------------------------------- masks of a token each


def real(architecture, length=None):
    """A small random model."""
    stack = lambda cross: Stack(1, {"L": Block(Attention(2), Mlp(16), cross=cross)}, position=Learned(length or 64))
    both = architecture == "encoder_decoder"
    stacks = {n: stack(both and n == "decoder") for n in ("encoder", "decoder") if n in architecture}
    made = Transformer(Model(V, 8, **stacks))
    row = np.ones((1, 4), np.int32)
    streams = [TokenStream(row, row, row) if n in architecture else None for n in ("encoder", "decoder")]
    params = nn.unbox(jax.jit(made.init)(jax.random.key(0), Example(*streams, row, row.astype(np.float32))))["params"]
    return made, jax.tree.map(lambda x: 3 * x, params)


ENCODER = real("encoder")


@pytest.mark.parametrize("order", ["confidence", "left", "mask_predict", "gibbs"])
@pytest.mark.parametrize("objective", [config.Masked(), config.MaskedDiffusion(), None])
def test_an_encoder_fills_in_several_marks(order, objective):
    settings = dict(temperature=1.0, samples=3, order=order, lengths=(2,))
    found = infill(*ENCODER, Letters(), objective, ["ab [MASK] c[MASK]", "[MASK]"], **settings)
    assert [len(samples) for samples in found] == [3, 3]
    for f in found[0]:
        assert f.text == f"ab{f.spans[0]} c{f.spans[1]}" and [len(s) for s in f.spans] == [2, 2] and f.tokens == 4
        assert f.log_prob < 0
    assert len({f.text for f in found[0]}) > 1


def test_a_sample_does_not_depend_on_its_neighbours():
    settings = dict(temperature=1.0, seed=5, lengths=(3,))
    both = infill(*ENCODER, Letters(), config.Masked(), ["ab[MASK]", "abc[MASK]defghijklmnopqrst"], samples=3, **settings)
    alone = infill(*ENCODER, Letters(), config.Masked(), ["abc[MASK]defghijklmnopqrst"], samples=2, **settings)
    assert both[1][:2] == alone[0] and both[0][0] != both[0][1]
    other = infill(*ENCODER, Letters(), config.Masked(), ["ab[MASK]"], temperature=1.0, seed=6, lengths=(3,))
    assert other[0][0] != both[0][0]


def test_the_length_with_the_likeliest_tokens_is_taken():
    each = [infill(*ENCODER, Letters(), config.Masked(), ["ab[MASK]cd"], lengths=(n,))[0][0] for n in (1, 2, 3)]
    best = max(each, key=lambda f: f.log_prob / f.tokens)
    assert infill(*ENCODER, Letters(), config.Masked(), ["ab[MASK]cd"], lengths=(1, 2, 3))[0][0] == best
    assert len({f.tokens for f in each}) == 3


def test_learned_positions_are_enough_for_a_text_that_fits_and_no_more():
    made = real("encoder", length=9)
    infill(*made, Letters(), config.Masked(), ["abcdefg[MASK]"])
    with pytest.raises(UserError, match="10 positions of the encoder, which has learned 9: shorten the text"):
        infill(*made, Letters(), config.Masked(), ["abcdefgh[MASK]"])


def test_word_pieces_take_the_space_of_the_text():
    """BERT's decoder puts a space before each word, and none before the rest of one."""

    class Pieces(Letters):
        def decode(self, ids):
            return "".join(c if c.isupper() else f" {c}" for c in super().decode(ids)).removeprefix(" ").upper()

    decode = lambda text: placing.decoded(Pieces(), ids("q"), ids(text))
    assert decode("a") == " A"
    place = lambda text, *spans: placing.placed(Pieces(), text.split("[MASK]"), spans)
    assert place("x [MASK] y", " A") == "x A y" and place("(x[MASK])", " A") == "(xA)" and place("x [MASK]", "ing") == "xing"


@pytest.mark.parametrize(
    ("architecture", "objective"),
    [
        ("decoder", config.FillInMiddle()),
        ("decoder", config.SpanCorruption()),
        ("decoder", config.MaskedDiffusion()),
        ("encoder_decoder", config.SpanCorruption()),
        ("encoder_decoder", config.Denoise()),
        ("encoder_decoder", config.Masked()),
        ("encoder_decoder", config.Mass()),
        ("encoder_decoder", None),
    ],
)
def test_real_models_of_every_way_fill_in(architecture, objective):
    made = real(architecture)
    marks = 1 if isinstance(objective, config.Mass) else 2
    text = "ab [MASK] cd" + "[MASK]e" * (marks - 1)
    found = infill(*made, Letters(), objective, [text, text], new_tokens=6, samples=2, temperature=1.0, lengths=(2,))
    assert found[0] == found[1]  # the same request
    for f in found[0]:
        assert f.spans is None or len(f.spans) == marks and f.text.startswith("ab" + f.spans[0] + " cd")
        assert f.log_prob < 0 and f.tokens > 0
