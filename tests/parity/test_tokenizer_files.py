"""The tokenizer that `to_hf` writes: `AutoTokenizer` gives the ids of ours, whatever the model_type."""

import io
import json
import random
from types import SimpleNamespace

import pytest

sentencepiece = pytest.importorskip("sentencepiece")
hf = pytest.importorskip("transformers")

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers  # noqa: E402

from lm import config  # noqa: E402
from lm.conversion import tokenizer_files  # noqa: E402
from lm.data.tokenizer import from_bytes, train  # noqa: E402

TEXT = "Fellow citizens, the state of the economy is strong. It was 1847 or 12 times that, and we said so <again> | a/b."
LETTERS = " \nabcdetheoin,.1\u00e9\u6f22\u2581<>s/|_"
RANDOM = ["".join(random.Random(i).choices(LETTERS, k=40)) for i in range(100)]
TEXTS = [*tokenizer_files.AWKWARD, *RANDOM, TEXT]


class Run:
    """A run on texts, or on conversations."""

    def __init__(self, tokenizer, architecture="decoder", format="text", head=None):
        self.folder, self.tokenizer = "run", lambda: tokenizer
        self.model = SimpleNamespace(architecture=architecture, head=head)
        self.run = SimpleNamespace(data=config.Data({"a": config.Source("jsonl", "x", format=format)}))


@pytest.fixture(scope="module")
def byte_level():
    """A byte-level BPE, as that of GPT-2."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator([TEXT] * 9, trainers.BpeTrainer(special_tokens=["<|endoftext|>"], initial_alphabet=alphabet))
    return from_bytes(made.to_str().encode(), checked=True)


@pytest.fixture(scope="module")
def tokenizers(byte_level):
    trained = {
        kind: train([TEXT, *RANDOM[:30]] * 3, config.Tokenizer(kind, size))
        for kind, size in dict(bpe=450, unigram=420, word=300).items()
    }
    splits = {
        f"byte_bpe {s}": train([TEXT, *RANDOM[:30]] * 3, config.Tokenizer("byte_bpe", 400, split=s))
        for s in ("gpt2", "gpt4", "llama3")
    }
    return trained | splits | {"byte_level": byte_level}


def opened(source, folder, model_type):
    """What AutoTokenizer makes of the files beside a model of this type."""
    for name, data in {
        **tokenizer_files.written(source),
        "config.json": json.dumps({"model_type": model_type}).encode(),
    }.items():
        (folder / name).write_bytes(data)
    return hf.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3", "arcee"])
@pytest.mark.parametrize("kind", ["bpe", "unigram", "word", "byte_level", "byte_bpe gpt2", "byte_bpe gpt4", "byte_bpe llama3"])
def test_ids_are_ours_whatever_the_text_and_the_model_type(tokenizers, tmp_path, kind, model_type):
    ours = tokenizers[kind]
    theirs = opened(Run(ours), tmp_path, model_type)
    texts = TEXTS if kind == "byte_level" else [*TEXTS, "".join(ours.names)]
    found = theirs(texts, split_special_tokens=True)
    assert found.keys() == {"input_ids", "attention_mask"}
    for text, ids in zip(texts, found.input_ids, strict=True):
        assert ids == [ours.bos_id, *ours.encode(text).tolist()], text
        if kind != "word":
            assert theirs.decode(ids, skip_special_tokens=True) == text
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (ours.bos_id, ours.eos_id, ours.pad_id)


def test_words_come_back_with_single_spaces(tokenizers, tmp_path):
    ours = tokenizers["word"]
    theirs = opened(Run(ours), tmp_path, "llama")
    assert theirs.decode(theirs("the  state\nof").input_ids, skip_special_tokens=True) == "the state of"


def test_a_name_in_a_text_is_the_special_token_unless_asked_otherwise(tokenizers, tmp_path):
    """As everywhere in transformers, whose chat templates need it."""
    ours = tokenizers["bpe"]
    theirs = opened(Run(ours), tmp_path, "llama")
    assert theirs("a</s>").input_ids == [ours.bos_id, *ours.encode("a").tolist(), ours.eos_id]


@pytest.mark.parametrize("architecture,begins,ends", [("decoder", 1, 0), ("encoder", 1, 1), ("encoder_decoder", 0, 1)])
def test_what_a_model_reads_around_a_text_is_written(tokenizers, tmp_path, architecture, begins, ends):
    ours = tokenizers["bpe"]
    theirs = opened(Run(ours, architecture), tmp_path, "bert")
    wanted = [ours.bos_id] * begins + ours.encode(TEXT).tolist() + [ours.eos_id] * ends
    assert theirs(TEXT).input_ids == wanted
    ids = tokenizer_files.token_ids(Run(ours, architecture))
    assert (ids["bos_token_id"], ids["eos_token_id"], ids["pad_token_id"]) == (1, 2, 0)
    assert ids.get("decoder_start_token_id") == (1 if architecture == "encoder_decoder" else None)


def test_a_chat_template_writes_bos_and_the_tokenizer_does_not(tokenizers, tmp_path):
    ours = tokenizers["bpe"]
    source = Run(ours, format="messages")
    theirs = opened(source, tmp_path, "llama")
    assert theirs("the state").input_ids == ours.encode("the state").tolist()
    talk = [{"role": "user", "content": "the  state\n"}]
    ids = theirs.apply_chat_template(talk, add_generation_prompt=True)["input_ids"]
    assert ids == tokenizer_files.chat.of(source).ids(talk).tolist() and ids[0] == ours.bos_id
    assert tokenizer_files.token_ids(source)["eos_token_id"] == ours.role_ids["<|end|>"]


def test_a_model_that_normalises_texts_is_written_alone(tmp_path):
    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT] * 9), model_writer=file, vocab_size=45, minloglevel=2, pad_id=3
    )
    assert tokenizer_files.written(Run(from_bytes(file.getvalue()))).keys() == {"tokenizer.model"}
