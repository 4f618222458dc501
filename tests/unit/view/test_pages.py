"""What a terminal and a page show of strips and tables."""

import html
import io
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

from lm.types import Example
from lm.view import page, terminal
from lm.view.counts import Table
from lm.view.look import Look
from lm.view.pieces import Pieces
from lm.view.strips import Row, Strip, row
from tests.unit.view.test_strips import stream, tokenizer

HOSTILE = ["<script>alert(1)</script>", "&amp;", "שלום", "東京", "\"'>", "␣a"]


def strip(texts, **more):
    n = len(texts)
    given = dict(kinds=["text"] * n, asked=[False] * n, prefix=[False] * n, segments=[1] * n, lines={"reads": texts})
    return Strip("decoder", n, list(range(n)), **given | more)


def printed(look, width=60, **settings):
    out = io.StringIO()
    terminal.show(look, Console(file=out, width=width, highlight=False, **settings))
    return out.getvalue()


def look_of(texts, **more):
    return Look("F: train", ["about"], [Row("row 0", {}, {"": [strip(texts, **more)]})])


def a_row():
    decoder = stream([1, 3, 6, 4, 0], [1, 1, 1, 1, 0], prefix=[True, True, False, False, False])
    example = Example(None, decoder, np.array([[6, 6, 7, 2, 0]]), np.array([[0, 1, 1, 0, 0.0]]))
    pieces = Pieces(tokenizer())
    return Look("F: train", [], [row(example, 0, "row 0", pieces, pieces.text)])


def test_tokens_stand_above_what_is_predicted_there():
    assert printed(a_row()).splitlines()[4:] == [
        "decoder: 4 of 5 tokens, the rest is padding; 1 mask; 1 sentinel; prefix of 2 tokens; loss at 2",
        "at        0   1      2  3",
        "reads     <s> <mask> a  <extra_id_0>",
        "predicts  ·   a      ␣b ·",
        "prefix    1   1      ·  ·",
        "",
    ]


def test_without_a_terminal_there_is_no_escape_and_with_one_there_are_colours(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" not in printed(a_row())
    coloured = printed(a_row(), force_terminal=True, color_system="standard")
    assert "\x1b[1;4;31m<mask>\x1b[0m" in coloured  # red, underlined as part of the prefix
    assert "\x1b[32m␣b\x1b[0m" in coloured and "\x1b[2m·\x1b[0m" in coloured  # predicted, and not
    monkeypatch.setenv("NO_COLOR", "1")
    plain = printed(a_row(), force_terminal=True, color_system="standard")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]", plain) and re.sub(r"\x1b\[[0-9;]*m", "", plain) == printed(a_row())


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_long_rows_are_wrapped_and_nothing_is_lost(width):
    texts = [f"w{i}" for i in range(150)] + ["東京", "x" * 100]
    lines = printed(look_of(texts), width).splitlines()
    reads = [line for line in lines if line.startswith("reads")]
    assert all(cell_len(line) <= width for line in reads) and (len(reads) > 1) == (width < 1000)
    words = " ".join(line.removeprefix("reads") for line in reads).split()
    assert words[:-1] == texts[:-1] and words[-1].startswith("xxxxx") and words[-1].endswith("…")


def test_wide_characters_keep_columns_straight():
    lines = {"reads": ["東京", "a"], "predicts": ["a", "東京"]}
    reads, predicts = printed(look_of(["東京", "a"], lines=lines, asked=[True, True])).splitlines()[-3:-1]
    assert cell_len(reads[: reads.index("a", 10)]) == cell_len(predicts[: predicts.index("東")]) == 15


def test_lines_without_an_entry_in_a_block_are_left_out():
    lines = {"reads": ["a" * 20, "b" * 20, "c" * 20], "predicts": ["·", "·", "c"]}
    found = printed(look_of(lines["reads"], lines=lines), 40).splitlines()
    assert [line.split()[0] for line in found[5:] if line] == ["at", "reads", "at", "reads", "at", "reads", "predicts"]


def test_the_legend_names_what_is_there():
    assert [kind for kind, _ in a_row().legend] == ["mask", "sentinel", "special", "prefix", "asked"]
    assert look_of(["a"]).legend == []


class Texts(HTMLParser):
    """All tags, and the text of each <bdi>."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.texts, self.open = [], [], False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        if tag == "bdi":
            self.open = True
            self.texts.append("")

    def handle_endtag(self, tag):
        self.open &= tag != "bdi"

    def handle_data(self, data):
        if self.open:
            self.texts[-1] += data


def test_a_page_escapes_everything_that_it_is_given(tmp_path):
    """Of a text, a title, a fact and a table; each piece is isolated from the direction of its neighbours."""
    look = Look(
        HOSTILE[0],
        [HOSTILE[0]],
        [Row(HOSTILE[0], {"right answer": HOSTILE[0]}, {HOSTILE[0]: [strip(HOSTILE)]})],
        [Table(HOSTILE[0], [HOSTILE[0], "n"], [[text, "1"] for text in HOSTILE], HOSTILE[0], long=True)],
        [HOSTILE[0]],
    )
    text = page.write(look, tmp_path / "show.html").read_text(encoding="utf-8")
    found = Texts(text)
    assert "script" not in found.tags and "<script" not in text and text.count(html.escape(HOSTILE[0])) >= 8
    assert found.texts[0] == HOSTILE[0]  # the answer
    assert found.texts[1:7] == HOSTILE  # the tokens
    assert set(HOSTILE) <= set(found.texts[7:])  # the table


def test_a_page_has_the_marks_and_targets_of_each_token(tmp_path):
    text = page.write(a_row(), tmp_path / "show.html").read_text(encoding="utf-8")
    boxes = re.findall(r'<span class="token ([^"]*)" title="([^"]*)">(.*?)</span>', text)
    assert [kind for kind, *_ in boxes] == ["special prefix", "mask prefix asked", "text asked", "sentinel"]
    assert boxes[1][1] == "token 1 of the row, id 3, segment 1"
    assert "<bdi class=r>&lt;mask&gt;</bdi><bdi class=p>a</bdi><small>prefix 1</small>" == boxes[1][2]
    assert "<bdi class=n>·</bdi>" in boxes[3][2]


def test_lone_surrogates_do_not_stop_a_page(tmp_path):
    assert "\\udce2" in page.write(look_of(["\udce2"]), tmp_path / "show.html").read_text(encoding="utf-8")
