"""/v1/chat/completions: conversations, answers in JSON, calls of tools.

A call of a tool is a text `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, which the grammar of a request makes the
model write. With tool_choice "auto" it writes such a call or any other text; with "required", or the name of a function, a
call. Its arguments follow the function's schema.
"""

import json
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lm.errors import UserError
from lm.serving import completions
from lm.serving.completions import Place, Usage
from lm.serving.errors import ApiError
from lm.serving.schemas import Chat, ToolChoice
from lm.serving.served import Reading, Served
from lm.serving.worker import Ask, Ticket

BEGIN, END = "<tool_call>", "</tool_call>"
TOLD = (
    f"You may call functions. To call one, answer with nothing but {BEGIN}"
    '{"name": NAME, "arguments": {...}}' + f"{END}. The functions:\n"
)
NO_CHAT = "the model {!r} is no chat model, since it has no template for conversations: take /v1/completions"


@dataclass
class Plan:
    served: Served
    body: Chat
    ask: Ask
    calls: bool  # the answer may be a call
    usage: Usage
    name: str = field(default_factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    made: int = field(default_factory=lambda: int(time.time()))

    def logprobs(self, places: list[Place]) -> dict[str, Any] | None:
        if not self.body.logprobs:
            return None
        top, ends = self.body.top_logprobs or 0, self.served.ends
        return {"content": [self._token(p) | {"top_logprobs": self._top(p, top)} for p in places if p.token not in ends]}

    def _top(self, place: Place, top: int) -> list[dict[str, Any]]:
        return [self._token(Place(token, log_prob)) for token, log_prob in place.top[:top]]

    def _token(self, place: Place) -> dict[str, Any]:
        text, pieces = self.served.token_text(place.token), self.served.tokenizer.piece_bytes
        data = pieces[place.token] if place.token < len(pieces) else b""
        return {"token": text, "logprob": place.log_prob, "bytes": list(data)}

    def body_of(self, kind: str, choices: list[dict[str, Any]], usage: Usage | None) -> dict[str, Any]:
        out = {"id": self.name, "object": kind, "created": self.made, "model": self.served.name, "choices": choices}
        return out if usage is None else out | {"usage": usage.body()}


def plan(served: Served, body: Chat, *, most: int) -> Plan:
    """ApiError for what cannot be asked. `most`: new tokens of a text."""
    if served.chat is None or not served.continues:
        raise ApiError(400, NO_CHAT.format(served.name), param="model")
    if body.top_logprobs is not None and (not body.logprobs or body.top_logprobs > served.top):
        raise ApiError(400, f"top_logprobs goes with logprobs=true, and is at most {served.top}", param="top_logprobs")
    if body.max_tokens is not None and body.max_completion_tokens not in (None, body.max_tokens):
        raise ApiError(400, "max_tokens and max_completion_tokens differ: leave out one", param="max_tokens")
    constraint, calls = _constraint(served, body)
    reading = Reading(_ids(served, body), None, 0)
    asked = body.max_completion_tokens or body.max_tokens
    tokens = asked or max(1, min(most, served.length - len(reading.tokens)))
    ask = completions.ask(served, body, reading, tokens, secrets.randbits(32), most=most, constraint=constraint)
    return Plan(served, body, ask, calls, Usage(len(reading.tokens)))


def _ids(served: Served, body: Chat) -> Any:
    """int32 [n]: the conversation as the model reads it. Where its template knows no tools, the system's message tells of
    them."""
    messages = [_with_arguments(message.plain()) for message in body.messages]
    tools = [tool.model_dump(exclude_none=True, exclude={"function": {"strict"}}) for tool in body.tools or ()]
    if body.tool_choice == "none":
        tools = []
    if tools and not any("tools" in text for text in getattr(served.chat, "templates", {}).values()):
        told = TOLD + "\n".join(json.dumps(tool["function"], ensure_ascii=False) for tool in tools)
        system = messages[0]["role"] == "system"
        told = f"{messages[0].get('content', '')}\n\n{told}" if system else told
        messages, tools = [{"role": "system", "content": told}, *messages[int(system) :]], []
    return served.chat.ids(messages, tools=tools or None)


def _with_arguments(message: dict[str, Any]) -> dict[str, Any]:
    """Templates take the arguments of a call as an object, and clients send them as a text."""
    calls = []
    for call in message.get("tool_calls", ()):
        function = call.get("function")
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise ApiError(400, "a call of a tool has no function with a name", param="messages")
        try:
            arguments = json.loads(function.get("arguments") or "{}")
        except (TypeError, ValueError, RecursionError):
            raise ApiError(400, "the arguments of a tool's call are not JSON", param="messages") from None
        calls.append({"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return message | ({"tool_calls": calls} if calls else {})


def _constraint(served: Served, body: Chat) -> tuple[Any, bool]:
    """The grammar of the answer, if it has one, and whether the answer may be a call of a tool."""
    form, choice = body.response_format, body.tool_choice
    if choice not in (None, "none") and not body.tools:
        raise ApiError(400, "tool_choice is given without tools", param="tool_choice")
    tools = [tool.function for tool in body.tools or ()] if choice != "none" else []
    if isinstance(choice, ToolChoice):
        tools = [function for function in tools if function.name == choice.function.name]
        if not tools:
            raise ApiError(400, f"tool_choice names {choice.function.name!r}, and no tool has this name", param="tool_choice")
    wants_json = form is not None and form.type != "text"
    if tools and wants_json:
        raise ApiError(400, "response_format and tools cannot both be followed: leave out one", param="response_format")
    try:
        if tools:
            closed = {"type": "object", "additionalProperties": False}
            of = lambda f: {"name": {"const": f.name}, "arguments": closed | (f.parameters or {})}
            call = closed | {"required": ["name", "arguments"]}
            schema: dict[str, Any] = {"anyOf": [call | {"properties": of(function)} for function in tools]}
            schema["x-guidance"] = {"whitespace_flexible": False}
            start = "call" if choice == "required" or isinstance(choice, ToolChoice) else "call | text"
            rules = (
                f'start: {start}\ncall: "{BEGIN}" json "{END}"\njson: %json {json.dumps(schema)}\ntext: "" | /[^<](.|\\n)*/\n'
            )
            return served.grammars.lark(rules), True
        if not wants_json or form is None:
            return None, False
        if form.type == "json_object":
            return served.grammars.json_object(), False
        if form.json_schema is None:
            raise ApiError(400, "response_format has type json_schema and no json_schema", param="response_format")
        return served.grammars.json_schema(form.json_schema.wanted), False
    except UserError as error:
        raise ApiError(400, str(error), param="tools" if tools else "response_format") from None


def _calls(text: str) -> list[dict[str, Any]] | None:
    """The call that a complete text is, as OpenAI has it; None if it is none."""
    if not text.startswith(BEGIN) or not text.endswith(END):
        return None
    call = json.loads(text[len(BEGIN) : -len(END)])
    function = {"name": call["name"], "arguments": json.dumps(call["arguments"], ensure_ascii=False)}
    return [{"id": f"call_{secrets.token_hex(12)}", "type": "function", "function": function}]


async def whole(plan: Plan, ticket: Ticket) -> tuple[dict[str, Any], Usage]:
    """The answer at once."""
    count = plan.body.n or 1
    texts, ends = [""] * count, ["length"] * count
    places: list[list[Place]] = [[] for _ in range(count)]
    async for piece in ticket:
        texts[piece.sample] += piece.text
        places[piece.sample] += completions.written(piece.tokens)
        plan.usage.written += len(piece.tokens)
        ends[piece.sample] = piece.finish or ends[piece.sample]
    choices = []
    for i, text in enumerate(texts):
        calls = _calls(text) if plan.calls and ends[i] == "stop" else None
        message: dict[str, Any] = {"role": "assistant", "content": None if calls else text, "refusal": None}
        message |= {"tool_calls": calls} if calls else {}
        finish = "tool_calls" if calls else ends[i]
        choices.append({"index": i, "message": message, "logprobs": plan.logprobs(places[i]), "finish_reason": finish})
    return plan.body_of("chat.completion", choices, plan.usage), plan.usage


async def parts(plan: Plan, ticket: Ticket) -> AsyncIterator[dict[str, Any]]:
    """The answer in chunks, as it is written. What may be a call waits for its end."""
    held: dict[int, tuple[str, list[Place]]] = {}

    def chunk(sample: int, delta: dict[str, Any], places: list[Place], finish: str | None) -> dict[str, Any]:
        choice = {"index": sample, "delta": delta, "logprobs": plan.logprobs(places), "finish_reason": finish}
        return plan.body_of("chat.completion.chunk", [choice], None)

    for sample in range(plan.body.n or 1):
        yield chunk(sample, {"role": "assistant", "content": ""}, [], None)
    async for piece in ticket:
        plan.usage.written += len(piece.tokens)
        text, places = held.pop(piece.sample, ("", []))
        text += piece.text
        places = places + completions.written(piece.tokens) if plan.body.logprobs else []
        if plan.calls and text and (BEGIN.startswith(text) or text.startswith(BEGIN)):
            if not piece.finish:
                held[piece.sample] = text, places
                continue
            if piece.finish == "stop" and (calls := _calls(text)):
                delta = {"tool_calls": [call | {"index": i} for i, call in enumerate(calls)]}
                yield chunk(piece.sample, delta, places, None)
                yield chunk(piece.sample, {}, [], "tool_calls")
                continue
        if text or places:
            yield chunk(piece.sample, {"content": text}, places, None)
        if piece.finish:
            yield chunk(piece.sample, {}, [], piece.finish)
    options = plan.body.stream_options
    if options and options.include_usage:
        yield plan.body_of("chat.completion.chunk", [], plan.usage)
