"""Byte-level BPE, trained by the `tokenizers` library: a tokenizer.json with the reserved ids of `lm.data.tokenizer`.

    0..109 control symbols, as there   110..365 the 256 bytes   366.. learned pieces, the first merge first

An expression cuts a text into words, and pairs are merged within a word only. So the expression decides what a piece may be:
whether a newline or a space is part of it, how many digits it has, which mark goes with a word.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from lm import config
from lm.data.tokenizer_json import library
from lm.data.vocabulary import MASK, ROLES, SENTINELS
from lm.errors import UserError

RESERVED = ("<pad>", "<s>", "</s>", "<unk>", MASK, *SENTINELS, *ROLES)
BYTES = 256
# GPT-4: cl100k_base of tiktoken 0.14 (tiktoken_ext/openai_public.py), as the library spells it: there, `$` would be the end of
# a line, and `{1,3}+` would have no upper bound. LLaMA 3: tokenizer.json of meta-llama/Meta-Llama-3-8B. They differ at white
# space at the end of a text, all of which is one word of GPT-4's. GPT-2's is the library's own.
LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
GPT4 = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++\z|\s*[\r\n]|\s+(?!\S)|\s"
SPLITS: Mapping[str, str | None] = {"gpt2": None, "gpt4": GPT4, "llama3": LLAMA3}
_PART = 1 << 16  # characters that the library gets at a time; it takes 256 such parts into memory
_NAMES = re.compile("|".join(map(re.escape, RESERVED)))


def train(texts: Iterable[str], settings: config.Tokenizer) -> bytes:
    """Returns the tokenizer.json. The same texts and settings give the same bytes, whatever the number of threads.

    Raises UserError if `vocab_size` is too small, or larger than the texts allow; the message names the limit.
    """
    lib, size = library(), settings.vocab_size
    least = len(RESERVED) + BYTES + 1
    if size < least:
        raise UserError(f"data.tokenizer.vocab_size={size} is below {least}, the least that reserved ids and bytes need")
    made = lib.Tokenizer(lib.models.BPE())
    made.pre_tokenizer, made.decoder = _split(lib, SPLITS[settings.split]), lib.decoders.ByteLevel()
    trainer = lib.trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(RESERVED),
        initial_alphabet=lib.pre_tokenizers.ByteLevel.alphabet(),  # or texts decide which bytes there are, and their ids
        show_progress=False,
    )
    made.train_from_iterator(_parts(texts), trainer)
    if (largest := made.get_vocab_size()) < size:
        raise UserError(
            f"data.tokenizer.vocab_size={size} is more than the training text allows; the largest for byte_bpe is {largest}"
        )
    return made.to_str().encode()


def _split(lib: Any, expression: str | None) -> Any:
    """The pre-tokenizer that cuts by the expression, and spells bytes as letters."""
    pre = lib.pre_tokenizers
    if expression is None:
        return pre.ByteLevel(add_prefix_space=False)
    return pre.Sequence([pre.Split(lib.Regex(expression), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)])


def _parts(texts: Iterable[str]) -> Iterator[str]:
    """The texts in parts of at most _PART characters, cut after a newline if there is one, and without names of special tokens,
    or a piece could have the name of one."""
    for text in texts:
        for between in _NAMES.split(text):
            at = 0
            while at < len(between):
                last = at + _PART
                stop = last if last >= len(between) else between.rfind("\n", at, last) + 1 or last
                yield between[at:stop]
                at = stop
