"""Cleaning removes what is no text, keeps what is, and counts."""

import pytest

from lm import config
from lm.data.clean import clean, collapse, even, markup, repair

ALL = config.Clean()


@pytest.mark.parametrize(
    "before, after",
    [
        ("It works. [Applause] Let's go.", "It works. Let's go."),
        ("the top 1—[applause]—yes", "the top 1—yes"),
        ("Now--[applause]--just stating", "Now--just stating"),
        ("Well—[laughter]— [applause] —so", "Well—so"),
        ("an important [see APP Note] matter", "an important matter"),
        ("two objects [See APP Note.]; but", "two objects; but"),
        ("has [p.3183] been", "has been"),
        ("[As delivered in person before a joint session]\n\nMr. Speaker", "\n\nMr. Speaker"),
        ("[ Delivered in person before a joint session at 9:04 p.m. ]", ""),
        ("a [prolonged laughter and applause] b", "a b"),
        ("Yes. [Members of the audience spoke over the President.] No.", "Yes. No."),
        ("[At this point, the First Lady presented the medal to Mr. Limbaugh III, who sat by.] Thanks", "Thanks"),
        ('Why. [The President held up a pin reading: "Say Her Name."]', "Why."),
        ("Alejandro [Alejandra; White House correction] Gonzalez", "Alejandro [Alejandra] Gonzalez"),
    ],
)
def test_markers_go(before, after):
    text, counts = markup(before)
    assert text == after
    assert counts["marker"] + counts["correction"] >= 1


@pytest.mark.parametrize(
    "text",
    [
        "law of [1815-03-03], so much",
        "of [the States] and [Mr. Marcy]",
        "[1.] First is growth",
        "[Exclusive of gold and silver.]",
        "[On Fiscal, judicial, Military and Insular Affairs.]",
        "[In any event, this one reduction will save taxpayers, each year, 2 hundred million dollars.]",
        "we laughed at the applause",
        "if a < b and c > d then #include <stdio.h>",
        "AT&T; R&D &; & &bogus;",
    ],
)
def test_text_stays(text):
    assert markup(text) == (text, {})


def test_html_goes():
    text, counts = markup("<!-- no --><p class='x'>Fish &amp; <b>chips</b></p><br/>&lt;b&gt;<script>var a = 1;</script>")
    assert text == "\n\nFish & chips\n\n\n<b>"
    assert counts == {"tag": 7, "entity": 3}


def test_repair_mends_mojibake_and_leaves_quotes():
    assert repair("schÃ¶n ﬁne “quoted”") == "schön fine “quoted”"
    assert repair("e\u0301") == "é"


def test_whitespace_keeps_paragraphs_and_indentation():
    assert even("\n\na \t\r\nb\r\n\r\n\r\n\r\nc\u00a0d\n") == "a\nb\n\nc d"
    assert collapse("  two   words\tin\t\tline") == "  two words\tin line"


def test_clean_counts_and_switches():
    text = "<p>sch\u00c3\u00b6n&nbsp;da</p>  [Applause]  \n\n\n\nEnde\r\n"
    assert clean(text, ALL) == ("schön da\n\nEnde", {"repaired": 1, "tag": 2, "entity": 1, "marker": 1})
    assert clean(text, config.Clean(unicode=False, markup=False)) == (text, {})
    only = clean(text, config.Clean(unicode=True, markup=False))[0]
    assert only == "<p>schön&nbsp;da</p>  [Applause]\n\nEnde"


def test_cleaning_twice_changes_nothing_more():
    once, _ = clean("A — [applause] — b &amp; <i>c</i>   d\n\n\n\n[Laughter]\ne", ALL)
    assert once == "A — b & c d\n\ne" and clean(once, ALL) == (once, {})
