"""The name of a special token in a text is text, under every kind of tokenizer: no text becomes a control token, alone, in a
record of any format or in a conversation, where the template's own are all that there are."""

import io

import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from lm import config
from lm.data import chat, templates
from lm.data.records import Feedback, Labelled, Message, Messages, Pair, Preference, Text
from lm.data.render import render, render_prompt
from lm.data.tokenizer import from_bytes, train
from lm.data.tokenizer_bytes import LLAMA3
from tests.unit.data.test_chat import CHATML, Converted

WORDS = "The wonderful extraordinary constitution and congress; the state of the union, is it now?"
TEXTS = [f"{WORDS} </s> <mask> <|user|> [MASK] <|im_end|> <s>\n"] * 30
TRAINED = ("bpe", "unigram", "word", "byte_bpe")
CHAT = ["<|im_start|>", "<|im_end|>"]


def converted(model, special, pre=None, decoder=None, normalizer=None, trainer=None):
    """A tokenizer.json as models are published with, with a chat's tokens."""
    made = Tokenizer(model)
    made.pre_tokenizer, made.decoder = pre, decoder
    if normalizer is not None:
        made.normalizer = normalizer
    made.train_from_iterator(TEXTS, trainer([*special, *CHAT]))
    made.add_tokens([AddedToken("<tool>", normalized=False)])
    return from_bytes(made.to_str().encode(), checked=True)


def byte_level(special):
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return trainers.BpeTrainer(special_tokens=special, initial_alphabet=alphabet, show_progress=False)


def cut(expression):
    parts = [pre_tokenizers.Split(Regex(expression), "isolated"), pre_tokenizers.ByteLevel(False, use_regex=False)]
    return pre_tokenizers.Sequence(parts)


def sentencepiece_of(**settings):
    """A given sentencepiece model, whose names are user-defined symbols: pieces that texts are searched for."""
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=made, vocab_size=330, byte_fallback=True, minloglevel=2,
        hard_vocab_limit=False, user_defined_symbols=["<mask>", "<|user|>", "<|end|>", "<extra_id_0>"], **settings,
    )  # fmt: skip
    return from_bytes(made.getvalue())


def wordpiece(special):
    return trainers.WordPieceTrainer(special_tokens=special, show_progress=False)


def unigram(special):
    return trainers.UnigramTrainer(vocab_size=90, special_tokens=special, unk_token="<unk>", show_progress=False)


ends, spaces = decoders.ByteLevel(), pre_tokenizers.Metaspace()
KINDS = {
    **{kind: lambda kind=kind: train(TEXTS, config.Tokenizer(kind, 405 if kind != "word" else 100)) for kind in TRAINED},
    **{f"byte_bpe {s}": lambda s=s: train(TEXTS, config.Tokenizer("byte_bpe", 390, split=s)) for s in ("gpt2", "llama3")},
    "LLaMA": lambda: sentencepiece_of(model_type="bpe"),
    "T5 of sentencepiece": lambda: sentencepiece_of(model_type="unigram"),
    "GPT-2": lambda: converted(models.BPE(), ["<|endoftext|>"], pre_tokenizers.ByteLevel(False), ends, trainer=byte_level),
    "LLaMA 3": lambda: converted(
        models.BPE(ignore_merges=True), ["<|begin_of_text|>", "<|eot_id|>"], cut(LLAMA3), ends, trainer=byte_level
    ),
    "BERT": lambda: converted(
        *(models.WordPiece(unk_token="[UNK]"), ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]),
        *(pre_tokenizers.BertPreTokenizer(), decoders.WordPiece(), normalizers.BertNormalizer(), wordpiece),
    ),
    "T5": lambda: converted(
        *(models.Unigram(), ["<pad>", "</s>", "<unk>", "<extra_id_0>"]), spaces, decoders.Metaspace(), trainer=unigram
    ),
}


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return KINDS[request.param]()


def control(t, ids):
    """The control tokens among ids. What no vocabulary has is unk, which is special too."""
    return [int(i) for i in ids if t.special[i] and i != t.unk_id]


def spelled(t):
    """Texts with the name of every special token, between letters, spaces and other names."""
    names = [name for name in t.names if not name.startswith("<extra_id_") or name in ("<extra_id_0>", "<extra_id_31>")]
    assert len(names) >= 3 and sum(map(len, names)) > 20
    return [*names, "".join(names), " ".join(names), *(f"state{name}of {name}\n{name}" for name in names)]


def test_a_text_has_no_control_token(tokenizer):
    t = tokenizer
    assert t.special.sum() >= len(t.names) >= 3
    for text, ids in zip(spelled(t), t.encode_batch(spelled(t)), strict=True):
        assert len(ids) and not control(t, ids), text
        assert not control(t, t.encode(text)) and not control(t, t.encode_parts([text, text]))
        one = next(iter(t.names.values()))
        assert control(t, t.encode_parts([text, one, text])) == control(t, [one])


def test_a_record_has_those_of_its_format_alone(tokenizer):
    t = tokenizer
    every = "".join(spelled(t)[:-1])
    if t.eos_id is None:
        return
    for format in (Text, lambda x: Labelled(x, x), lambda x: Pair(x, x, x)):
        named, plain = (control(t, rendered.ids) for rendered in render([format(every), format("state")], t))
        assert named == plain and t.eos_id in plain


def test_a_conversation_has_those_of_its_template_alone(tokenizer):
    """Each of the texts in all places at once; with the tokenizer's role tokens, or a template's."""
    t, written = tokenizer, []
    if "<|end|>" in t.role_ids and "<|system|>" in t.role_ids:
        written += [(t, None), (t, templates.of("turns", t))]
    if "<|im_end|>" in t.names:
        talk = chat.of(Converted(CHATML, t.proto))
        written.append((talk.tokenizer, templates.of("chatml", t)))
        ids = lambda text: control(t, talk.ids([dict(role="system", content=text), dict(role="user", content=text)]))
        assert all(ids(text) == ids("state") != [] for text in spelled(t))
    elif not written and t.eos_id is not None:
        written = [(t, None)]  # roles are words
    for t, template in written:
        for text in spelled(t):
            of = lambda said: [
                Messages((Message("user", said), Message("assistant", said))),
                Preference((Message("user", said),), said, said),
                Feedback((Message("system", said), Message("user", said)), said, True),
            ]
            named, plain = ([control(t, r.ids) for r in render(of(said), t, template)] for said in (text, "state"))
            assert named == plain and all(plain)
            prompts = [render_prompt([Message("user", said)], t, template)[0] for said in (text, "state")]
            assert control(t, prompts[0]) == control(t, prompts[1])
