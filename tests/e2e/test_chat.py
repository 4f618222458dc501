"""`python -m lm.chat` on a run that was trained on conversations: turns on a pipe and at a terminal, commands, mistakes."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from lm import chat, process, saved
from lm.chat import main
from lm.config import Sampling
from lm.data.examples import ExampleBuilder
from lm.data.records import parse
from lm.data.render import render
from lm.errors import UserError
from lm.talk.session import Session
from lm.talk.talker import Talker, TooLong

SHORT = ["--new_tokens=6", "--seed=3"]


@pytest.fixture
def say(piped, talks):
    return lambda given, *words: piped(main, [f"--from={talks / 'decoder.causal'}", *SHORT, *words], given)


@pytest.fixture(scope="module")
def talker(talks):
    return Talker(saved.open(talks / "decoder.causal"), length=None)


@pytest.fixture
def session(talker):
    made = Session(talker, Sampling(temperature=0), 6, lambda text: made.shown.append(text))
    made.shown, made.heard = [], []
    made.ask = lambda line, stopped=lambda: False: made.turn(line, made.heard.append, stopped)
    return made


def test_each_line_of_a_pipe_is_a_turn(say):
    code, out, err = say("abc de\n\nfa b\n")
    assert (code, err) == (0, "")
    again = say("abc de\n\nfa b\n")
    assert again == (code, out, err)
    assert say("abc de\n/exit\nfa b\n")[1] != "" and out.startswith(say("abc de\n/exit\nfa b\n")[1])
    assert all(c.isprintable() or c == "\n" for c in out)


def test_later_turns_read_the_earlier_ones_and_compile_nothing(session, talker):
    session.ask("abc")
    first = session.turns[-1]["content"]
    assert "".join(session.heard) == first and session.used == talker.count(session.messages[:1]) + 6
    compiled = talker.engine.compilations
    session.turns = session.turns[:2]
    session.ask("de")
    assert talker.engine.compilations == compiled
    assert [turn["role"] for turn in session.turns] == ["user", "assistant"] * 2
    alone = Session(talker, Sampling(temperature=0), 6, print)
    alone.turn("de", lambda text: None, lambda: False)
    assert alone.used < session.used


def test_later_turns_read_only_what_is_new(talks):
    """And say the same as if all was read again."""
    heard, read = [], []
    for reuse in (False, True):
        talker = Talker(saved.open(talks / "decoder.causal"), length=None)
        talker.engine._reuse &= reuse
        session = Session(talker, Sampling(temperature=0), 6, print)
        for line in ("abc de fa", "b", "cc"):
            session.turn(line, lambda text: None, lambda: False)
        heard.append([turn["content"] for turn in session.turns])
        read.append(talker.engine.prefilled)
        counts = [talker.count(session.messages[:n]) for n in (1, 3, 5)]
    assert heard[0] == heard[1] and read[0] == sum(counts)
    assert read[1] <= counts[-1] < read[0]  # nor is anything read that it said itself


def test_what_a_model_is_told_and_asked_again(session, talker, tmp_path):
    with pytest.raises(UserError, match="no turn to answer again"):
        session.ask("/retry")
    session.sampling = Sampling(seed=1)
    session.ask("abc")
    before = list(session.turns)
    session.ask("/retry")
    assert session.turns[0] == before[0] and session.turns[1] != before[1] and len(session.turns) == 2
    again = Session(talker, Sampling(seed=2), 6, print)
    again.turn("abc", lambda text: None, lambda: False)
    assert again.turns[1] == session.turns[1]  # the second answer is that of the next seed
    session.ask("/system be brief")
    assert session.messages[0] == {"role": "system", "content": "be brief"} and session.shown[-1] == "system: be brief"
    session.ask(f"/save {tmp_path / 'talk.jsonl'}")
    (line,) = (tmp_path / "talk.jsonl").read_text().splitlines()
    assert [m["content"] for m in json.loads(line)["messages"]] == ["be brief", *(m["content"] for m in session.turns)]
    if session.turns[-1]["content"].strip():
        parse(json.loads(line), "messages")  # and can be trained on
    with pytest.raises(UserError, match="exists: give a new file"):
        session.ask(f"/save {tmp_path / 'talk.jsonl'}")
    session.ask("/reset")
    assert session.messages == [{"role": "system", "content": "be brief"}] and session.used == 0
    session.ask("//slash")
    assert session.turns[0]["content"] == "/slash"
    assert session.ask("/help") and "/retry" in session.shown[-1] and not session.ask("/exit")
    for line, cause in (("/hlep", "/hlep is no command; did you mean '/help'"), ("/reset all", "leave out 'all'")):
        with pytest.raises(UserError, match=cause):
            session.ask(line)


def test_the_oldest_turns_are_forgotten_when_the_context_is_full(session, talker):
    session.ask("/system be")
    for i in range(9):
        session.ask(f"{i} abc")
        assert session.used <= talker.length
    assert session.messages[0]["role"] == "system" and session.messages[1]["role"] == "user" and session.dropped
    assert session.shown[-1].startswith("(the context is full: the oldest 2 turns are forgotten)")
    assert session.turns[-2]["content"] == "8 abc"
    kept = list(session.turns)
    with pytest.raises(TooLong, match="this turn has .* tokens, and the context 64 with 6 for an answer"):
        session.ask("abc " * 50)
    assert session.turns == kept  # and the chat goes on
    session.ask("abc")


def test_an_answer_that_is_stopped_is_kept_as_far_as_it_came(session, talker):
    session.new_tokens = 20
    session.ask("abc", stopped=lambda: True)
    assert 0 < session.used - talker.count(session.messages[:1]) < 20 and not talker.engine.busy
    session.ask("de")
    assert len(session.turns) == 4


def test_an_encoder_decoder_reads_with_its_encoder_what_training_gave_it(talks):
    """The ids of `ExampleBuilder.turn_example`: a conversation without bos, and a decoder that begins with it."""
    source = saved.open(talks / "encoder_decoder.span_corruption")
    both, tokenizer = Talker(source, length=None), source.tokenizer()
    messages = [{"role": "user", "content": "abc"}]
    asked = both._request(both.chat.ids(messages), 6, Sampling())
    record = parse({"messages": [*messages, {"role": "assistant", "content": "de"}]}, "messages")
    (rendered,) = render([record], tokenizer)
    before, answer = rendered.ids[1 : rendered.loss.argmax()], rendered.ids[rendered.loss.argmax() :]
    builder = ExampleBuilder(tokenizer, "encoder_decoder", length=40, answer=16, prefix=False)
    example = builder.turn_example(before, answer)
    assert asked.encoder.tolist() == example.encoder.tokens.tolist()
    assert asked.prompt.tolist() == example.decoder.tokens[:1].tolist()
    made = Session(both, Sampling(temperature=0), 6, print)
    made.turn("abc", lambda text: None, lambda: False)
    made.turn("de", lambda text: None, lambda: False)
    assert len(made.turns) == 4 and made.used > 0


def test_mistakes_take_one_line(say, piped, runs, talks):
    for given, words, cause in (
        ("abc\n", ["--length=65"], "--length=65 is more than the 64 tokens that the model reads"),
        ("abc\n", ["--length=6"], "--new_tokens=6 leaves nothing of the context of 6 tokens"),
        ("abc " * 99 + "\n", [], "this turn has"),
        ("/sytem x\n", [], "/sytem is no command; did you mean '/system'"),
        ("abc\n", ["--temprature=1"], "unknown flag --temprature; did you mean '--temperature'"),
    ):
        code, _, err = say(given, *words)
        assert code == 2 and err.count("\n") == 1 and cause in err, err
    code, _, err = piped(main, [f"--from={runs / 'decoder.causal'}"], "abc\n")
    assert code == 2 and "is no chat model: it has no chat template, and was not trained here on conversations" in err


def test_a_chat_at_a_terminal_survives_ctrl_c(talks):
    """In a process of its own, on a pseudo-terminal. Whatever a Ctrl-C interrupts, one alone ends nothing."""
    main_end, other = pty.openpty()
    env = os.environ | {"JAX_PLATFORMS": "cpu", "TERM": "dumb"}
    words = [sys.executable, "-m", "lm.chat", f"--from={talks / 'decoder.causal'}", "--new_tokens=40", "--temperature=0"]
    process = subprocess.Popen(words, stdin=other, stdout=other, stderr=other, env=env, start_new_session=True)
    os.close(other)
    seen = ""

    def until(text):
        nonlocal seen
        end = time.monotonic() + 240
        while text not in seen:
            assert time.monotonic() < end and process.poll() is None, seen
            if select.select([main_end], [], [], 1)[0]:
                seen += os.read(main_end, 4096).decode(errors="replace")
        seen = seen.partition(text)[2]

    def write(line):
        os.write(main_end, line.encode() + b"\n")

    until("[0/64] > ")
    write("abc")
    until("abc\r\n")
    # While the line is read, or the first answer is made. One that comes between readline's prompt and its waiting for a key is
    # seen at the next Enter: hence the empty lines.
    process.send_signal(signal.SIGINT)
    until("/64] > ")
    write("")
    until("/64] > ")
    write("/system be brief")
    until("system: be brief")
    until("/64] > ")
    process.send_signal(signal.SIGINT)
    write("")
    until("(Ctrl-C again ends the chat)\r\n")
    until("/64] > ")
    write("/exit")
    assert process.wait(60) == 0
    os.close(main_end)


def test_a_chat_that_ctrl_c_ends_says_how_much_there_was(talks, monkeypatch, capsys):
    def ended(session, terminal):
        session.turn("abc", lambda text: None, lambda: False)
        raise process.Ended(130)

    monkeypatch.setattr(chat, "_talk", ended)
    for terminal, line in ((True, "1 answer\n"), (False, "interrupted; the same command starts again\n")):
        monkeypatch.setattr(sys.stdin, "isatty", lambda terminal=terminal: terminal)
        assert chat.main([f"--from={talks / 'decoder.causal'}", *SHORT]) == 130
        assert capsys.readouterr().err.endswith(line)
