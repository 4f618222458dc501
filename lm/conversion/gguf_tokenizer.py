"""The tokenizer and the chat template in a GGUF file, as the files of a Hugging Face folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lm import atomic
from lm.conversion.tokenizer_files import AS_IT_IS
from lm.data.tokenizer_bytes import LLAMA3
from lm.errors import UserError, nearest

UNKNOWN, CONTROL, USER_DEFINED = 2, 3, 4  # values of tokenizer.ggml.token_type
WORDS = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
SENTENCEPIECE = {"bos": "bos", "eos": "eos", "pad": "padding"}
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
# How a text is cut before merges, by tokenizer.ggml.pre (llama.cpp, src/llama-vocab.cpp): by an expression, or as GPT-2 does,
# with each digit on its own or not.
DIGITS = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b")
CUTS: Mapping[str, str | bool] = (
    dict.fromkeys(("gpt-2", "olmo", "phi-2", "jina-en", "jina-es", "jina-de"), False)
    | dict.fromkeys(DIGITS, True)
    | dict.fromkeys(("llama3", "llama-v3", "llama-bpe", "falcon3", "smaug-bpe", "dbrx"), LLAMA3)
    | dict.fromkeys(("qwen2", "deepseek-r1-qwen", "megrez"), QWEN2)
)
WHOLE = ("llama3", "llama-v3", "llama-bpe")  # a word that is a token is taken whole, whatever the merges


def tokenizer_files(metadata: Mapping[str, Any], folder: Path, source: Path) -> list[str]:
    """Writes tokenizer.json, tokenizer_config.json with the chat templates, and generation_config.json; returns their names.

    UserError, which names the file `source`, if its tokenizer is neither byte-level BPE nor of sentencepiece.
    """
    of = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata.items() if key.startswith("tokenizer.ggml.")}
    if not of:
        return []
    tokens = of.get("tokens")
    kind = of.get("model")
    if kind not in ("gpt2", "llama") or not isinstance(tokens, list):
        known = "byte-level BPE ('gpt2') and sentencepiece ('llama') are known"
        raise UserError(f"{source} has a tokenizer of the kind {kind!r}, and only {known}")
    special = {word: i for word, key in WORDS.items() if (i := of.get(f"{key}_token_id")) is not None}
    if wrong := [i for i in special.values() if i >= len(tokens)]:
        raise UserError(f"{source} names token {wrong[0]} of {len(tokens):,}; download it again")
    named: dict[str, Any] = {word: tokens[i] for word, i in special.items()}
    if kind == "llama":
        file, data = "tokenizer.model", _sentencepiece(of, source)
        settings = named
    else:
        file, data = "tokenizer.json", _tokenizer(of, source, set(special.values())).encode()
        settings = AS_IT_IS | named
    (folder / file).write_bytes(data)
    if "add_bos_token" in of:
        settings["add_bos_token"] = of["add_bos_token"]
    if templates := _templates(metadata):
        settings["chat_template"] = templates
    atomic.write_json(folder / "tokenizer_config.json", settings)
    ends = [of[f"{key}_token_id"] for key in ("eos", "eot") if f"{key}_token_id" in of]
    atomic.write_json(folder / "generation_config.json", {"eos_token_id": ends} if ends else {})
    return [file, "tokenizer_config.json", "generation_config.json"]


def _sentencepiece(of: Mapping[str, Any], source: Path) -> bytes:
    """The sentencepiece model of BPE that the tokens, scores and types were taken from."""
    from sentencepiece import sentencepiece_model_pb2

    format: Any = sentencepiece_model_pb2
    model = format.ModelProto()
    try:
        for token, score, kind in zip(of["tokens"], of["scores"], of["token_type"], strict=True):
            model.pieces.add(piece=token, score=score, type=kind)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{source} has tokens, scores and types that do not fit together ({error}); download it again"
        ) from None
    ids = {f"{ours}_id": of.get(f"{key}_token_id", -1) for ours, key in SENTENCEPIECE.items()}
    unk = next((i for i, piece in enumerate(model.pieces) if piece.type == UNKNOWN), 0)
    names = {f"{n.removesuffix('_id')}_piece": of["tokens"][i] for n, i in {**ids, "unk_id": unk}.items() if i >= 0}
    spec = format.TrainerSpec(model_type=format.TrainerSpec.BPE, byte_fallback=True, unk_id=unk, **ids, **names)
    model.trainer_spec.MergeFrom(spec)
    prefix = of.get("add_space_prefix", True)
    rule = format.NormalizerSpec(name="identity", add_dummy_prefix=prefix, remove_extra_whitespaces=False)
    model.normalizer_spec.MergeFrom(rule)
    return model.SerializeToString(deterministic=True)


def _templates(metadata: Mapping[str, Any]) -> str | list[dict[str, str]] | None:
    """The chat template, or several with their names, as a tokenizer_config.json has them."""
    named = {
        key.removeprefix("tokenizer.chat_template."): v for key, v in metadata.items() if "tokenizer.chat_template." in key
    }
    default = metadata.get("tokenizer.chat_template")
    if not named:
        return default
    every = named if default is None else {"default": default} | named
    return [{"name": name, "template": text} for name, text in every.items()]


def _tokenizer(of: Mapping[str, Any], source: Path, marked: set[int]) -> str:
    """The text of a tokenizer.json. `marked`: tokens that are special whatever their type."""
    try:
        from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    except ImportError:
        raise UserError("a tokenizer needs the tokenizers library: pip install -e '.[convert]'") from None

    pre = str(of.get("pre", "gpt-2"))
    if pre not in CUTS:
        raise UserError(f"{source} cuts texts in the way tokenizer.ggml.pre={pre!r}{nearest(pre, CUTS)}")
    cut, tokens = CUTS[pre], of["tokens"]
    try:
        merges = [(a, b) for a, b in (merge.split(" ") for merge in of["merges"])]
        tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=pre in WHOLE))
    except Exception as error:  # the library raises nothing narrower
        raise UserError(f"{source} has a vocabulary and merges that do not fit together ({error}); download it again") from None
    parts: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if cut is True else []
    parts += [pre_tokenizers.Split(Regex(cut), behavior="isolated")] if isinstance(cut, str) else []
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=isinstance(cut, bool)))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    tokenizer.decoder = decoders.ByteLevel()
    types = of.get("token_type") or [CONTROL if i in marked else 1 for i in range(len(tokens))]
    kinds = {True: {CONTROL}, False: {USER_DEFINED}}
    for special, wanted in kinds.items():
        named = [token for token, kind in zip(tokens, types, strict=False) if kind in wanted]
        tokenizer.add_tokens([AddedToken(token, normalized=False, special=special) for token in named])
    return tokenizer.to_str()
