"""`python -m lm.serve` on real runs: what it answers is what the engine, lm.score and lm.generate say, whoever else is there,
and nothing that a client does leaks a slot or compiles a program."""

import asyncio
import concurrent.futures
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx2 as httpx  # what the openai client uses
import numpy as np
import openai
import pytest

from experiments.serve import load
from lm import serve
from lm.config import Asked, Sampling
from lm.data import chat
from lm.errors import UserError
from lm.evaluation import text_scores
from lm.generation.engine import Engine, Request
from lm.generation.samples import fill_masks
from lm.generation.texts import Streamed
from lm.generation.writer import Writer
from lm.serving import metrics
from lm.serving.served import Served
from tests.e2e.running import Running

LENGTH = 64
TEXTS = ["abc de fa", "b", "fagh aab ccd e", "hij"]


@pytest.fixture(scope="module")
def start(runs):
    """Starts servers of runs, each once, and stops them all."""
    with contextlib.ExitStack() as stack:
        found = {}

        def one(name, *flags):
            if name not in found:
                found[name] = Running(runs / name, f"--length={LENGTH}", *flags)
                stack.callback(found[name].stop)
            return found[name]

        yield one


@pytest.fixture(scope="module")
def tiny(start):
    """A decoder. It is also given conversations, as if it were trained on them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Served, "_chat", staticmethod(lambda source: chat.Turns(source.tokenizer())))
        return start("decoder.causal")


@pytest.fixture(scope="module")
def bare(tiny):
    """What a bare engine writes for a request: sample -> its text, and why it ended."""
    model = tiny.model
    engine = Engine(
        *(model.model, model.params), slots=1, length=LENGTH, eos=model.ends, forbidden=_never(model), top=model.top
    )

    def write(prompt, tokens, sampling, samples=1, stop=()):
        ids = np.array([model.tokenizer.bos_id, *model.tokenizer.encode(prompt)], np.int32)
        engine.submit(Request(ids, tokens, sampling, samples=samples))
        texts = {i: Streamed(model.tokenizer, ids, stop) for i in range(samples)}
        ends = dict.fromkeys(texts, "length")
        for w in engine.run():
            text = texts[w.sample]
            if text.stopped is None:
                text.add([] if w.token in model.ends else [w.token])
                if w.last:
                    text.end()
                ends[w.sample] = "stop" if text.stopped is not None or w.token in model.ends else "length"
        return [(texts[i].text, ends[i]) for i in range(samples)]

    return write


def _never(model):
    never = np.ones(model.config.vocab_size, bool)
    never[: len(model.tokenizer.special)] = model.tokenizer.special
    never[list(model.ends)] = False
    return never


# ---------------------------------------------------------------------------------------------------------- completions


def test_each_text_is_the_bare_engines_among_others_and_in_a_stream(tiny, bare):
    drawn = dict(temperature=0.8, top_p=0.9, top_k=20, frequency_penalty=0.5, presence_penalty=0.1, repetition_penalty=1.1)
    sampling = dict(temperature=0.8, top_p=0.9, top_k=20, frequency=0.5, presence=0.1, repetition=1.1)
    asked = [
        dict(prompt=TEXTS[0], max_tokens=20, seed=3, n=2),
        dict(prompt=TEXTS[1], max_tokens=30, seed=4, stop=["c", "gh"]),
        dict(prompt=TEXTS[2], max_tokens=9, temperature=0),
        dict(prompt=TEXTS[3] + " ", max_tokens=25, seed=5, **drawn),
    ]
    ways = [Sampling(seed=3), Sampling(seed=4), Sampling(temperature=0.0), Sampling(seed=5, **sampling)]
    wanted = [
        bare(a["prompt"], a["max_tokens"], way, a.get("n", 1), a.get("stop", ())) for a, way in zip(asked, ways, strict=True)
    ]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        whole = list(pool.map(lambda a: tiny.complete(**a), asked))
        chunks = list(pool.map(lambda a: tiny.streamed(**a), asked))
    assert [[(c["text"], c["finish_reason"]) for c in choices] for choices in whole] == wanted
    for some, of in zip(chunks, wanted, strict=True):
        each = [chunk["choices"][0] for chunk in some]
        texts = ["".join(c["text"] for c in each if c["index"] == i) for i in range(len(of))]
        assert list(zip(texts, [_finish(each, i) for i in range(len(of))], strict=True)) == of
        assert not any("\ufffd" in c["text"] for c in each) or any("\ufffd" in text for text, _ in of)
    assert {end for of in wanted for _, end in of} == {"stop", "length"} and len({text for of in wanted for text, _ in of}) == 5
    assert tiny.idle()


def _finish(choices, index):
    (found,) = {c["finish_reason"] for c in choices if c["index"] == index} - {None}
    return found


def test_a_list_of_prompts_has_n_choices_for_each(tiny):
    ids = [[7, 390, 380], [300, 301]]
    some = tiny.complete(prompt=ids, max_tokens=5, n=2, seed=1)
    one = tiny.complete(prompt=ids[1], max_tokens=5, n=2, seed=1)
    assert [c["index"] for c in some] == [0, 1, 2, 3] and [c["text"] for c in some[2:]] == [c["text"] for c in one]
    texts = tiny.complete(prompt=TEXTS[:2], max_tokens=3, seed=1, echo=True)
    assert [c["text"].startswith(text) for c, text in zip(texts, TEXTS[:2], strict=True)] == [True, True]


def test_stop_strings_are_never_streamed_in_part(tiny, bare):
    whole = bare(TEXTS[0], 30, Sampling(seed=8))[0][0]
    stop = next(
        whole[i : i + 2] for i in range(8, len(whole)) if whole[i : i + 2].isprintable() and "\ufffd" not in whole[i : i + 2]
    )
    chunks = tiny.streamed(prompt=TEXTS[0], max_tokens=30, seed=8, stop=stop, logprobs=0)
    text = "".join(chunk["choices"][0]["text"] for chunk in chunks)
    assert text == whole[: whole.index(stop)] and chunks[-1]["choices"][0]["finish_reason"] == "stop"
    tokens = sum((chunk["choices"][0]["logprobs"]["tokens"] for chunk in chunks), [])
    assert stop in "".join(tokens) and stop not in "".join(tokens[:-1])  # no token behind the one that completes it


def test_bias_and_usage(tiny):
    allowed = tiny.model.tokenizer.encode("a")[-1]
    answer = tiny.post(
        "/v1/completions", prompt="abc", max_tokens=4, logit_bias={str(allowed): 100, str(tiny.model.ends[0]): -100}
    ).json()
    assert answer["choices"][0]["text"] == tiny.model.tokenizer.decode([allowed] * 4)
    prompt = 1 + len(tiny.model.tokenizer.encode("abc"))
    assert answer["usage"] == {"prompt_tokens": prompt, "completion_tokens": 4, "total_tokens": prompt + 4}
    chunks = tiny.streamed(prompt="abc", max_tokens=4, seed=1, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == [] and chunks[-1]["usage"]["total_tokens"] <= prompt + 4
    assert all("usage" not in chunk for chunk in chunks[:-1])


# ------------------------------------------------------------------------------------------------------ log-probabilities


def test_prompts_have_the_log_probabilities_of_lm_score(tiny):
    m = tiny.model
    wanted = text_scores.score(m.model, m.params, m.objective, m.tokenizer, TEXTS[::2], length=40, stride=20)
    for tokens in (0, 1):
        for choice, text, of in zip(
            tiny.complete(prompt=TEXTS[::2], max_tokens=tokens, echo=True, logprobs=2, temperature=0),
            TEXTS[::2],
            wanted,
            strict=True,
        ):
            found = choice["logprobs"]
            assert len({len(found[name]) for name in found}) == 1
            end = len(found["tokens"]) - tokens
            assert "".join(found["tokens"][:end]) == text == choice["text"][: len(text)]
            assert sum(found["token_logprobs"][:end]) == pytest.approx(-of.nats, abs=1e-4)
            at = [choice["text"][i:].startswith(t) for i, t in zip(found["text_offset"], found["tokens"], strict=True)]
            assert all(at[:end])
    data = tiny.post("/v1/score", input=TEXTS[::2]).json()["data"]
    assert [d["nats"] for d in data] == pytest.approx([w.nats for w in wanted], abs=1e-4)
    assert [d["bits_per_byte"] for d in data] == pytest.approx([w.bits_per_byte for w in wanted], abs=1e-4)


def test_the_harness_reads_scores_and_greedy_answers(tiny):
    """By the parser of `lm_eval --model local-completions`, of what it posts."""
    api = pytest.importorskip("lm_eval.models.openai_completions")
    encode = tiny.model.tokenizer.encode
    context = [tiny.model.tokenizer.bos_id, *encode("abc de").tolist()]
    likely = context
    for _ in range(3):
        (found,) = tiny.model.scorer.prompts([np.array([*likely, 7], np.int32)])
        likely = [*likely, int(found.top[-1, 0])]
    asked = [likely, context + encode(" gh ab").tolist()]
    answer = tiny.post(
        "/v1/completions", model="tiny", prompt=asked, max_tokens=1, logprobs=1, echo=True, temperature=0, seed=1
    )
    parsed = api.LocalCompletionsAPI.parse_logprobs(answer.json(), asked, [len(context)] * 2)
    assert [is_greedy for _, is_greedy in parsed] == [True, False]
    (found,) = tiny.model.scorer.prompts([np.array(likely, np.int32)])
    assert parsed[0][0] == pytest.approx(found.top_log_probs[-3:, 0].sum(), abs=1e-5)
    assert all(len(c["logprobs"]["tokens"]) == len(a) + 1 for c, a in zip(answer.json()["choices"], asked, strict=True))


# ------------------------------------------------------------------------------------------------------- the openai client


def test_the_openai_client(tiny):
    client = tiny.openai
    assert [model.id for model in client.models.list()] == ["tiny"] and client.models.retrieve("tiny").owned_by == "lm"
    given = dict(model="tiny", prompt="abc", max_tokens=6, seed=2)
    whole = client.completions.create(**given, logprobs=2, user="somebody")
    assert len(whole.choices[0].logprobs.token_logprobs) == whole.usage.completion_tokens
    text = "".join(chunk.choices[0].text for chunk in client.completions.create(**given, stream=True))
    assert text == whole.choices[0].text
    vectors = client.embeddings.create(model="tiny", input=["abc", "de fa"])  # in base64
    plain = tiny.post("/v1/embeddings", input=["abc", "de fa"]).json()["data"]
    for one, other in zip(vectors.data, plain, strict=True):
        assert np.allclose(one.embedding, other["embedding"], atol=1e-6) and np.linalg.norm(one.embedding) == pytest.approx(1)
    for body, error in (
        (dict(model="gpt", prompt="a"), openai.NotFoundError),
        (dict(model="tiny", prompt="a", max_tokens=999), openai.BadRequestError),
        (dict(model="tiny", prompt="a", extra_body={"beams": 3}), openai.BadRequestError),
    ):
        with pytest.raises(error) as raised:
            client.completions.create(**body)
        assert raised.value.body["type"] == "invalid_request_error" and raised.value.body["message"]


def test_conversations(tiny):
    client, said = (
        tiny.openai,
        [{"role": "system", "content": "ab"}, {"role": "user", "content": [{"type": "text", "text": "cd"}]}],
    )
    given = dict(model="tiny", messages=said, max_tokens=12, seed=4)
    answer = client.chat.completions.create(**given, logprobs=True, top_logprobs=3, n=2)
    assert len(answer.choices) == 2
    for choice in answer.choices:
        tokens = choice.logprobs.content
        said_in_bytes = bytes(b for t in tokens for b in t.bytes).decode(errors="ignore")
        assert said_in_bytes == choice.message.content.replace("\ufffd", "")
        assert all(len(t.top_logprobs) == 3 and max(o.logprob for o in t.top_logprobs) >= t.logprob for t in tokens)
        assert choice.finish_reason in ("stop", "length") and choice.message.role == "assistant"
    chunks = list(client.chat.completions.create(**given, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == answer.choices[0].message.content
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[-1].usage.prompt_tokens == answer.usage.prompt_tokens
    assert {c.choices[0].finish_reason for c in chunks[:-1]} == {None, answer.choices[0].finish_reason}


COLOURS = {"type": "object", "properties": {"c": {"enum": ["ab", "cd"]}}, "required": ["c"], "additionalProperties": False}
TOOL = {"type": "function", "function": {"name": "paint", "parameters": COLOURS}}


def test_answers_follow_a_schema(tiny):
    form = {"type": "json_schema", "json_schema": {"name": "colour", "schema": COLOURS}}
    given = dict(model="tiny", messages=[{"role": "user", "content": "a"}], max_tokens=50, seed=1)
    answer = tiny.openai.chat.completions.create(**given, response_format=form)
    assert json.loads(answer.choices[0].message.content)["c"] in ("ab", "cd") and answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "paint"}}])
def test_tools_are_called(tiny, choice):
    given = dict(
        model="tiny", messages=[{"role": "user", "content": "a"}], max_tokens=60, seed=1, tools=[TOOL], tool_choice=choice
    )
    with pytest.MonkeyPatch.context() as patch:  # the conversation with the tools' description is longer than a slot
        patch.setattr("lm.serving.talk.TOLD", "")
        patch.setattr("lm.serving.talk.BEGIN", "<t>")
        patch.setattr("lm.serving.talk.END", "</t>")
        patch.setattr("lm.serving.talk._ids", lambda served, body: np.array([1, 7], np.int32))
        answer = tiny.openai.chat.completions.create(**given).choices[0]
        chunks = list(tiny.openai.chat.completions.create(**given, stream=True))
    (call,) = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls" and answer.message.content is None and call.function.name == "paint"
    assert json.loads(call.function.arguments)["c"] in ("ab", "cd")
    deltas = [d for c in chunks for d in c.choices[0].delta.tool_calls or []]
    assert [d.function.arguments for d in deltas] == [call.function.arguments]
    assert chunks[-1].choices[0].finish_reason == "tool_calls" and not any(c.choices[0].delta.content for c in chunks)


# --------------------------------------------------------------------------------------- what goes wrong, and who is gone

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
MESSAGE = [{"role": "user", "content": "a"}]


@pytest.mark.parametrize(
    ("path", "body", "cause"),
    [
        (COMPLETIONS, b"{]", "the body is not valid JSON"),
        (COMPLETIONS, b"[" * 99_999, "nested too deeply"),
        (COMPLETIONS, b"\xff", "the body is not valid JSON"),
        (COMPLETIONS, b'{"prompt": "a", "prompt": "b"}', "appears twice"),
        (COMPLETIONS, b'{"prompt": "a", "temperature": NaN}', "not a JSON number"),
        (COMPLETIONS, b"[]", "the body must be a JSON object"),
        (COMPLETIONS, b'{"prompt": "\\ud800"}', "not UTF-8"),
        (COMPLETIONS, {}, "prompt: Field required"),
        (COMPLETIONS, {"prompt": "a", "temprature": 1}, "'temprature' is not known here; did you mean 'temperature'?"),
        (COMPLETIONS, {"prompt": "a", "temperature": "1"}, "temperature: Input should be a valid number"),
        (COMPLETIONS, {"prompt": "a", "temperature": -1}, "temperature: Input should be greater"),
        (COMPLETIONS, {"prompt": "a", "temperature": 1e-9}, "temperature=1e-09 is too small"),
        (COMPLETIONS, {"prompt": "a", "top_p": 0}, "top_p=0"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": True}, "max_tokens: "),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 64}, "more than the 64 of a text"),
        (COMPLETIONS, {"prompt": "abc " * 99, "max_tokens": 1}, "more than the 64 of a text"),
        (COMPLETIONS, {"prompt": "a", "max_tokens": 10**9}, "more than the 64 of a request"),
        (COMPLETIONS, {"prompt": "a", "n": 13}, "13 texts are asked for at once, and 12 may be"),
        (COMPLETIONS, {"prompt": "a", "n": 2, "best_of": 3}, "best_of=3"),
        (COMPLETIONS, {"prompt": "a", "logprobs": 6}, "logprobs=6 is too many: at most 5"),
        (COMPLETIONS, {"prompt": "a", "logit_bias": {"400": 1}}, "logit_bias has '400', which is no token"),
        (COMPLETIONS, {"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias has 'x'"),
        (COMPLETIONS, {"prompt": "a", "stop": [""]}, "stop"),
        (COMPLETIONS, {"prompt": "a", "suffix": "b"}, "was not trained to fill a gap in a text"),
        (COMPLETIONS, {"prompt": []}, "prompt must be a text"),
        (COMPLETIONS, {"prompt": [[]]}, "prompt 0 is neither a text nor a list of token ids"),
        (COMPLETIONS, {"prompt": [1, 400]}, "prompt 0 has token 400, and ids end at 399"),
        (COMPLETIONS, {"prompt": [1, "a"]}, "prompt 0 is neither"),
        (COMPLETIONS, {"prompt": "a", "model": "other"}, "there is no model 'other' here: take 'tiny'"),
        (CHAT, {"messages": []}, "messages: "),
        (CHAT, {"messages": [{"role": "wizard", "content": "a"}]}, "messages.0.role: "),
        (CHAT, {"messages": [{"role": "user"}]}, "messages[0]"),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
        (CHAT, {"messages": MESSAGE, "top_logprobs": 1}, "top_logprobs goes with logprobs=true"),
        (CHAT, {"messages": MESSAGE, "tool_choice": "required"}, "tool_choice is given without tools"),
        (CHAT, {"messages": MESSAGE, "functions": []}, "'functions' is not known here"),
        (
            CHAT,
            {"messages": MESSAGE, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "unknown"}}}},
            "the JSON schema",
        ),
        ("/v1/embeddings", {"input": [1, 2]}, "input"),
        ("/v1/embeddings", {"input": "a", "dimensions": 3}, "the vectors have 32 dimensions"),
        ("/v1/score", {"input": "b " * 9999}, None),
        ("/v1/score", {"input": ""}, "input"),
        ("/v1/fill", {"text": "a [MASK]"}, "was not trained to fill a gap"),
        ("/v1/rerank", {"documents": ["a"]}, "by=cosine takes a query"),
        ("/v1/inspect", {"text": "a", "layer": 2}, "layer=2: the model has layers 0 to 1"),
        ("/v1/inspect", {"text": "abc " * 99}, "can be looked at: shorten it"),
    ],
)
def test_mistakes_are_told(tiny, path, body, cause):
    headers = {"Content-Type": "application/json"}
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = tiny.http.post(path, content=data, headers=headers)
    if cause is None:
        assert answer.status_code == 200
        return
    error = answer.json()["error"]
    assert answer.status_code in (400, 404) and cause in error["message"] and set(error) == {"message", "type", "param", "code"}


def test_requests_that_are_too_large_or_of_another_kind(tiny):
    large = tiny.http.post(COMPLETIONS, content=b" " * (1 << 21), headers={"Content-Type": "application/json"})
    assert large.status_code == 413 and "more than 1,048,576 bytes" in large.json()["error"]["message"]

    def pieces():
        yield from [b" " * (1 << 19)] * 4

    counted = tiny.http.post(COMPLETIONS, content=pieces(), headers={"Content-Type": "application/json"})  # of no said length
    assert counted.status_code == 413
    assert tiny.http.post(COMPLETIONS, content=b"{}").status_code == 415
    assert tiny.http.get(COMPLETIONS).status_code == 405 and tiny.http.get("/v1/none").status_code == 404
    assert tiny.http.get("/health", headers={"Host": "evil.example"}).status_code == 403
    assert tiny.http.get("/health").json() == {"status": "ok"}


def test_a_full_queue_is_told(tiny):
    with contextlib.ExitStack() as stack:
        release = threading.Event()
        stack.callback(release.set)
        hold = asyncio.run_coroutine_threadsafe(tiny.worker.call(release.wait), tiny.worker._loop)
        for n in (6, 5):
            given = {"prompt": "a", "max_tokens": 40, "stream": True, "n": n}
            stack.enter_context(tiny.http.stream("POST", COMPLETIONS, json=given))
        refused = tiny.post(COMPLETIONS, prompt="a", max_tokens=1)
        assert refused.status_code == 429 and int(refused.headers["Retry-After"]) >= 1
        assert refused.json()["error"]["code"] == "queue_full"
        with pytest.raises(openai.RateLimitError):
            tiny.openai.embeddings.create(model="tiny", input="a")
        release.set()
        hold.result()
    assert tiny.idle() and tiny.post(COMPLETIONS, prompt="a", max_tokens=1).status_code == 200


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_is_gone_frees_its_slots(tiny, stream):
    written = tiny.server.metrics.tokens.labels("tiny", "out")._value.get
    release = threading.Event()
    hold = asyncio.run_coroutine_threadsafe(tiny.worker.call(release.wait), tiny.worker._loop)  # so that none has ended before
    connections = []
    for _ in range(5):
        connection = http.client.HTTPConnection("127.0.0.1", tiny.port)
        body = json.dumps({"prompt": "a", "max_tokens": 60, "stream": stream, "n": 2})
        connection.request("POST", COMPLETIONS, body, {"Content-Type": "application/json"})
        connections.append(connection)
    while tiny.worker.open < 11:
        time.sleep(0.01)
    before = written()
    for connection in connections:
        connection.sock.close()
    while tiny.worker.open > 1:
        time.sleep(0.01)
    release.set()
    hold.result()
    assert tiny.idle() and written() - before < 5 * 2 * 60
    assert len(tiny.complete(prompt="a", max_tokens=3, n=5, seed=1)) == 5


def test_a_failure_in_the_middle_leaks_nothing(tiny, bare, caplog):
    wanted = bare(TEXTS[0], 20, Sampling(seed=3))[0][0]
    for place in ("step", "add"):
        with pytest.MonkeyPatch.context() as patch:

            def fail(*_, **__):
                raise RuntimeError("no more memory")

            if place == "step":
                patch.setattr(tiny.worker.engine, "step", fail)
            else:
                patch.setattr(Streamed, "add", fail)
            answer = tiny.post(COMPLETIONS, prompt="a", max_tokens=20, n=2)
            assert answer.status_code == 500 and "memory" not in answer.text
            assert answer.json()["error"]["type"] == "server_error"
            error = tiny.streamed(prompt="a", max_tokens=20)[-1] if place == "add" else {"error": None}
            assert "error" in error
        assert tiny.idle() and tiny.worker.alive
        assert tiny.complete(prompt=TEXTS[0], max_tokens=20, seed=3)[0]["text"] == wanted


def test_a_request_has_its_time(tiny):
    release = threading.Event()
    hold = asyncio.run_coroutine_threadsafe(tiny.worker.call(release.wait), tiny.worker._loop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny.server, "seconds", 0.2)
        answer = tiny.post(COMPLETIONS, prompt="a", max_tokens=40)
        chunks = tiny.streamed(prompt="a", max_tokens=40)
    assert answer.status_code == 504 and answer.json()["error"]["code"] == chunks[-1]["error"]["code"] == "timeout"
    release.set()
    hold.result()
    assert tiny.idle()


def test_a_reader_that_does_not_read_holds_up_nobody(tiny):
    slow = http.client.HTTPConnection("127.0.0.1", tiny.port)
    body = json.dumps({"prompt": "a", "max_tokens": 60, "stream": True, "logprobs": 5, "n": 3})
    slow.request("POST", COMPLETIONS, body, {"Content-Type": "application/json"})
    assert len(tiny.complete(prompt="a", max_tokens=60, n=3, seed=1)) == 3 and tiny.idle()
    answer = slow.getresponse().read().decode()  # all of it was kept
    assert answer.endswith("data: [DONE]\n\n") and answer.count('"finish_reason": null') > 3
    slow.close()


def test_no_request_compiles_anything(tiny):
    """Runs last of those of one server: all others have been asked before, and so is every kind of request once more."""
    before = metrics.compilations()
    tiny.complete(prompt=[[7] * n for n in (1, 15, 16, 17, 33, 50)], max_tokens=2, echo=True, logprobs=5)
    tiny.complete(prompt="a", n=4, temperature=0.5, top_p=0.5, presence_penalty=1, seed=1)
    tiny.complete(prompt="a", temperature=0, stop="e", logit_bias={"200": 3})
    tiny.post("/v1/score", input=["abc " * n for n in (1, 5, 30)])
    tiny.post("/v1/embeddings", input=["abc " * n for n in (1, 2, 3, 4, 5, 9)])
    tiny.post("/v1/inspect", text="abc")
    form = {"type": "json_object"}
    tiny.post(CHAT, messages=MESSAGE, max_tokens=5, response_format=form)
    assert tiny.idle() and metrics.compilations() == before > 0
    text = tiny.http.get("/metrics").text
    assert f"lm_compilations {before:.1f}" in text and "lm_slots_busy" in text and 'path="/v1/score"' in text
    assert 'lm_tokens_total{direction="out",model="tiny"}' in text and "lm_first_token_seconds_count" in text


# ------------------------------------------------------------------------------------------------------------ other models


def test_an_encoder_fills_scores_and_embeds(start):
    encoder = start("encoder.masked", "--top=4")
    m = encoder.model
    answer = encoder.post("/v1/fill", text="abc [MASK] fa [MASK]", top=3).json()
    text, found = fill_masks(m.model, m.params, m.tokenizer, m.objective, "abc [MASK] fa [MASK]", 3)
    assert answer["text"] == text
    for fill, of in zip(answer["fills"], found, strict=True):
        assert [t["log_prob"] for t in fill["top"]] == pytest.approx([p for _, p in of], abs=1e-4)
    some = [TEXTS[0], "fa bb", TEXTS[2]]
    wanted = text_scores.score(m.model, m.params, m.objective, m.tokenizer, some, length=32, stride=16)
    scored = encoder.post("/v1/score", input=some).json()
    assert [d["nats"] for d in scored["data"]] == pytest.approx([w.nats for w in wanted], abs=1e-3)
    assert scored["normalised"] is False and scored["kind"] == "pll"
    order = encoder.post("/v1/rerank", documents=some, by="log_prob").json()["results"]
    assert [r["index"] for r in order] == sorted(range(3), key=lambda i: wanted[i].nats)
    cosine = encoder.post("/v1/rerank", documents=some, query=some[1]).json()["results"]
    assert cosine[0]["index"] == 1 and cosine[0]["relevance_score"] == pytest.approx(1, abs=1e-5)
    assert encoder.post("/v1/embeddings", input="abc").status_code == 200
    refused = encoder.post("/v1/completions", prompt="abc")
    assert refused.status_code == 400 and "continues no text: take /v1/fill" in refused.json()["error"]["message"]


def test_a_model_that_writes_in_several_steps_is_refused_with_the_reason(runs):
    model = Served("tiny", str(runs / "decoder.masked_diffusion"), slots=1, length=None, top=1)
    with pytest.raises(UserError, match="'tiny' writes a text by a program that is compiled for its length: python -m lm.gen"):
        model.read("abc")


@pytest.mark.parametrize("name", ["decoder.fill_in_middle", "encoder_decoder.span_corruption"])
def test_a_gap_is_filled_as_lm_generate_fills_it(start, name):
    running = start(name)
    m = running.model
    asked = Asked(prompt="abc [MASK] de", new_tokens=12, temperature=0.0)
    (sample,) = Writer(m.model, m.params, m.tokenizer, m.objective, slots=1).write([asked])
    choice = running.complete(prompt="abc ", suffix=" de", max_tokens=12, temperature=0)[0]
    assert choice["text"] == sample.text
    filled = running.post("/v1/fill", text="abc [MASK] de", max_tokens=12).json()
    assert filled["fills"][0]["text"] in sample.text and filled["text"].startswith("abc ")


# ------------------------------------------------------------------------------------------------------------ the process


def test_sigterm_finishes_what_has_begun(runs, tmp_path):
    """A stream goes on to its end, a new request gets 503, and the process ends with the exit code of its signal."""
    words = [
        sys.executable,
        "-m",
        "lm.serve",
        f"--from={runs / 'decoder.causal'}",
        "--port=0",
        "--slots=2",
        f"--length={LENGTH}",
    ]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        folder, name = runs / "decoder.causal", "decoder.causal"
        said = [process.stderr.readline() for _ in range(3)]
        assert said[:2] == [f"loading {folder}\n", f"compiling {name}\n"] and said[2].startswith(f"{name}: http://"), said
        url = said[2].split()[-1]
        asked = {
            "prompt": "a",
            "max_tokens": 60,
            "stream": True,
            "n": 40,
            "seed": 1,
            "temperature": 0,
            "logit_bias": {"2": -100},
        }
        with httpx.Client(base_url=url, timeout=300) as client, client.stream("POST", COMPLETIONS, json=asked) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith("data: ")
            process.send_signal(signal.SIGTERM)
            codes = set()
            while 503 not in codes:
                codes.add(httpx.post(url + COMPLETIONS, json={"prompt": "a", "max_tokens": 1}, timeout=300).status_code)
            ends = [line for line in lines if '"finish_reason": "length"' in line]
            assert len(ends) == 40
        assert process.wait(timeout=300) == 75 and process.stderr.read() == "served 1 request\n", "503 is none"
    finally:
        process.kill()
        process.stderr.close()
        process.wait()


def test_flags_that_are_refused(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("LM_SERVE_TOKEN", raising=False)
    (tmp_path / "empty").write_text("\n")
    source = f"--from={runs / 'decoder.causal'}"
    for words, cause in (
        (["--host=0.0.0.0"], "is reached from other machines: set a token"),
        ([f"--token_file={tmp_path / 'empty'}"], "has no token"),
        (["--host=no.such.host.invalid", f"--token_file={__file__}"], "has no token"),
        (["--port=70000"], "--port=70000 is too large"),
        (["--slots=0"], "--slots=0 is too small"),
        (["--length=65", "--port=0"], "more than the 64 positions that the model has learned"),
    ):
        assert serve.main([source, *words]) == 2
        err = capsys.readouterr().err
        assert err.count("error: ") == 1 and err.splitlines()[-1].startswith("error: ") and cause in err.splitlines()[-1]


def test_a_crowd_of_clients(runs, capsys):
    """In small what experiments/serve/README.md shows: clients that stay, leave, send nonsense or read slowly, and SIGTERM."""
    code = load.main(
        [f"--from={runs / 'decoder.causal'}", "--clients=18", "--tokens=20", "--length=64", "--rounds=1", "--streams=4"]
    )
    out = capsys.readouterr().out
    assert code == 0 and out.count("nothing wrong") == 2, out
    assert "9 left" in out and "28 refused" in out and "16 finished" in out and "server / bare engine: " in out
