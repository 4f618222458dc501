"""Who may ask: tokens, names of the host, sizes and times; without a server or a model."""

import asyncio
import json

import pytest

from lm.serving import gate, schemas
from lm.serving.errors import ApiError
from lm.serving.gate import Gate
from lm.serving.metrics import Metrics


async def echo(scope, receive, send):
    """An application that answers with the size of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body")
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(size).encode()})


def asked(gate, path="/v1/score", *, method="POST", parts=(b"{}",), **headers):
    """The status of the answer and its body, where the body of the request comes in parts; None never comes."""
    sent, left = [], list(parts)

    async def receive():
        if left[0] is None:
            await asyncio.sleep(3600)
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message):
        sent.append(message)

    headers = {"host": "localhost:1", "content-type": "application/json"} | headers
    encoded = [(name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()]
    scope = {"type": "http", "path": path, "method": method, "headers": encoded}
    asyncio.run(gate(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


def made(token=None, hosts=("localhost",), app=echo):
    return Gate(app, Metrics({}), paths=["/v1/score", "/health"], token=token, hosts=hosts, body=10)


def test_a_token_is_compared_whole():
    closed = made("secret", hosts=None)
    assert asked(closed, authorization="Bearer secret") == (200, b"2")
    for wrong in ("Bearer secre", "Bearer secrets", "Basic secret", "secret", "Bearer ", "Bearer s\xe9cret"):
        status, body = asked(closed, authorization=wrong)
        assert status == 401 and json.loads(body)["error"]["code"] == "invalid_api_key"
    assert asked(closed)[0] == 401
    assert asked(closed, "/health", method="GET")[0] == 200 and asked(closed, "/metrics", method="GET")[0] == 401


@pytest.mark.parametrize(
    ("host", "status"), [("localhost", 200), ("localhost:80", 200), ("evil.example", 403), ("localhost.evil.example", 403)]
)
def test_a_page_of_another_name_reaches_nothing(host, status):
    assert asked(made(), host=host)[0] == status


def test_sizes_are_counted_and_said_ones_believed():
    assert asked(made(), parts=[b"12345", b"12345"]) == (200, b"10")
    assert asked(made(), content_length="11")[0] == 413
    assert asked(made(), content_length="9" * 5000)[0] == 413
    with pytest.raises(ApiError) as raised:  # which the application around the routes turns into an answer
        asked(made(), parts=[b"12345", b"123456"])
    assert raised.value.status == 413


def test_a_body_that_does_not_come(monkeypatch):
    monkeypatch.setattr(gate, "READING_SECONDS", 0.01)
    with pytest.raises(ApiError) as raised:
        asked(made(), parts=[b"1", None])
    assert raised.value.status == 408


def test_only_json_is_taken_and_nothing_while_stopping():
    some = made()
    assert (
        asked(some, content_type="text/plain")[0] == 415
        and asked(some, content_type="application/json; charset=utf-8")[0] == 200
    )
    some.stopping = True
    status, body = asked(some)
    assert status == 503 and json.loads(body)["error"]["code"] == "stopping"
    assert asked(some, "/health", method="GET")[0] == 200 and some.active == 0


def test_requests_are_counted_by_path_and_code():
    some = made()
    asked(some)
    asked(some, "/a/path/of/its/own")
    asked(some, host="evil.example")
    text = some.metrics.text().decode()
    for path, code in (("/v1/score", 200), ("other", 200), ("/v1/score", 403)):
        assert f'lm_requests_total{{code="{code}",path="{path}"}} 1.0' in text


def test_accounts_of_a_service_are_left_out_and_what_changes_the_meaning_is_refused():
    body = schemas.read(schemas.Completion, {"prompt": "a", "user": "x", "store": True, "temperature": 1, "n": None})
    assert body.temperature == 1.0 and body.n is None
    assert body.model_copy(update={"seed": -1}).sampling(5).seed == 2**32 - 1 and body.sampling(5).seed == 5
    with pytest.raises(ApiError, match="'beam_width' is not known here"):
        schemas.read(schemas.Completion, {"prompt": "a", "beam_width": 2})
