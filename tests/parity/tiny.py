"""Tiny random models of transformers, at least one per family, and equal inputs for theirs and ours."""

import jax
import numpy as np
import torch
import transformers as hf

from lm import conversion
from lm.models.transformer import Transformer
from lm.types import Example, TokenStream

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


def both(make, folder, *, noise=0.1):
    """A model of theirs, whose parameters are moved so that none is zero or one, and ours with the same: (model, params)."""
    torch.manual_seed(0)
    theirs = make().eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.add_(noise * torch.randn_like(p))
    theirs.save_pretrained(folder)
    imported = conversion.read(folder)
    return theirs, (Transformer(imported.model), jax.tree.map(np.asarray, imported.params))


CASES = {
    "llama": causal("LlamaForCausalLM", "LlamaConfig", **GQA, rope_parameters=LLAMA3),
    "llama-biased-tied": causal(
        "LlamaForCausalLM", "LlamaConfig", **SIZES, attention_bias=True, mlp_bias=True, tie_word_embeddings=True, head_dim=8
    ),
    "arcee": causal("ArceeForCausalLM", "ArceeConfig", **GQA, hidden_act="gelu_pytorch_tanh", tie_word_embeddings=True),
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
    "recurrent_gemma": causal(
        "RecurrentGemmaForCausalLM",
        "RecurrentGemmaConfig",
        **{**GQA, "num_key_value_heads": 1, "num_hidden_layers": 3},
        lru_width=48,
        attention_window_size=5,
    ),
    "mamba2": causal(
        "Mamba2ForCausalLM",
        "Mamba2Config",
        vocab_size=V,
        hidden_size=D,
        num_hidden_layers=2,
        num_heads=4,
        head_dim=D // 2,
        state_size=8,
        n_groups=2,
        chunk_size=4,
        pad_token_id=0,
    ),
    "gpt1": causal("OpenAIGPTLMHeadModel", "OpenAIGPTConfig", **GPT),
    "gpt2": causal("GPT2LMHeadModel", "GPT2Config", **GPT),
    "gpt_bigcode": causal("GPTBigCodeForCausalLM", "GPTBigCodeConfig", **GPT),
    "gpt_bigcode-mha": causal("GPTBigCodeForCausalLM", "GPTBigCodeConfig", **GPT, multi_query=False),
    "gptj": causal("GPTJForCausalLM", "GPTJConfig", **GPT, rotary_dim=6),
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


def stream(tokens: np.ndarray, seen: np.ndarray, types: np.ndarray | None = None) -> TokenStream:
    """Positions count from 0 in each row, as theirs do if padding comes last."""
    positions = np.broadcast_to(np.arange(tokens.shape[1], dtype=np.int32), tokens.shape)
    return TokenStream(tokens, positions, seen.astype(np.int32), None, types)


def inputs_for(model) -> tuple[Example, dict, np.ndarray, np.ndarray]:
    """Returns our inputs, theirs, the mask of positions to compare, and targets. The second row ends in padding."""
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
