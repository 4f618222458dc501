"""The client of an OpenAI-compatible server, against one of Python's own library on 127.0.0.1."""

import http.server
import json
import threading

import numpy as np
import pytest

from lm.errors import UserError
from lm.talk import remote
from lm.talk.remote import Server


@pytest.fixture
def server():
    """Has `answers`: path -> what is answered in turn, (code, object or bytes, headers); and `asked`: all that came."""
    answers, asked = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            length = int(self.headers.get("Content-Length") or 0)
            asked.append((self.path, self.headers.get("Authorization"), json.loads(self.rfile.read(length) or "null")))
            queue = answers.get(self.path, [])
            code, body, headers = (queue.pop(0) if len(queue) > 1 else queue[0]) if queue else (404, {"detail": "no"}, {})
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(code)
            for name, value in ({"Content-Length": str(len(data))} | headers).items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET

        def log_message(self, *given):
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.daemon_threads = True
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    made.answers, made.asked, made.address = answers, asked, f"http://127.0.0.1:{made.server_address[1]}/v1"
    answers["/v1/models"] = [(200, {"data": [{"id": "first"}, {"id": "second"}]}, {})]
    answers["/v1/chat/completions"] = [(200, {"choices": [{"message": {"content": " Yes. "}}]}, {})]
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def client(server, **settings):
    return Server(server.address, **dict(token=None, model=None, timeout=30.0) | settings)


def test_a_question_is_posted_and_its_answer_read(server):
    found = client(server, token="secret").answer(
        [{"role": "user", "content": "Is it?"}], 7, {"temperature": 0.0, "presence": 1.0}
    )
    assert found == "Yes."
    (_, token, _), (path, also, asked) = server.asked
    assert path == "/v1/chat/completions" and token == also == "Bearer secret"
    assert asked == {
        "model": "first",
        "messages": [{"role": "user", "content": "Is it?"}],
        "max_tokens": 7,
        "temperature": 0.0,
        "presence_penalty": 1.0,
    }
    client(server, model="second").answer([], 1, {})
    assert server.asked[-1][1:] == (None, {"model": "second", "messages": [], "max_tokens": 1})


def test_vectors_come_in_the_order_of_the_texts(server):
    data = [{"index": 1, "embedding": [0, 1]}, {"index": 0, "embedding": [1, 0.5]}]
    server.answers["/v1/embeddings"] = [(200, {"data": data}, {})]
    assert client(server).vectors(["a", "b"]).tolist() == np.array([[1, 0.5], [0, 1]]).tolist()
    for wrong in (data[:1], [{"index": 0, "embedding": [1]}, {"index": 1, "embedding": [1, 2]}], [{"index": 0}, 3], "x"):
        server.answers["/v1/embeddings"] = [(200, {"data": wrong}, {})]
        with pytest.raises(UserError, match="gave no vector for each text; give --embedder=FOLDER"):
            client(server).vectors(["a", "b"])


def test_a_busy_server_is_asked_again(server, monkeypatch):
    waits = []
    monkeypatch.setattr(remote.time, "sleep", waits.append)
    good = server.answers["/v1/chat/completions"][0]
    server.answers["/v1/chat/completions"] = [(429, {}, {"Retry-After": "3"}), (503, {}, {}), good]
    assert client(server).answer([], 1, {}) == "Yes." and waits == [3.0, 4.0]
    server.answers["/v1/chat/completions"] = [(429, {"error": {"message": "too many"}}, {"Retry-After": "1e9"})]
    with pytest.raises(UserError, match=r"refused \(429\): too many"):
        client(server).answer([], 1, {})
    assert waits[2:] == [remote.LONGEST_WAIT] * 4


@pytest.mark.parametrize(
    "answer,cause",
    [
        ((401, {"error": {"message": "no such key", "code": 1}}, {}), r"refused \(401\): no such key"),
        ((400, {"error": "too\nlong"}, {}), r"refused \(400\): too\\nlong"),
        ((500, b"<html>", {}), r"refused \(500\): <html>"),
        ((200, b"<html>", {}), "is not valid JSON"),
        ((200, b'{"choices": NaN}', {}), "is not valid JSON"),
        ((200, {"choices": []}, {}), "without choices.0.message.content; is it an OpenAI-compatible API"),
        ((200, {"choices": [{"message": {"content": None}}]}, {}), "gave an answer without a text"),
        ((302, {}, {"Location": "http://127.0.0.1:1/"}), r"refused \(302\)"),
    ],
)
def test_what_is_no_answer_is_an_error_in_one_line(server, answer, cause):
    server.answers["/v1/chat/completions"] = [answer]
    with pytest.raises(UserError, match=cause):
        client(server).answer([], 1, {})


def test_an_address_that_is_none(server):
    for address, cause in (
        ("127.0.0.1:8000", "is no address"),
        ("file:///etc/passwd", "is no address"),
        ("http://127.0.0.1:1/v1", "cannot be reached"),
        (server.address.replace("/v1", "/v2"), r"refused \(404\): .*no"),
    ):
        with pytest.raises(UserError, match=cause):
            Server(address, token=None, model=None, timeout=10.0)
    with pytest.raises(UserError, match="--top_k is not known to a server"):
        client(server).answer([], 1, {"top_k": 3})
