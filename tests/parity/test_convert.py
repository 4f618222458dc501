"""Conversion both ways, held against transformers for every family it has: a tiny random model of theirs is saved, read by
us, gives their logits and their gradient of the loss at the embeddings, and is written back byte for byte.
"""

import json
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
hf = pytest.importorskip("transformers")

from huggingface_hub.errors import StrictDataclassClassValidationError  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402
from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: E402

from lm import convert  # noqa: E402
from lm.convert.families import FAMILIES  # noqa: E402
from lm.convert.tables import canonical, read_model  # noqa: E402
from lm.errors import UserError  # noqa: E402
from lm.models.transformer import Transformer  # noqa: E402
from lm.types import Example, TokenStream  # noqa: E402

V, D, T = 61, 64, 14
SIZES = dict(vocab_size=V, hidden_size=D, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96)
SIZES |= dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
GQA = SIZES | dict(num_key_value_heads=2)
FALCON = {k: v for k, v in SIZES.items() if k != "intermediate_size"} | dict(ffn_hidden_size=96)
OPT = FALCON | dict(max_position_embeddings=32, word_embed_proj_dim=D, ffn_dim=96)
del OPT["ffn_hidden_size"]
GPT = dict(vocab_size=V, n_embd=D, n_layer=2, n_head=4, n_positions=32, bos_token_id=1, eos_token_id=2, pad_token_id=0)
BERT = SIZES | dict(max_position_embeddings=32)
T5 = dict(vocab_size=V, d_model=D, d_kv=16, d_ff=96, num_layers=2, num_heads=4, relative_attention_max_distance=12)
BART = dict(vocab_size=V, d_model=D, encoder_layers=2, decoder_layers=2, max_position_embeddings=32, pad_token_id=0)
BART |= {f"{s}_{k}": v for s in ("encoder", "decoder") for k, v in (("attention_heads", 4), ("ffn_dim", 96))}
LLAMA3 = dict(rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, rope_theta=100.0)
LLAMA3 |= dict(original_max_position_embeddings=32)
LOCAL = ["sliding_attention", "full_attention"]


def causal(model: str, settings: str, **given):
    return lambda: getattr(hf, model)(getattr(hf, settings)(attn_implementation="eager", **given))


CASES = {
    "llama": causal("LlamaForCausalLM", "LlamaConfig", **GQA, rope_parameters=LLAMA3),
    "llama-biased-tied": causal(
        "LlamaForCausalLM", "LlamaConfig", **SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=8
    ),
    "mistral": causal("MistralForCausalLM", "MistralConfig", **GQA, sliding_window=5),
    "mixtral": causal("MixtralForCausalLM", "MixtralConfig", **GQA, num_local_experts=4),
    "qwen3": causal("Qwen3ForCausalLM", "Qwen3Config", **GQA, head_dim=16),
    "qwen3-windows": causal(
        "Qwen3ForCausalLM", "Qwen3Config", **GQA, head_dim=16, use_sliding_window=True, sliding_window=5, max_window_layers=1
    ),
    "olmo2": causal("Olmo2ForCausalLM", "Olmo2Config", **GQA),
    "gemma": causal("GemmaForCausalLM", "GemmaConfig", **GQA, head_dim=24),
    "gemma2": causal(
        "Gemma2ForCausalLM", "Gemma2Config", **GQA, head_dim=16, query_pre_attn_scalar=24, sliding_window=5, layer_types=LOCAL
    ),
    "gpt1": causal("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", **GPT),
    "gpt2": causal("GPT2LMHeadModel", "GPT2Config", **GPT),
    "gpt_bigcode": causal("GPTBigCodeForCausalLM", "GPTBigCodeConfig", **GPT),
    "gpt_bigcode-mha": causal("GPTBigCodeForCausalLM", "GPTBigCodeConfig", **GPT, multi_query=False),
    "starcoder2": causal("Starcoder2ForCausalLM", "Starcoder2Config", **GQA, sliding_window=5),
    "gpt_neox": causal("GPTNeoXForCausalLM", "GPTNeoXConfig", **SIZES),
    "gpt_neox-sequential": causal("GPTNeoXForCausalLM", "GPTNeoXConfig", **SIZES, use_parallel_residual=False),
    "bloom": causal("BloomForCausalLM", "BloomConfig", vocab_size=V, hidden_size=D, n_layer=2, n_head=4, pad_token_id=0),
    "falcon-7b": causal("FalconForCausalLM", "FalconConfig", **FALCON, multi_query=True, parallel_attn=True, bias=False),
    "falcon-40b": causal("FalconForCausalLM", "FalconConfig", **FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon-serial": causal("FalconForCausalLM", "FalconConfig", **FALCON, multi_query=False, parallel_attn=False, bias=True),
    "opt": causal("OPTForCausalLM", "OPTConfig", **OPT),
    "phi": causal("PhiForCausalLM", "PhiConfig", **SIZES, partial_rotary_factor=0.5),
    "bert": causal("BertForMaskedLM", "BertConfig", **BERT),
    "bert-trunk": causal("BertModel", "BertConfig", **BERT),
    "roberta": causal("RobertaForMaskedLM", "RobertaConfig", **BERT, type_vocab_size=1),
    "distilbert": causal(
        "DistilBertForMaskedLM", "DistilBertConfig", vocab_size=V, dim=D, n_layers=2, n_heads=4, hidden_dim=96
    ),
    "electra-generator": causal("ElectraForMaskedLM", "ElectraConfig", **BERT, embedding_size=24),
    "electra-discriminator": causal("ElectraForPreTraining", "ElectraConfig", **BERT, embedding_size=D),
    "modernbert": causal(
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        **SIZES | dict(num_hidden_layers=4, cls_token_id=1, sep_token_id=2),
        local_attention=6,
    ),
    "t5": causal("T5ForConditionalGeneration", "T5Config", **T5),
    "t5-v1.1": causal(
        "T5ForConditionalGeneration", "T5Config", **T5, feed_forward_proj="gated-gelu", tie_word_embeddings=False
    ),
    "bart": causal("BartForConditionalGeneration", "BartConfig", **BART, scale_embedding=True),
}


@pytest.fixture(scope="module", params=CASES)
def saved(request, tmp_path_factory):
    """Their model, its weights far from their tidy beginnings, and the folder that it was saved in."""
    torch.manual_seed(0)
    model = CASES[request.param]().eval()
    if request.param == "t5-v1.1":  # transformers ties what the released checkpoints do not
        model.lm_head.weight = torch.nn.Parameter(torch.randn(V, D))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn_like(p))
    folder = tmp_path_factory.mktemp(request.param.replace(".", ""))
    model.save_pretrained(folder)
    return model, folder


def stream(tokens: np.ndarray, seen: np.ndarray, types: np.ndarray | None = None) -> TokenStream:
    """Positions count what is seen, as theirs do where padding comes last."""
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return TokenStream(tokens, positions, seen.astype(np.int32), None, types)


def inputs_for(model) -> tuple[Example, dict, np.ndarray, np.ndarray]:
    """Ours, theirs, which places count, and targets. The second row ends in padding."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, V, (2, T)).astype(np.int32)
    seen = np.arange(T) < np.array([[T], [T - 5]])
    tokens = np.where(seen, tokens, 0).astype(np.int32)
    given = dict(input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(seen).long())
    if model.architecture == "encoder_decoder":
        targets = rng.integers(3, V, (2, 9)).astype(np.int32)
        given |= dict(decoder_input_ids=torch.tensor(targets).long())
        example = Example(stream(tokens, seen), stream(targets, np.ones_like(targets)), None, None)
        return example, given, np.ones((2, 9), bool), np.roll(targets, -1, 1)
    types = None
    if model.embed.types > 1:
        types = (np.arange(T) >= 6).astype(np.int32) * np.ones((2, 1), np.int32)
        given |= dict(token_type_ids=torch.tensor(types).long())
    one = stream(tokens, seen, types)
    example = Example(one, None, None, None) if model.encoder else Example(None, one, None, None)
    return example, given, seen, np.roll(tokens, -1, 1)


def score(logits, counted, targets, *, log_softmax, mean):
    """A loss of any logits: cross-entropy at the counted places, or for other outputs the mean of their sine."""
    if logits.shape[-1] != V:
        return mean(logits)
    chosen = log_softmax(logits)[np.arange(len(targets))[:, None], np.arange(targets.shape[1]), targets]
    return -mean(chosen)


def test_logits_and_gradients_equal(saved):
    theirs, folder = saved
    imported = convert.read(folder)
    example, given, counted, targets = inputs_for(imported.model)
    out = theirs(**given)
    expected = out.logits if "logits" in out else out.last_hidden_state
    expected = expected if expected.ndim == 3 else expected[..., None]
    mask = torch.tensor(counted)
    chosen = partial(torch.log_softmax, dim=-1)
    loss = score(expected, counted, targets, log_softmax=chosen, mean=lambda x: (torch.sin(x)[mask]).mean())
    loss.backward()
    wanted = theirs.get_input_embeddings().weight.grad.numpy()
    module = Transformer(imported.model)

    @jax.jit
    def ours(params):
        def total(params):
            logits = module.apply({"params": params}, example)
            mean = lambda x: (
                jnp.sum(jnp.sin(x) * (counted if x.ndim == 2 else counted[..., None])) / (x.size / counted.size * counted.sum())
            )
            return score(logits, counted, targets, log_softmax=jax.nn.log_softmax, mean=mean), logits

        return jax.value_and_grad(total, has_aux=True)(params)

    (_, logits), gradient = ours(imported.params)
    expected = expected.detach().numpy()
    assert np.abs(expected[counted]).max() > 0.1  # the comparison is of something
    np.testing.assert_allclose(np.asarray(logits)[counted], expected[counted], atol=2e-5, rtol=0)
    got = np.array(gradient["embed"]["tokens"]["embedding"])
    got[0] = wanted[0] if not wanted[0].any() else got[0]  # torch gives padding_idx no gradient
    assert np.abs(wanted).max() > 1e-3
    np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "bloom", "bert", "modernbert", "t5"])
def test_packed_rows_are_theirs_alone(name, tmp_path):
    """Two texts in one row, positions from 0 in each, against their model on each text by itself."""
    torch.manual_seed(1)
    theirs = CASES[name]().eval()
    theirs.save_pretrained(tmp_path)
    imported = convert.read(tmp_path)
    rng = np.random.default_rng(1)
    texts = [rng.integers(3, V, n).astype(np.int32) for n in (8, 5)]
    answers = [rng.integers(3, V, n).astype(np.int32) for n in (4, 6)]

    def packed(parts):
        positions = np.concatenate([np.arange(len(p), dtype=np.int32) for p in parts])
        segments = np.repeat(np.arange(1, len(parts) + 1, dtype=np.int32), [len(p) for p in parts])
        return TokenStream(np.concatenate(parts)[None], positions[None], segments[None])

    both = imported.model.architecture == "encoder_decoder"
    encoder = packed(texts) if imported.model.encoder else None
    decoder = packed(answers if both else texts) if imported.model.decoder else None
    example = Example(encoder, decoder, None, None)
    got = np.asarray(jax.jit(lambda p: Transformer(imported.model).apply({"params": p}, example))(imported.params))[0]
    alone = []
    for text, answer in zip(texts, answers, strict=True):
        given = dict(input_ids=torch.tensor(text[None]).long())
        given |= dict(decoder_input_ids=torch.tensor(answer[None]).long()) if both else {}
        with torch.no_grad():
            alone.append(theirs(**given).logits[0].numpy())
    np.testing.assert_allclose(got, np.concatenate(alone), atol=2e-5, rtol=0)


def test_written_back_byte_for_byte(saved, tmp_path):
    _, folder = saved
    imported = convert.read(folder)
    said = json.loads((folder / "config.json").read_text())
    family = convert.write(imported.model, imported.params, tmp_path, family=said["model_type"])
    assert family == said["model_type"]
    before, after = load_file(folder / "model.safetensors"), load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert tensor.shape == after[name].shape and tensor.tobytes() == after[name].tobytes(), name
    again = convert.read(tmp_path)
    assert canonical(again.model) == canonical(imported.model)


def test_transformers_reads_what_we_write(saved, tmp_path):
    """Their class, told by our config.json alone, has the same outputs."""
    theirs, folder = saved
    imported = convert.read(folder)
    said = json.loads((folder / "config.json").read_text())
    ids = {k: v for k, v in said.items() if k.endswith("token_id")}
    convert.write(imported.model, imported.params, tmp_path, family=imported.family, also=ids)
    name = json.loads((tmp_path / "config.json").read_text())["architectures"][0]
    again = getattr(hf, name).from_pretrained(tmp_path, attn_implementation="eager").eval()
    _, given, _, _ = inputs_for(imported.model)
    with torch.no_grad():
        a, b = (m(**given)[0].numpy() for m in (theirs, again))
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_a_missing_key_is_what_transformers_takes(saved):
    """Every key of their config.json left out in turn: the model is that of the file with all keys that their config class
    fills in, or it is refused."""
    _, folder = saved
    said = json.loads((folder / "config.json").read_text())
    family, keys = FAMILIES[said["model_type"]], load_file(folder / "model.safetensors").keys()
    theirs = CONFIG_MAPPING[said["model_type"]]
    equal = 0
    for name in said.keys() - {"model_type"}:
        rest = {k: v for k, v in said.items() if k != name}
        try:
            filled = json.loads(theirs(**json.loads(json.dumps(rest))).to_json_string(use_diff=False))
            if name == "feed_forward_proj":  # what they read is in the two keys that follow from it
                filled = said
            ours, wanted = read_model(family, rest, keys), read_model(family, filled, keys)
        except (UserError, StrictDataclassClassValidationError):
            continue
        assert canonical(ours) == canonical(wanted), name
        equal += 1
    assert equal > 0.7 * len(said)  # some sizes cannot be missed: the defaults fit no model so small


def copy(folder: Path, target: Path, **changes) -> Path:
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    said = json.loads((folder / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(said | changes))
    return target


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    CASES["llama"]().save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    "changes,said",
    [
        (dict(frobnicate=3), "frobnicate=3"),
        (dict(hidden_act="xielu"), "hidden_act='xielu' is not implemented"),
        (dict(rope_parameters=dict(rope_type="yarn", factor=4.0)), "rope_type='yarn'"),
        (dict(model_type="lama"), "did you mean 'llama'"),
        (dict(num_hidden_layers=3), "missing: model.layers.2"),
        (dict(num_hidden_layers=1), "not taken: model.layers.1"),
        (dict(intermediate_size=97), "where config.json means [64, 97]"),
    ],
)
def test_what_is_not_understood_stops(llama, tmp_path, changes, said):
    with pytest.raises(UserError) as error:
        convert.read(copy(llama, tmp_path, **changes))
    assert said in str(error.value)


def test_tensors_are_dropped_only_when_told(tmp_path):
    model = hf.BertForPreTraining(hf.BertConfig(**BERT))
    model.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="not taken: cls.seq_relationship.bias, cls.seq_relationship.weight"):
        convert.read(tmp_path)
    assert convert.read(tmp_path, drop=r"cls\.seq_relationship.*").model.pooler


def test_sharded_files_and_scanned_layers_are_the_same_weights(llama, tmp_path):
    plain = convert.read(llama, scan=False)
    convert.write(plain.model, plain.params, tmp_path, shard_bytes=60_000)
    assert len(list(tmp_path.glob("model-*-of-*.safetensors"))) > 2
    scanned = convert.read(tmp_path, scan=True)
    assert scanned.model.decoder.scan
    kernel = lambda tree, turn: tree["decoder"][turn]["block_0"]["ffn"]["up"]["kernel"]
    np.testing.assert_array_equal(kernel(scanned.params, "turns")[1], kernel(plain.params, "turn_1"))
    again = tmp_path / "again"
    convert.write(scanned.model, scanned.params, again)
    assert (again / "model.safetensors").read_bytes() != b""
    before, after = load_file(llama / "model.safetensors"), load_file(again / "model.safetensors")
    assert all(tensor.tobytes() == after[name].tobytes() for name, tensor in before.items())
    next(tmp_path.glob("model-00001*")).unlink()
    with pytest.raises(UserError, match="is not there"):
        convert.read(tmp_path)


def test_pickles_are_refused_unless_asked_for(llama, tmp_path):
    source = copy(llama, tmp_path)
    state = load_file(source / "model.safetensors")
    (source / "model.safetensors").unlink()
    torch.save({k: torch.tensor(v) for k, v in state.items()}, source / "pytorch_model.bin")
    with pytest.raises(UserError, match="allow_pickle"):
        convert.read(source)
    got = convert.read(source, allow_pickle=True)
    jax.tree.map(np.testing.assert_array_equal, got.params, convert.read(llama).params)

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "harm"), "w"))

    torch.save({"x": Evil()}, source / "pytorch_model.bin")
    with pytest.raises(UserError, match="could not be read"):
        convert.read(source, allow_pickle=True)
    assert not (tmp_path / "harm").exists()


def test_a_broken_file_is_named(llama, tmp_path):
    source = copy(llama, tmp_path)
    whole = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="model.safetensors is not a whole safetensors file"):
        convert.read(source)


def test_a_model_that_no_family_can_say_is_refused(llama, tmp_path):
    from dataclasses import replace

    imported = convert.read(llama)
    stack = imported.model.decoder
    block = replace(stack.blocks["L"], norm_at=("in", "res", "out"))
    odd = replace(imported.model, decoder=replace(stack, blocks={"L": block}))
    with pytest.raises(UserError, match="no Hugging Face family can say this model"):
        convert.write(odd, imported.params, tmp_path)
