"""The tokenizer of a run as files that `AutoTokenizer` of transformers reads alike: the same ids, and what a model reads
before and after a text.

transformers rebuilds a tokenizer by the class that it has for a `model_type`, unless tokenizer_config.json names the class that
takes tokenizer.json as it is. So a tokenizer.json is written, for sentencepiece models too, and the class is named.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, cast

from lm import untrusted
from lm.data import chat, templates, tokenizer_json
from lm.data.tokenizer import Words
from lm.data.vocabulary import SPACE, Tokenizer

# The class of transformers that reads tokenizer.json and nothing else, and what it is to give a model.
AS_IT_IS = {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
# Texts for which a tokenizer.json must give the ids of the sentencepiece model that it is made of.
AWKWARD = (
    "",
    "\n",
    " a  b   c\n\n\n d \t e ",
    "Fellow citizens, the state of the economy.",
    "1234567 $3.50\r\n\x00\x1f",
    "\u00e9t\u00e9 \u6f22\u5b57 \U0001f600 e\u0301 \u2581 a\u2581b",
    "<pad> <s></s> <unk> <mask> <|user|> <extra_id_1> <0x0A> [MASK]",
)


def written(source: Any) -> dict[str, bytes]:
    """Returns the files of a saved model's tokenizer by name, a run's chat template among them; {} for a converted model that
    names the class of its tokenizer, or has none. `source`: a `lm.saved.Saved`.

    A sentencepiece model that tokenizer.json cannot express alike is written alone, with the settings of `lm.data.chat.files`.
    """
    own = source.carried(chat.SETTINGS) if source.run is None else None
    named = untrusted.parse_json(own, source.folder / "hf" / chat.SETTINGS) if own else {}
    if source.run is None and ("tokenizer_class" in named or source.tokenizer_bytes() is None):
        return {}
    tokenizer = source.tokenizer()
    given = tokenizer.proto.lstrip()[:1] == b"{"
    files = chat.files(source) | ({} if given or source.run is None else {"tokenizer.model": tokenizer.proto})
    spec = json.loads(tokenizer.proto) if given else as_json(tokenizer)
    if spec is None or own and given:
        return files
    talks, made_here = _talks(source), not given or source.run is not None or source.carried("config.json") is None
    if made_here and not talks:  # a chat template writes bos itself
        spec["post_processor"] = around(tokenizer, source.model.architecture, eos=_class_at_eos(source))
    settings = {**AS_IT_IS, **names(tokenizer), "clean_up_tokenization_spaces": False}
    settings |= named | ({"add_bos_token": False} if talks else {})
    return files | {"tokenizer.json": _dump(spec, indent=None), chat.SETTINGS: _dump(settings)}


def _talks(source: Any) -> bool:
    """Whether it is a chat model."""
    if source.run is None:
        return source.carried(chat.TEMPLATE) is not None or b'"chat_template"' in (source.carried(chat.SETTINGS) or b"")
    return bool(source.run.data.conversations)


def _class_at_eos(source: Any) -> bool:
    """Whether a class is read off behind a text, at its eos: of a decoder that was fine-tuned here (`label_example`)."""
    made_here = source.run is not None or source.carried("config.json") is None
    head = source.model.head
    return made_here and source.model.architecture == "decoder" and head is not None and head.outputs is not None


def names(tokenizer: Tokenizer) -> dict[str, str | None]:
    """The special tokens as a tokenizer_config.json names them; null for bos and eos that it lacks, or a class has its own."""
    known = {f"{name}_token": i for name in ("pad", "unk", "mask") if (i := getattr(tokenizer, f"{name}_id")) is not None}
    own: dict[str, str | None] = {name: tokenizer.piece(i) for name, i in known.items()}
    return {"bos_token": None, "eos_token": None} | templates.special_names(tokenizer) | own


def token_ids(source: Any) -> dict[str, int]:
    """The ids that config.json and generation_config.json of a run name: bos, eos (of a chat model, the end of an answer), pad,
    and what an encoder-decoder's decoder begins with. {} of a converted model, which has its own."""
    if source.run is None:
        return {}
    tokenizer = source.tokenizer()
    found = {f"{n}_token_id": i for n in ("bos", "eos", "pad") if (i := getattr(tokenizer, f"{n}_id")) is not None}
    if _talks(source):
        found["eos_token_id"] = chat.of(source).end
    elif _class_at_eos(source) and found.get("pad_token_id") == found.get("eos_token_id"):
        found.pop("pad_token_id", None)  # transformers reads the class at the last token that is not this one
    if source.model.architecture == "encoder_decoder":
        begin = tokenizer.pad_id if tokenizer.bos_id is None else tokenizer.bos_id
        found |= {} if begin is None else {"decoder_start_token_id": begin}
    return found


def around(tokenizer: Tokenizer, architecture: str, *, eos: bool = False) -> dict[str, Any] | None:
    """The post-processor that puts around a text what a model of this architecture reads there, as `lm.data.examples` does.

    decoder   bos text, and `eos`        encoder   bos text eos        encoder_decoder   text eos
    """
    before = [tokenizer.bos_id] if architecture != "encoder_decoder" else []
    after = [tokenizer.eos_id] if eos or architecture != "decoder" else []
    ids = {tokenizer.piece(i): i for i in (*before, *after) if i is not None}
    if not ids:
        return None
    special = lambda some: [{"SpecialToken": {"id": tokenizer.piece(i), "type_id": 0}} for i in some if i is not None]
    text = lambda name: [{"Sequence": {"id": name, "type_id": 0}}]
    return {
        "type": "TemplateProcessing",
        "single": [*special(before), *text("A"), *special(after)],
        "pair": [*special(before), *text("A"), *text("B"), *special(after)],
        "special_tokens": {name: {"id": name, "ids": [i], "tokens": [name]} for name, i in ids.items()},
    }


def as_json(tokenizer: Tokenizer) -> dict[str, Any] | None:
    """The parsed tokenizer.json with the ids of a sentencepiece model; None if its texts are normalised, or if ids would differ
    for any of AWKWARD.

    Pieces are written with the spaces that they stand for. With U+2581 for them, as sentencepiece writes, a U+2581 in a text
    would become a space.
    """
    from sentencepiece import sentencepiece_model_pb2

    tokenizers, format = tokenizer_json.library(), cast(Any, sentencepiece_model_pb2)
    model = format.ModelProto.FromString(tokenizer.proto)
    plain = not (model.normalizer_spec.precompiled_charsmap or model.normalizer_spec.add_dummy_prefix)
    kinds = {format.TrainerSpec.BPE: _bpe, format.TrainerSpec.UNIGRAM: _unigram}
    if isinstance(tokenizer, Words):
        made = _words(tokenizer)
    elif plain and model.trainer_spec.model_type in kinds and model.trainer_spec.byte_fallback:
        user = format.ModelProto.SentencePiece.USER_DEFINED
        texts = [i for i, piece in enumerate(model.pieces) if piece.type == user and not tokenizer.special[i]]
        made = kinds[model.trainer_spec.model_type](tokenizer, model)
        made.decoder = tokenizers.decoders.Sequence([tokenizers.decoders.ByteFallback(), tokenizers.decoders.Fuse()])
        made.add_tokens([tokenizers.AddedToken(tokenizer.piece(i), normalized=False) for i in texts])
    else:
        return None
    special = [tokenizer.piece(int(i)) for i in tokenizer.special.nonzero()[0]]
    made.add_special_tokens([tokenizers.AddedToken(name, normalized=False, special=True) for name in special])
    spec = json.loads(made.to_str())
    return spec if _alike(spec, tokenizer) else None


def _alike(spec: Mapping[str, Any], tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer.json gives the tokenizer's ids for AWKWARD texts, names of special tokens taken as letters."""
    import tokenizers

    made = tokenizers.Tokenizer.from_str(json.dumps(spec))
    made.encode_special_tokens = True
    encoded = made.encode_batch(list(AWKWARD), add_special_tokens=False)
    return [e.ids for e in encoded] == [ids.tolist() for ids in tokenizer.encode_batch(AWKWARD, threads=1)]


def _texts(model: Any) -> list[str]:
    """The pieces, with the spaces that ordinary ones stand for."""
    normal = type(model).SentencePiece.NORMAL
    return [piece.piece.replace(SPACE, " ") if piece.type == normal else piece.piece for piece in model.pieces]


def _bpe(tokenizer: Tokenizer, model: Any) -> Any:
    """sentencepiece merges the pair that makes the piece of the highest score, so that all pairs that make a piece have its
    rank."""
    from tokenizers import Tokenizer as Library
    from tokenizers import models

    texts, normal = _texts(model), type(model).SentencePiece.NORMAL
    vocab = {text: i for i, text in enumerate(texts)}
    usual = {text for text, piece in zip(texts, model.pieces, strict=True) if piece.type == normal}
    pairs = [(text[:at], text[at:]) for text in usual for at in range(1, len(text))]
    pairs = [(a, b) for a, b in pairs if a in usual and b in usual]
    pairs.sort(key=lambda pair: (-model.pieces[vocab["".join(pair)]].score, vocab[pair[0]], vocab[pair[1]]))
    unk = None if tokenizer.unk_id is None else tokenizer.piece(tokenizer.unk_id)
    return Library(models.BPE(vocab, pairs, unk_token=unk, byte_fallback=True))


def _unigram(tokenizer: Tokenizer, model: Any) -> Any:
    """Special tokens and bytes score lower than the letters of their names, so that no text is cut into them; the library gives
    an unknown letter the lowest score of all, so texts are cut at unknown letters that names have."""
    from tokenizers import Regex, models, pre_tokenizers
    from tokenizers import Tokenizer as Library

    normal, never = type(model).SentencePiece.NORMAL, -1e6
    texts, usual = _texts(model), [piece.type == normal for piece in model.pieces]
    scores = [piece.score if known else never for piece, known in zip(model.pieces, usual, strict=True)]
    made = Library(models.Unigram(list(zip(texts, scores, strict=True)), tokenizer.unk_id, byte_fallback=True))
    letters = {known: {c for text, k in zip(texts, usual, strict=True) if k is known for c in text} for known in (True, False)}
    if unknown := sorted(letters[False] - letters[True] - {"\n"}):
        made.pre_tokenizer = pre_tokenizers.Split(Regex("|".join(map(re.escape, unknown))), behavior="isolated")
    return made


def _words(tokenizer: Tokenizer) -> Any:
    """Words begin with a U+2581, which special tokens do not, so that no word of a text is taken for one."""
    from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers
    from tokenizers import Tokenizer as Library

    space = Regex(r"[\s\x1c-\x1f]+")  # of `str.split`
    vocab = {tokenizer.piece(i): i for i in range(tokenizer.vocab_size)}
    made = Library(models.WordLevel(vocab, unk_token=tokenizer.piece(tokenizer.require("unk"))))
    made.normalizer = normalizers.Replace(Regex(r"(?<![^\s\x1c-\x1f])(?=[^\s\x1c-\x1f])"), SPACE)
    made.pre_tokenizer = pre_tokenizers.Split(space, behavior="removed")
    made.decoder = decoders.Metaspace(SPACE, "always")
    return made


def _dump(value: Any, indent: int | None = 2) -> bytes:
    return json.dumps(value, indent=indent, ensure_ascii=False).encode()
