"""Answers that follow a grammar: which tokens may come next, by the library llguidance.

    grammars = Grammars(tokenizer, vocab_size=model.vocab_size, eos=(2,))
    engine.submit(Request(prompt, 64, constraint=grammars.regex("[0-9]{4}-[0-9]{2}")))

The tokens that the grammar excludes are never drawn, and the others are drawn from the model's distribution over what is left.
A text ends when the grammar is complete and either the model ends it or nothing else is allowed. A text that reaches its limit
of tokens before is the beginning of one that follows the grammar.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from lm.errors import UserError


class Grammars:
    """Compiles grammars for a tokenizer.

    vocab_size: of the model, which may be larger than the tokenizer's
    eos: tokens that end a text
    """

    def __init__(self, tokenizer: Any, *, vocab_size: int, eos: Sequence[int]) -> None:
        try:
            import llguidance
        except ImportError:
            raise UserError("grammars need llguidance: pip install -e '.[serve]'") from None
        self._library = llguidance
        pieces = tokenizer.piece_bytes
        words = tokenizer.encode("one two")
        if b"".join(pieces[i] for i in words).strip() != b"one two" or not len(eos):
            raise UserError(
                "a grammar needs a tokenizer whose pieces are the bytes of a text, and which has an end of the text"
            )
        self._eos = np.array(eos, np.int64)
        wrapped = _Wrapped(tokenizer, pieces, vocab_size, int(eos[0]))
        self._tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(wrapped), n_vocab=vocab_size, eos_token=list(eos))
        self._words = -(-vocab_size // 32)

    def regex(self, pattern: str) -> "Constraint":
        """The whole text matches a regular expression, in Rust's syntax: without look-around and back-references."""
        return self._compiled(self._library.LLMatcher.grammar_from_regex(pattern), f"the regular expression {pattern!r}")

    def json_schema(self, schema: dict[str, Any]) -> "Constraint":
        """The text is a JSON value of this schema, without white space that JSON does not need."""
        try:
            found = self._library.LLMatcher.grammar_from_json_schema(schema, {"whitespace_flexible": False})
        except ValueError as error:
            raise UserError(f"the JSON schema is invalid ({error})") from None
        return self._compiled(found, "the JSON schema")

    def json_object(self) -> "Constraint":
        """The text is a JSON object."""
        return self.json_schema({"type": "object"})

    def lark(self, grammar: str) -> "Constraint":
        """The text is derived from `start` of a context-free grammar in llguidance's dialect of Lark."""
        return self._compiled(self._library.LLMatcher.grammar_from_lark(grammar), "the grammar")

    def _compiled(self, grammar: str, what: str) -> "Constraint":
        matcher = self._library.LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise UserError(f"{what} cannot be used ({matcher.get_error().splitlines()[0]}); give another")
        return Constraint(matcher, self._words, self._eos)


class Constraint:
    """A compiled grammar. `begin` returns a walk through it, one for each sample."""

    def __init__(self, matcher: Any, words: int, eos: np.ndarray) -> None:
        self._matcher, self._words, self._eos = matcher, words, eos

    def begin(self) -> "Walk":
        return Walk(self._matcher.deep_copy(), self._words, self._eos)


class Walk:
    """The state of one text."""

    def __init__(self, matcher: Any, words: int, eos: np.ndarray) -> None:
        self._matcher, self._eos = matcher, eos
        self._only_eos = np.zeros(words, np.uint32)
        np.bitwise_or.at(self._only_eos, eos // 32, np.uint32(1) << (eos % 32).astype(np.uint32))

    def allowed(self) -> np.ndarray:
        """uint32 [ceil(V / 32)]: bit i % 32 of word i // 32 says whether token i may come next. Never empty: where nothing else
        is allowed, a token that ends the text is."""
        if self._matcher.is_stopped():
            return self._only_eos
        # The library's mask has room for one more token than the vocabulary.
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint32)[: len(self._only_eos)]
        return bits if bits.any() else self._only_eos

    def add(self, token: int) -> None:
        """Goes on by a token that was allowed."""
        if token not in self._eos:
            self._matcher.consume_token(token)


class _Wrapped:
    """A tokenizer as llguidance reads it."""

    def __init__(self, tokenizer: Any, pieces: Sequence[bytes], vocab_size: int, eos: int) -> None:
        self._tokenizer = tokenizer
        self.eos_token_id, self.bos_token_id = eos, tokenizer.bos_id
        special = {int(i) for i in np.flatnonzero(tokenizer.special)} | set(range(len(pieces), vocab_size)) | {eos}
        self.special_token_ids = sorted(special)
        self.tokens = [b"<%d>" % i if i in special else pieces[i] for i in range(vocab_size)]

    def __call__(self, text: bytes | str) -> list[int]:
        text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
        return [int(i) for i in self._tokenizer.encode(text)]
