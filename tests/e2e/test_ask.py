"""`python -m lm.ask` on a file: a run that was trained on conversations, and a server; sources are in the file as quoted."""

import http.server
import json
import threading

import pytest

from lm.ask import main
from tests.e2e.running import Running

TEXT = "\ufeff" + "".join(f"Line {i}: the number of boat {i} is {i * 37}.\r\n" for i in range(40))
READ = TEXT.removeprefix("\ufeff")


@pytest.fixture
def file(tmp_path):
    (tmp_path / "boats.txt").write_bytes(TEXT.encode())
    return tmp_path / "boats.txt"


@pytest.fixture
def ask(capsys, file):
    def run(*words):
        capsys.readouterr()
        code = main([f"--file={file}", *map(str, words)])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def server():
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/v1/embeddings":
                number = asked["input"][0].split()[-1].strip("?") if len(asked["input"]) == 1 else "7"
                rows = [[1.0, float(f"boat {number} is" in text or "?" in text)] for text in asked["input"]]
                answer = {"data": [{"index": i, "embedding": row} for i, row in enumerate(rows)]}
            else:
                prompt = asked["messages"][-1]["content"]
                said = "boat 7 has the number 259" if "boat 7 is 259" in prompt or "- boat 7" in prompt else "none"
                answer = {"choices": [{"message": {"content": said}}]}
            data = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *given):
            pass

    made = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{made.server_address[1]}/v1"
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture(scope="module")
def ours(talks):
    running = Running(talks / "decoder.causal")
    yield running
    running.stop()


def test_a_server_answers_and_the_source_is_where_it_says(ask, server):
    words = [f"--server={server}", "--model=m", "--window=200", "--overlap=50", "--question=What number has boat 7?"]
    code, out, err = ask(*words, "--jsonl")
    assert code == 0, err
    found = json.loads(out)
    assert found["answer"] == "boat 7 has the number 259" and found["asked"] == 4
    for part in found["parts"]:
        quote = part["quote"]
        assert READ[quote["start"] : quote["stop"]] == quote["text"] == "Line 7: the number of boat 7 is 259."
        assert quote["lines"] == [8, 8] and part["start"] <= quote["start"] < quote["stop"] <= part["stop"]
    code, out, err = ask(*words)
    at = READ.index("Line 7:")
    assert code == 0 and f"[1] line 8, characters {at}-{at + 36}\n      {READ[at : at + 36]}\n" in out
    assert out.count("number of boat 7") == 1 and len(found["parts"]) > 1  # windows that overlap quote the same sentence


def test_our_own_server_answers_as_the_model_does(ask, talks, ours):
    """The same answers and sources with --server as with --from, by /v1/chat/completions and /v1/embeddings."""
    folder = talks / "decoder.causal"
    words = ["--window=50", "--overlap=10", "--new_tokens=4", "--map_prompt={text}", "--reduce_prompt={answers}", "--jsonl"]
    words += ["--question=boat", "--question=line", "--top=2"]
    code, out, err = ask(f"--server={ours.url}/v1", *words)
    assert code == 0, err
    wanted = [json.loads(line) for line in ask(f"--from={folder}", *words)[1].splitlines()]
    found = [json.loads(line) for line in out.splitlines()]
    assert len(found) == 2
    for one, other in zip(found, wanted, strict=True):
        for a, b in zip(one["parts"], other["parts"], strict=True):
            assert a.pop("similarity") == pytest.approx(b.pop("similarity"), abs=1e-4)
        assert one == other and one["parts"]


def test_a_run_answers_from_the_parts_that_its_own_vectors_choose(ask, talks):
    few = [f"--from={talks / 'decoder.causal'}", "--window=50", "--overlap=10", "--new_tokens=4", "--map_prompt={text}"]
    few.append("--reduce_prompt={answers}")
    code, out, err = ask(*few, "--question=boat", "--question=line", "--top=2", "--jsonl")
    assert code == 0, err
    every = [json.loads(line) for line in out.splitlines()]
    assert [line["question"] for line in every] == ["boat", "line"] and all(line["asked"] == 2 for line in every)
    for part in (part for line in every for part in line["parts"]):
        assert READ[part["quote"]["start"] : part["quote"]["stop"]] == part["quote"]["text"] and -1 <= part["similarity"] <= 1
    assert "comparing" in err and "part 2 of 2" in err
    assert ask(*few, "--question=boat", "--question=line", "--top=2", "--jsonl")[1] == out


def test_mistakes_take_one_line(ask, talks, file, monkeypatch, tmp_path):
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    (tmp_path / "latin.txt").write_bytes("é".encode("latin-1"))
    for words, cause in (
        ((f"--from={talks / 'decoder.causal'}",), "--question=TEXT or --summary"),
        ((f"--from={talks / 'decoder.causal'}", "--summary", "--question=a"), "--question=TEXT or --summary"),
        (("--summary",), "--from=FOLDER or --server=URL"),
        (
            (f"--from={talks / 'decoder.causal'}", "--server=http://127.0.0.1:1/v1", "--summary"),
            "--from=FOLDER or --server=URL",
        ),
        ((f"--from={talks / 'decoder.causal'}", "--model=m", "--summary"), "--api_key and --model are of a server"),
        (("--server=http://127.0.0.1:1/v1", "--api_key=NO_SUCH_KEY", "--summary"), "NO_SUCH_KEY names an environment variable"),
        (("--server=http://127.0.0.1:1/v1", "--summary"), "cannot be reached"),
        ((f"--from={talks / 'decoder.causal'}", "--summary", "--new_tokens=4"), "lower --window (now 2,000 characters)"),
        ((f"--from={talks / 'decoder.causal'}", "--summary", "--map_prompt=x"), "--map_prompt has no {text}"),
        (
            (f"--from={talks / 'decoder.causal'}", "--summary", f"--file={tmp_path / 'latin.txt'}"),
            "give a file of text in UTF-8",
        ),
        ((f"--from={talks / 'decoder.causal'}", "--summary", f"--file={tmp_path / 'none.txt'}"), "cannot be read"),
    ):
        code, _, err = ask(*words)
        lines = [line for line in err.splitlines() if not line.startswith(("part ", "comparing", "combining"))]
        assert code == 2 and len(lines) == 1 and cause in lines[0], err
