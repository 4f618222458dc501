"""Where a run's hours went, over kills and restarts: planted histories with figures worked out by hand."""

import re
from html.parser import HTMLParser

import pytest

from lm.training.goodput import account
from lm.training.report import _goodput
from lm.training.rundir import RunDir


def start(time):
    return {"event": "start", "time": time}


def at(time, step, **seconds):
    return {"event": "step", "time": time, "step": step, "seconds": seconds}


# Killed after 60 s at step 20 or beyond; 40 s later the next goes on from step 12, and is done 30 s after that.
FIRST = [
    start(1000.0),
    at(1010.0, 0, prepare=8.0, train=2.0),
    at(1040.0, 10, prepare=8.0, compile=10.0, data_wait=1.0, train=21.0),
    at(1060.0, 20, prepare=8.0, compile=10.0, data_wait=1.0, checkpoint=5.0, train=36.0),
]
SECOND = [
    start(1100.0),
    at(1104.0, 12, restore=3.0, train=1.0),
    at(1130.0, 20, restore=3.0, compile=10.0, evaluate=2.0, sample=1.0, baselines=1.0, train=13.0),
]


def test_a_run_that_was_killed():
    found = account(FIRST + SECOND)
    # Steps 13 to 20 of the first are lost: 8 of the 10 steps that took it 15 s.
    assert found["seconds"] == {
        "productive": (36 - 2 - 12) + (13 - 1),
        "lost": 12.0,
        "data_wait": 1.0,
        "compile": 20.0,
        "prepare": 8 + 2 + 1,
        "checkpoint": 5 + 3,
        "evaluate": 4.0,
        "profile": 0.0,
        "down": 40.0,
    }
    assert found["starts"] == 2
    assert found["wall_seconds"] == 1130 - 1000 == sum(found["seconds"].values())
    assert found["share"] == pytest.approx(34 / 130, abs=1e-4)


def test_without_a_kill_nothing_is_lost_or_down():
    found = account(FIRST)
    assert found["seconds"]["lost"] == found["seconds"]["down"] == 0
    assert found["seconds"]["productive"] == 34 and found["wall_seconds"] == 60


def test_what_was_redone_twice_is_lost_twice():
    """A third process goes back before the second, which stood at 20: of the first only 5 steps count then."""
    third = [start(1130.0), at(1131.0, 5, restore=1.0), at(1141.0, 20, restore=1.0, train=10.0)]
    found = account(FIRST + SECOND + third)
    assert found["seconds"]["lost"] == (36 - 2 - 19 * 5 / 10) + 12
    assert found["seconds"]["productive"] == 9.5 + 10


def test_a_process_that_came_to_no_step():
    """Its hour is down time, and what was kept before it stays kept."""
    found = account([*FIRST, start(1070.0), *SECOND])
    assert found["starts"] == 3
    assert found["seconds"]["down"] == 40 and found["seconds"]["lost"] == 12


def test_an_end_of_the_file_that_a_kill_cut_and_a_clock_that_went_back():
    assert account([])["wall_seconds"] == 0
    assert account(SECOND[1:])["starts"] == 0
    assert account(SECOND + [start(1000.0)])["seconds"]["down"] == 0


def test_after_the_last_step_nobody_waits():
    done = SECOND[-1] | {"event": "done"}
    found = account([*FIRST, *SECOND[:-1], done, start(9000.0), at(9001.0, 20, restore=1.0)])
    assert found["seconds"]["down"] == 40 and found["seconds"]["lost"] == 12


def test_a_process_whose_start_was_lost_is_counted():
    """Its clock is behind that of the row before, or its step is."""
    found = account(FIRST + SECOND[1:])
    # Its first row says that it began 4 s before: 3 s of restoring and 1 s of the rest.
    assert found == account(FIRST + SECOND)
    short = [start(1000.0), at(1002.0, 0, prepare=2.0), at(1003.0, 4, prepare=2.0, train=1.0)]
    later = [at(1060.0, 2, prepare=5.0, train=5.0), at(1070.0, 6, prepare=5.0, train=15.0)]  # every clock is ahead
    found = account(short + later)
    assert found["starts"] == 2 and found["seconds"]["down"] == 1050 - 1003 and found["seconds"]["lost"] == 0.5
    assert found["wall_seconds"] == 70


HISTORY = [
    *FIRST,
    *SECOND,
    start(1200.0),
    at(1204.0, 20, restore=3.0, train=1.0),
    at(1230.0, 40, restore=3.0, compile=10.0, train=17.0) | {"event": "done"},
]


def test_no_second_is_negative_whatever_rows_were_lost():
    """Each pair of rows left out in turn, and each row said twice."""
    whole = account(HISTORY)
    assert whole["starts"] == 3
    for i in range(len(HISTORY)):
        for j in range(i, len(HISTORY)):
            found = account([row for k, row in enumerate(HISTORY) if k not in (i, j)])
            assert min(found["seconds"].values()) >= 0, (i, j)
            assert 0 <= found["share"] <= 1 and found["starts"] <= 3
            assert found["wall_seconds"] == pytest.approx(sum(found["seconds"].values()), abs=0.01)
        assert min(account([*HISTORY[: i + 1], *HISTORY[i:]])["seconds"].values()) >= 0


def test_what_is_added_after_a_cut_line_is_read(tmp_path):
    """Wherever a kill cut the file, the next start is a row of its own."""
    first = RunDir(tmp_path)
    for row in FIRST:
        first.append("goodput.jsonl", row)
    first.close()
    content = (tmp_path / "goodput.jsonl").read_bytes()
    for left in {len(content) - n for n in (0, 1, 2, 30)} | {content.index(b"\n") + 10}:
        (tmp_path / "goodput.jsonl").write_bytes(content[:left])
        second = RunDir(tmp_path)
        for row in SECOND:
            second.append("goodput.jsonl", row)
        found = account(second.rows("goodput.jsonl"))
        second.close()
        assert found["starts"] == 2 and min(found["seconds"].values()) >= 0, left
        assert found["wall_seconds"] == 130


def test_the_report_shows_all_of_it():
    page = _goodput(account(FIRST + SECOND) | {"starts": 2})
    widths = [float(w) for w in re.findall(r"width:([\d.]+)%", page)]
    assert sum(widths) == pytest.approx(100, abs=0.1) and len(widths) == 8
    assert "130 s over 2 starts; 26.2% of it in steps whose result was kept" in page
    assert page.count("<tr>") == 8 and "profile" not in page, "kinds that took no time are left out"

    opened, closed = [], []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: opened.append(tag)
    parser.handle_endtag = lambda tag: closed.append(tag)
    parser.feed(page)
    for tag in ("div", "table", "h2", "p", "span"):
        assert opened.count(tag) == closed.count(tag), tag
