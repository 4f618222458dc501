"""What requests may hold. A field that is not listed is refused, because leaving it out would change what is meant; those in
HARMLESS are accounts and caches of a service that this is not, and are left out."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

import pydantic
from pydantic import BaseModel, ConfigDict, Field

from lm.config import Sampling, resolve
from lm.errors import UserError, nearest
from lm.serving.errors import ApiError

HARMLESS = {
    *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"),
    *("parallel_tool_calls", "verbosity"),
}
MOST_STOPS = 16
SAMPLING = {  # fields of a request that `Sampling` calls otherwise, or the same
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "typical_p": "typical_p",
    "repetition_penalty": "repetition",
    "frequency_penalty": "frequency",
    "presence_penalty": "presence",
}

Text = Annotated[str, Field(min_length=1)]
Several = Annotated[int, Field(ge=1, le=128)]


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    model: str | None = None  # None: the first one served


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # accepted; nothing is obfuscated


class Drawn(Body):
    """How tokens are drawn, and how many texts are wanted."""

    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    seed: int | None = None
    logit_bias: dict[str, Annotated[float, Field(ge=-100, le=100)]] | None = None
    stop: Text | Annotated[list[Text], Field(max_length=MOST_STOPS)] | None = None
    n: Several | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def sampling(self, seed: int) -> Sampling:
        """`seed` is taken where the request has none."""
        given = {ours: value for theirs, ours in SAMPLING.items() if (value := getattr(self, theirs)) is not None}
        if 0 < given.get("temperature", 1.0) < 1e-3:
            text = f"temperature={given['temperature']:g} is too small: give 0, or 0.001 or more"
            raise ApiError(400, text, param="temperature")
        theirs = {ours: name for name, ours in SAMPLING.items()}
        try:
            return resolve.build(Sampling, given | {"seed": (seed if self.seed is None else self.seed) % 2**32})
        except UserError as error:
            name = str(error).partition("=")[0]
            raise ApiError(400, str(error), param=theirs.get(name)) from None

    def bias(self, vocab_size: int) -> dict[int, float]:
        """Token -> what is added to its logit."""
        out = {}
        for token, value in (self.logit_bias or {}).items():
            if not token.isascii() or not token.isdecimal() or len(token) > 9 or int(token) >= vocab_size:
                cure = f"give token ids from 0 to {vocab_size - 1}"
                raise ApiError(400, f"logit_bias has {token[:40]!r}, which is no token: {cure}", param="logit_bias")
            out[int(token)] = float(value)
        return out


class Completion(Drawn):
    prompt: Any  # a text, token ids, or a list of either: see `lm.serving.completions`
    suffix: str | None = None
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0)] | None = None
    best_of: int | None = None


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_call_id: str | None = None
    refusal: str | None = None  # of an assistant's message that a client sends back

    def plain(self) -> dict[str, Any]:
        """For a template: a dict with the text in one piece, without the fields that are not set."""
        content = "".join(part.text for part in self.content) if isinstance(self.content, list) else self.content
        given = {"content": content, "name": self.name, "tool_calls": self.tool_calls, "tool_call_id": self.tool_call_id}
        role = "system" if self.role == "developer" else self.role
        return {"role": role} | {name: value for name, value in given.items() if value is not None}


class Function(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None  # answers always follow the schema


class Tool(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["function"]
    function: Function


class Chosen(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    name: str


class ToolChoice(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["function"]
    function: Chosen


class Schema(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, populate_by_name=True)
    name: str | None = None
    description: str | None = None
    wanted: Annotated[dict[str, Any], Field(alias="schema")]
    strict: bool | None = None


class ResponseFormat(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    type: Literal["text", "json_object", "json_schema"]
    json_schema: Schema | None = None


class Chat(Drawn):
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0)] | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=64)] | None = None
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None

    @property
    def has_grammar(self) -> bool:
        """Whether a grammar may have to be compiled for the answer."""
        return bool(self.tools) or self.response_format is not None


Texts = Text | Annotated[list[Text], Field(min_length=1, max_length=512)]


class Embeddings(Body):
    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = None


class Score(Body):
    input: Texts


class Fill(Body):
    text: Text
    top: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=100)] | None = None
    seed: int | None = None


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    text: Text
    score: float | None = None  # of a recogniser, with by="log_prob"


class Rerank(Body):
    query: str | None = None
    documents: Annotated[list[Text | Document], Field(min_length=1, max_length=512)]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool | None = None
    by: Literal["cosine", "log_prob"] | None = None
    weight: Annotated[float, Field(ge=0)] | None = None


class Inspect(Body):
    text: Text
    layer: Annotated[int, Field(ge=0)] | None = None
    top: Annotated[int, Field(ge=1)] | None = None


B = TypeVar("B", bound=Body)


def read(kind: type[B], given: Any) -> B:
    """The request of this kind in parsed JSON. ApiError with the field that is wrong, and why."""
    if not isinstance(given, Mapping):
        raise ApiError(400, "the body must be a JSON object")
    try:
        return kind.model_validate({name: value for name, value in given.items() if name not in HARMLESS})
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = kind.model_fields if len(first["loc"]) == 1 else ()
            near = nearest(str(first["loc"][-1]), known) if known else ""
            raise ApiError(400, f"the field {where[:100]!r} is not known here{near[:400]}", param=where[:100]) from None
        raise ApiError(400, f"{where[:100]}: {first['msg'][:300]}", param=where[:100]) from None
