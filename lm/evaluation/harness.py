"""A saved model for the Language Model Evaluation Harness, `lm_eval`, whatever its architecture.

  lm_eval --model lm --model_args path=runs/quickstart --include_path lm/evaluation/tasks --tasks sotu_cloze
  lm_eval --model lm --model_args path=D,max_length=1024 --batch_size 32 --tasks lambada_openai
  lm_eval --model lm --model_args path=D --tasks T --apply_chat_template --fewshot_as_multiturn

A decoder gives log-probabilities from left to right, an encoder-decoder those of the answer that its objective asks for. A
masked encoder gives pseudo-log-likelihoods, each token given all others and the later tokens of its word hidden (arXiv
2305.10588): they rank answers and are no likelihoods, which the log and the results say (`likelihood`: false).
"""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from lm import config, saved, startup, untrusted
from lm.config import Asked, resolve
from lm.data import chat
from lm.data.tokenizer import Tokenizer
from lm.data.tokenizer_json import HuggingFace
from lm.errors import UserError, nearest
from lm.evaluation import request_scores
from lm.evaluation.span_scores import check_head
from lm.evaluation.text_scores import kind_of, windows
from lm.generation.engine import Request
from lm.generation.writer import Writer
from lm.models.positions import learned
from lm.models.transformer import Transformer
from lm.objectives import of_texts, span_prompts, text_prompt, usual
from lm.objectives.mixture import first_part
from lm.objectives.prompts import MASK, Span, examples, join

log = logging.getLogger(__name__)

LENGTH = 2048  # tokens that a model reads if nothing says how many, as the harness's own models
POSITIONS = ("n_positions", "max_position_embeddings", "n_ctx")  # where a config.json says so
ADDED = 8  # tokens that an objective puts around what is asked for, at most
NEW_TOKENS = 256  # written for a request that does not say how many, as the harness's own models do
SAMPLING = {  # names of transformers' settings -> ours
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repetition",
    "num_beams": "beams",
    "length_penalty": "length_penalty",
    "seed": "seed",
}


class Harness(TemplateLM):
    """The model in the folder `path`, a run's workdir or a converted model.

    max_length: tokens that it reads; default: what the run was trained on, or what its config.json says
    add_bos_token: whether a text begins with bos; default: in a run yes, otherwise as the tokenizer's file says
    device: is not used; jax chooses, or JAX_PLATFORMS
    objective: how a converted model is asked, such as "prefix" of an encoder-decoder; default: as is usual for its architecture
    """

    tokenizer: Any = None

    def __init__(
        self,
        path: str,
        *,
        batch_size: int | str | None = None,
        max_batch_size: int | None = None,
        device: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = NEW_TOKENS,
        add_bos_token: bool | None = None,
        objective: str | config.Objective | None = None,
    ) -> None:
        super().__init__()
        startup.after_jax()
        self._source = source = saved.open(path, name="path")
        check_head(source)
        self.architecture, self.tokenizer = source.model.architecture, source.tokenizer()
        self.objective = _objective(source, objective)
        self.kind = kind_of(self.architecture, self.objective)
        self.way = span_prompts(self.architecture, self.objective)[self.kind]
        self.backend = "seq2seq" if self.architecture == "encoder_decoder" else "causal"
        self.max_length, self.max_gen_toks = max_length or _length(source), max_gen_toks
        self.begins = _begins(source, self.tokenizer) if add_bos_token is None else bool(add_bos_token)
        self.batch_size = 32 if batch_size in (None, "auto") else int(batch_size)
        eos = self.tokenizer.eos_id
        self._ends = [eos] if self.architecture == "encoder" and eos is not None else []
        letter = join(np.flatnonzero(of_texts(self.tokenizer, source.model.vocab_size))[:1])
        self._most = self.max_length - self._longest(Span(letter, letter, join(self._ends), 0)) + 1  # tokens of a target
        self._chat: chat.Chat | None = None  # once conversations are asked for
        self.truncated = 0  # contexts whose beginning was cut off
        self._model, self._params = Transformer(source.model), source.params(device=jax.local_devices()[0])
        if not self.way.normalised:
            log.warning("%s: scores are pseudo-log-likelihoods, which rank answers and are no likelihoods", path)

    def get_model_info(self) -> dict[str, Any]:
        """What the harness writes beside its results."""
        return {
            "architecture": self.architecture,
            "objective": config.kind_of(type(self.objective)),
            "score": self.kind,
            "likelihood": self.way.normalised,
            "note": self.way.note,
            "max_length": self.max_length,
            "add_bos_token": self.begins,
            "truncated": self.truncated,
        }

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.fingerprint

    # ------------------------------------------------------------------------------------------------------------ chats

    def apply_chat_template(self, chat_history: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True) -> str:
        """The conversation as the model reads it, with the names of special tokens, which stand for these from now on. Without
        `add_generation_prompt` its last message is continued. As the harness's own models it leaves out what the system says
        where the template refuses that."""
        talk = self._talk()
        try:
            return talk.text(chat_history, begun=add_generation_prompt)
        except UserError:
            rest = [message for message in chat_history if message["role"] != "system"]
            if len(rest) == len(chat_history):
                raise
            log.warning("the chat template refuses what the system says, which is left out")
            return talk.text(rest, begun=add_generation_prompt)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """What the harness notes of the template; "" where none is asked for."""
        if chat_template is False:
            return ""
        talk = self._talk()
        if isinstance(chat_template, str) and chat_template != "default":
            raise UserError(f"--apply_chat_template={chat_template}: give no name, the model's default template is taken")
        return talk.template.texts["default"] if isinstance(talk, chat.Templated) else "the turns of lm.data.render"

    def _talk(self) -> chat.Chat:
        if self._chat is None:
            self._chat = chat.of(self._source)
        return self._chat

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.require("eos")

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text's first token: bos, or eos where there is none."""
        return self.eot_token_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id

    # ---------------------------------------------------------------------------------------------------------- tokens

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The text's tokens, with bos before them if texts begin so or this one begins with its name, but never twice."""
        bos = self.tokenizer.bos_id
        named = bos is not None and string.startswith(self.tokenizer.piece(bos))
        encode = self._chat.encode if self._chat else self.tokenizer.encode
        ids = encode(string.removeprefix(self.tokenizer.piece(bos)) if named else string).tolist()
        first = bos is not None and add_special_tokens is not False and (self.begins or named)
        return [bos, *ids] if first else ids

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Tokens of the two as one text, cut where the context's end. White space at its end belongs to the continuation. Where
        a token reaches from one into the other and nothing is left behind the cut, the continuation is encoded by itself."""
        before, after = super()._encode_pair(context, continuation)
        return before, after or self.tok_encode(continuation, add_special_tokens=False)

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        if context:
            return self._encode_pair(context, continuation)
        after = self.tok_encode(continuation, add_special_tokens=False)
        twice = after[:1] == [self.prefix_token_id]
        return (after[:1], after[1:]) if twice else ([self.prefix_token_id], after)

    def _spans(self, context: Sequence[int], target: Sequence[int]) -> tuple[list[Span], bool]:
        """What is asked for, and whether the context's beginning is cut off for a row to fit. A target that does not fit by
        itself is asked for in windows, of which the first sees the context's last token."""
        if len(target) > self._most:
            return self._windows(target, before=context), True
        span = Span(join(context), join(target), join(self._ends), 0)
        cut = max(0, self._longest(span) - self.max_length) if len(context) + len(target) + ADDED > self.max_length else 0
        return [replace(span, left=span.left[cut:])], cut > 0

    def _longest(self, span: Span) -> int:
        """Tokens of the longest row that a span is asked with."""
        rows = examples(self.way, self.kind, span, self.tokenizer) if len(span.target) else []
        return max((len(s.tokens) for row in rows for s in (row.encoder, row.decoder) if s is not None), default=0)

    def _windows(self, ids: Sequence[int], *, before: Sequence[int]) -> list[Span]:
        """All of the ids, each once, in the harness's windows; of a masked encoder each has as much text on either side as
        there is room for."""
        if self.kind == "pll" and self.architecture == "encoder":
            inside = slice(len(before), len(before) + len(ids))
            how: dict[str, Any] = dict(length=self.max_length, stride=self.max_length // 2, both=True)
            return windows(join(before, ids, self._ends), inside, **how) if ids else []
        settings: dict[str, Any] = dict(prefix_token=before[-1], max_seq_len=self._most, context_len=1)
        pairs = map(make_disjoint_window, get_rolling_token_windows(list(ids), **settings))
        return [span for pair in pairs for span in self._spans(*pair)[0]]

    # ---------------------------------------------------------------------------------------------------------- scores

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(nats, whether each token is the likeliest) of each continuation; (0.0, True) of an empty one."""
        found = self._scored([self._pair(*request.args) for request in requests])
        for request, one in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood", request.args, one)
        return found

    def _loglikelihood_tokens(self, requests: list[Any], **_: Any) -> list[tuple[float, bool]]:
        return self._scored([(context, continuation) for _, context, continuation in requests])

    def _scored(self, pairs: Sequence[tuple[list[int], list[int]]]) -> list[tuple[float, bool]]:
        asked = [self._spans(*pair) for pair in pairs]
        self._say_cut(sum(cut for _, cut in asked), len(pairs))
        return self._ask([spans for spans, _ in asked])

    def _say_cut(self, cut: int, count: int) -> None:
        self.truncated += cut
        if cut:
            text = "%d of %d contexts are too long for the %d tokens that the model reads: their beginning is cut off"
            log.warning(text, cut, count, self.max_length)

    def _ask(self, asked: Sequence[list[Span]]) -> list[tuple[float, bool]]:
        """Of each list of spans the sum, and whether all are the likeliest; what has no target is certain."""
        spans = [(number, span) for number, some in enumerate(asked) for span in some if len(span.target)]
        nats, likeliest = [0.0] * len(asked), [True] * len(asked)
        if spans:
            how: dict[str, Any] = dict(kind=self.kind, batch_size=self.batch_size, cure="lower max_length")
            model = self._model, self._params, self.objective, self.tokenizer
            for (number, _), value, top in zip(spans, *request_scores.score(*model, [s for _, s in spans], **how), strict=True):
                nats[number] += float(value)
                likeliest[number] &= bool(top)
        return list(zip(nats, likeliest, strict=True))

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
        """Nats of whole texts, each token once: bos is read once, before the first token."""
        before = [self.prefix_token_id] if self.kind != "pll" or self.tokenizer.bos_id is not None else []
        ids = [self.tok_encode(request.args[0], add_special_tokens=False) for request in requests]
        found = [nats for nats, _ in self._ask([self._windows(some, before=before) for some in ids])]
        for request, one in zip(requests, found, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, one)
        return found

    # ------------------------------------------------------------------------------------------------------------ texts

    def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
        """What the model writes behind each context, up to the first of its stop strings.

        Requests with the same arguments, which the harness makes for `repeats`, are different samples."""
        seen: Counter[str] = Counter()
        asked = []
        for request in requests:
            context, settings = request.args
            asked.append(_asked(context, settings, self.max_gen_toks, repeat=seen[repr(request.args)]))
            seen[repr(request.args)] += 1
        writer = _HarnessWriter(self, slots=self.batch_size)
        texts = {id(sample.asked): _cut(sample.text, sample.asked.stop) for sample in writer.write(asked)}
        self._say_cut(writer.cut, len(asked))
        found = [texts[id(one)] for one in asked]
        for request, text in zip(requests, found, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return found


class _Ending:
    """A tokenizer whose texts end where the turn of a conversation does."""

    def __init__(self, tokenizer: Any, end: int) -> None:
        self._tokenizer, self.eos_id = tokenizer, end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)


class _HarnessWriter(Writer):
    """Reads a prompt with or without bos as the harness's model does, and cuts off its beginning where it is too long. A model
    that answers behind sentinels is given one at the end of the prompt."""

    def __init__(self, lm: Harness, *, slots: int) -> None:
        tokenizer = _Ending(lm.tokenizer, lm._chat.end) if lm._chat else lm.tokenizer
        super().__init__(lm._model, lm._params, tokenizer, lm.objective, slots=slots)
        self.lm, self.cut = lm, 0
        self.plain = isinstance(self.objective, config.Causal)
        if lm._chat and not self.plain:
            kind = config.kind_of(type(self.objective))
            raise UserError(f"--apply_chat_template: a model of objective={kind} answers no conversation: leave it out")
        self.mark = MASK if text_prompt(first_part(self.objective, self.tokenizer)[0]).sentinels else ""

    def _request(self, one: Asked) -> tuple[Request, tuple[int, ...], bool]:
        if self.plain:
            ids = self.lm.tok_encode(one.prompt) or [self.lm.prefix_token_id]
            request, may_write, prefix = Request(join(ids), one.new_tokens, one, None, one.samples), (), False
        else:
            request, may_write, prefix = super()._request(replace(one, prompt=one.prompt + self.mark))
        both = request.encoder is not None
        room = self.lm.max_length - (0 if both else one.new_tokens)
        if room < 1:
            raise UserError(
                f"max_gen_toks={one.new_tokens} leaves no room in max_length={self.lm.max_length}: lower it, or raise that"
            )
        read: Any = request.encoder if both else request.prompt  # ids, as `ask` gives them
        if not self.plain and not self.lm.begins and read[0] == self.tokenizer.bos_id:
            read = read[1:]
        self.cut += len(read) > room
        request = replace(request, **{"encoder" if both else "prompt": read[-room:]})
        return request, may_write, prefix


def _asked(context: str, given: Mapping[str, Any], new_tokens: int, *, repeat: int) -> Asked:
    """The request as the engine's; UserError for a setting that it does not know."""
    settings: dict[str, Any] = dict(normalize_gen_kwargs(dict(given), new_tokens))
    until, new, sampled = (settings.pop(name) for name in ("until", "max_gen_toks", "do_sample"))
    if unknown := sorted(settings.keys() - SAMPLING.keys()):
        raise UserError(f"generation_kwargs: {unknown[0]!r} is not known here{nearest(unknown[0], SAMPLING)}")
    own = {SAMPLING[name]: value for name, value in settings.items()}
    if not sampled:
        own = {name: own[name] for name in ("repetition", "beams", "length_penalty") if name in own}
        own |= {} if own.get("beams", 1) > 1 else {"temperature": 0.0}
    if own.get("beams") == 1:
        own.pop("beams")
    stop = [text for text in ([until] if isinstance(until, str) else until) if text]
    own |= {"seed": own.get("seed", 0) + repeat} if sampled else {}
    return resolve.build(Asked, own | {"prompt": context, "new_tokens": new, "stop": stop}, "generation_kwargs")


def _cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first of the stop strings."""
    return text[: min((at for s in stop if (at := text.find(s)) >= 0), default=len(text))]


def _objective(source: saved.Saved, given: str | config.Objective | None) -> config.Objective:
    if given is None:
        return source.run.objective if source.run else usual(source.model.architecture)
    return resolve.build(config.Objective, {"kind": given}, "objective") if isinstance(given, str) else given


def _length(source: saved.Saved) -> int:
    """Tokens that each of the model's stacks reads at once."""
    stacks = [name for name in ("encoder", "decoder") if name in source.model.architecture]
    if source.run:
        rows = [getattr(source.run.data, f"{name}_length") for name in stacks]
    else:
        settings = source.folder / "hf" / "config.json"
        found = untrusted.parse_json(settings.read_bytes(), settings) if settings.exists() else {}
        rows = [next((found[name] for name in POSITIONS if name in found), LENGTH)]
    return min(size for size in (*rows, *(learned(source.model, name) for name in stacks)) if size)


def _begins(source: saved.Saved, tokenizer: Tokenizer) -> bool:
    """Whether a text begins with bos: in training here it does; of a tokenizer.json its post-processor says so."""
    if tokenizer.bos_id is None:
        return False
    if source.run or source.model.architecture == "encoder" or not isinstance(tokenizer, HuggingFace):
        return True
    import tokenizers

    return tokenizers.Tokenizer.from_str(tokenizer.proto.decode()).encode("a").ids[0] == tokenizer.bos_id
