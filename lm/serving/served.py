"""A model as the server has it: how it is asked, and the programs that answer."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import jax
import numpy as np

from lm import saved
from lm.config import Weights
from lm.data import chat
from lm.errors import UserError
from lm.generation.engine import Engine
from lm.generation.padding import buckets, whole
from lm.generation.samples import ask
from lm.generation.text_engine import text_engine
from lm.generation.vectors import Embedder, stack_of
from lm.models import quantized
from lm.models.positions import learned
from lm.models.transformer import Transformer
from lm.objectives import reads_prefix, text_prompt, usual
from lm.objectives.mixture import first_part
from lm.objectives.prompts import MASK
from lm.serving import looks
from lm.serving.scoring import Scorer

LENGTH = 1024  # tokens of a slot, if neither learned positions nor a run's rows say how many the model reads
LOOKED = 48  # tokens of a text whose attention is shown


@dataclass(frozen=True)
class Reading:
    """A prompt as the model reads it."""

    tokens: np.ndarray  # int32 [n], what the decoder continues
    encoder: np.ndarray | None  # int32 [m]
    shown: int  # of the tokens, how many at the end are the prompt's own: without bos and a mode's token


class Served:
    """The model in a folder.

    name: by which requests ask for it
    slots, length, top, engine: see `Engine`; length None: as many as the model was trained on
    weights: see `lm.models.quantized`
    """

    def __init__(
        self,
        name: str,
        folder: str,
        *,
        slots: int,
        length: int | None,
        top: int,
        weights: Weights | None = None,
        **engine: Any,
    ) -> None:
        source = saved.open(folder)
        self.name, self.folder, self.slots, self.config = name, folder, slots, source.model
        self.architecture = source.model.architecture
        self.model, self._settings = Transformer(source.model), engine
        self.params = quantized.weights(self.model, source.params(device=jax.local_devices()[0]), weights)
        self.tokenizer, run = source.tokenizer(), source.run
        self.objective = run.objective if run else usual(self.architecture)
        self.part, self.mode = first_part(self.objective, self.tokenizer)
        self.head = bool(source.model.head) and source.model.head.outputs is None  # over the vocabulary
        self.length, self.source = self._lengths(length, run.data if run else None)
        self.top = min(top, source.model.vocab_size)
        self.known = min(self.tokenizer.vocab_size, source.model.vocab_size)  # ids that clients may send
        self.trained = run.objective if run else None
        self.chat = self._chat(source)
        self.way = way = text_prompt(self.part) if self.head else None
        self.continues = self.architecture != "encoder" and way is not None and way.in_order
        # A converted decoder says nothing of the marks by which it is asked for a gap.
        self.infills = self.continues and way is not None and MASK in way.clean(f"a {MASK}")
        # Whether it writes the whole text anew, and not what stands in the gap alone.
        self.rewrites = self.infills and self.architecture == "encoder_decoder" and not (way and way.sentinels)
        self.scorer = self._scorer()
        looked = learned(source.model, stack_of(source.model)) or LOOKED
        self.looked = min(LOOKED, looked)

    def _lengths(self, given: int | None, data: Any) -> tuple[int, int]:
        """Tokens of a slot, and of what an encoder reads beside it: 0 without one."""
        found = []
        for stack in ("decoder", "encoder"):
            row, most = getattr(data, f"{stack}_length", None), learned(self.config, stack)
            found.append(given or min(row or LENGTH, most or row or LENGTH))
        decoder, encoder = found
        if self.architecture == "encoder":
            return encoder, 0
        return decoder, encoder if self.architecture == "encoder_decoder" else 0

    @staticmethod
    def _chat(source: saved.Saved) -> Any:
        """How the model is given a conversation; None if it is no chat model."""
        try:
            return chat.of(source)
        except UserError:
            return None

    def _scorer(self) -> Scorer | str:
        """Or why texts have no score under this model."""
        if not self.head:
            return f"the model {self.name!r} has no head over the vocabulary, and scores nothing: take /v1/embeddings"
        try:
            settings: dict[str, Any] = dict(length=self.source or self.length, top=self.top)
            return Scorer(self.model, self.params, self.objective, self.tokenizer, **settings)
        except UserError as error:
            return str(error)

    # ------------------------------------------------------------------------------------------------------- programs

    @cached_property
    def ends(self) -> tuple[int, ...]:
        """Tokens that end a text."""
        own = () if self.tokenizer.eos_id is None else (self.tokenizer.eos_id,)
        return tuple(dict.fromkeys((*own, *(self.chat.ends if self.chat else ()))))

    def engine(self) -> Engine:
        """A new engine."""
        sentinels = self.tokenizer.sentinel_ids if self.way and self.way.sentinels else ()
        settings: dict[str, Any] = dict(slots=self.slots, length=self.length, source=self.source, top=self.top)
        prefix = self.architecture == "decoder" and reads_prefix(self.architecture, self.part)
        settings |= dict(ends=self.ends, may_write=sentinels, prefix=prefix)
        return text_engine(Engine, self.model, self.params, self.tokenizer, **settings, **self._settings)

    @cached_property
    def embedder(self) -> Embedder:
        length = self.source or self.length
        # A text at a time: a program for each bucket, and not for each number of texts too.
        return Embedder(self.model, self.params, self.tokenizer, self.trained, length=length, batch_size=1)

    @cached_property
    def grammars(self) -> Any:
        from lm.generation.grammar import Grammars

        return Grammars(self.tokenizer, vocab_size=self.config.vocab_size, eos=self.ends)

    def warm(self, engine: Engine | None) -> None:
        """Compiles all that requests need."""
        if engine:
            try:
                engine.warm(self.grammars.regex("a"))
            except UserError:  # no grammar can be followed with this tokenizer, and requests say so
                engine.warm()
        if isinstance(self.scorer, Scorer):
            self.scorer.warm()
        for size in buckets(self.source or self.length):
            self.embedder._read([np.zeros(size, np.int32)])
        if self.head:
            self.look("a")

    def look(self, text: str) -> tuple[np.ndarray, Any]:
        """The tokens of a text as the model reads it, int32 [n], and `looks.Look` of them. UserError if they are too many."""
        ids = np.array([*self.begin, *self.tokenizer.encode(text)], np.int32)
        if not self.head:
            raise UserError(f"the model {self.name!r} has no head over the vocabulary, which the lens needs: take another")
        if len(ids) > self.looked:
            raise UserError(f"the text has {len(ids)} tokens, and {self.looked} can be looked at: shorten it")
        stream = whole(np.pad(ids, (0, self.looked - len(ids))))
        stream = dataclasses.replace(stream, segments=(np.arange(self.looked) < len(ids)).astype(np.int32)[None])
        return ids, jax.device_get(looks.look(self.model, self.params, stream, top=self.top))

    # ------------------------------------------------------------------------------------------------------- asking

    @property
    def begin(self) -> list[int]:
        """What stands before a text: a mode's token, and bos."""
        return [*self.mode, *(() if self.tokenizer.bos_id is None else (self.tokenizer.bos_id,))]

    def read(self, prompt: str | Sequence[int], suffix: str | None = None, new_tokens: int = 1, seed: int = 0) -> Reading:
        """A prompt as this model reads it: token ids as they are, a text as its objective asks. With `suffix` the model is to
        write what stands between the two. UserError if it cannot."""
        if not self.continues or self.way is None:
            raise UserError(f"the model {self.name!r} {self._why_not()}")
        if not isinstance(prompt, str):
            if self.source:
                a = ask(self.architecture, self.tokenizer, self.objective, [""], new_tokens, seed)
                assert a.decoder is not None
                return Reading(a.decoder.tokens[0], np.array(prompt, np.int32), 0)
            return Reading(np.array(prompt, np.int32), None, len(prompt))
        if suffix is not None and not self.infills:
            raise UserError(f"the model {self.name!r} was not trained to fill a gap in a text: leave out suffix")
        if self.architecture == "decoder" and not self.way.noised:
            # As `ask` does it, but with every space and line of the prompt.
            parts = [self.tokenizer.encode(part) for part in ([prompt] if suffix is None else [prompt, suffix])]
            rendered = self.way.render(parts, self.tokenizer, new_tokens, np.random.default_rng(seed))
            ids = list(itertools.chain(self.begin, *rendered))
            if not ids:
                raise UserError("the prompt is empty, and the tokenizer has no token to begin a text with: give a text")
            return Reading(np.array(ids, np.int32), None, len(ids) - len(self.begin))
        text = prompt if suffix is None else prompt + MASK + suffix
        a = ask(self.architecture, self.tokenizer, self.objective, [text], new_tokens, seed)
        assert a.decoder is not None
        tokens = a.decoder.tokens[0]
        return Reading(tokens, a.encoder.tokens[0] if a.encoder is not None else None, 0)

    def _why_not(self) -> str:
        """Why a model does not continue texts here, and what to do."""
        if self.way and (self.way.fills or self.way.at_once or self.way.blocks):  # by `lm.generation.samples`
            return "writes a text by a program that is compiled for its length: python -m lm.generate does that"
        return "continues no text: take /v1/fill, /v1/score or /v1/embeddings"

    def in_order(self) -> Scorer:
        """The scorer, if the model reads prompts from left to right. UserError if their tokens have no probability."""
        if isinstance(self.scorer, str) or not self.scorer.in_order:
            raise UserError(f"the model {self.name!r} does not read a prompt from left to right: leave out echo or logprobs")
        return self.scorer

    @lru_cache(maxsize=1 << 16)  # noqa: B019  as long as the server
    def token_text(self, token: int) -> str:
        """A token's own text, "bytes:\\\\xe2" for a part of a character; of a special token its name."""
        pieces = self.tokenizer.piece_bytes
        if token >= len(pieces):
            return f"<{token}>"
        if token < len(self.tokenizer.special) and self.tokenizer.special[token]:
            return self.tokenizer.piece(token)
        try:
            return pieces[token].decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in pieces[token])
