"""Text to cleaner text: broken Unicode repaired, markup and stage directions removed, whitespace evened out.

Every step is a pure function; `clean` applies those that the configuration asks for and counts what it changed. With
`unicode` and `markup` both off a text passes through untouched, byte for byte.
"""

import html
import re
import unicodedata
from collections import Counter

from lm import config

# Sound and silence in a transcript, alone or with a few words around: [Applause], [prolonged laughter], [Inaudible].
_SOUND = "applause|laughter|laughs?|cheers|cheering|inaudible|crosstalk|boos|booing|music|pause|silence"
# What an editor notes: [see APP Note], [p.3183], [Delivered in person before a joint session at 9:04 p.m.].
_NOTE = r"see app note|p\. ?\d+|(?:as )?(?:delivered|read|recorded) [^\[\]]*|released [^\[\]]*\bdated [^\[\]]*"
# A whole sentence about the scene: [At this point, ...], [Members of the audience spoke over the President.]
_DEED = "applauded|entered|escorted|held|joined|pinned|presented|responded|sang|spoke|turned"
_SCENE = rf"(?:at t?his point,|there was an?) [^\[\]]*\.|[A-Z][^\[\]]* (?:{_DEED}) [^\[\]]*\.[\"”]?"
_MARKER = re.compile(rf"\[ ?(?:(?:\w+,? ){{0,3}}(?:{_SOUND})(?:,? \w+){{0,3}}|{_NOTE}|{_SCENE})\.? ?\]", re.IGNORECASE)
_BETWEEN_DASHES = re.compile(rf"(—|--)(?:[ \t]*(?:{_MARKER.pattern}[ \t]*)+(?:—|--))+", re.IGNORECASE)
_WITH_SPACE = re.compile(rf"(?:^{_MARKER.pattern}[ \t]*|[ \t]*{_MARKER.pattern})", re.IGNORECASE | re.MULTILINE)
# "Alejandro [Alejandra; White House correction]": the correction is text, who made it is not.
_CORRECTION = re.compile(r"(?<=[^\[\]]); White House correction(?=\])")

# Only names of HTML count as tags, so that "a < b and c > d" and "<stdio.h>" stay.
_BLOCKS = "address|article|aside|blockquote|div|dd|dl|dt|footer|form|h[1-6]|header|hr|li|main|nav|ol|p|pre|section|table|ul"
_INLINE = (
    "a|abbr|b|big|body|button|caption|center|cite|code|del|em|font|head|html|i|iframe|img|input|ins|kbd|label|link|meta|"
    "option|q|s|samp|select|small|span|strike|strong|sub|sup|tbody|td|tfoot|th|thead|title|tr|tt|u|var"
)
_HIDDEN_TAG = re.compile(r"<!--.*?-->|<!doctype[^<>]*>|<(script|style)\b[^<>]*>.*?</\1\s*>", re.IGNORECASE | re.DOTALL)
_BREAK_TAG = re.compile(r"<br\s*/?>", re.IGNORECASE)
_BLOCK_TAG = re.compile(rf"</?(?:{_BLOCKS})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_INLINE_TAG = re.compile(rf"</?(?:{_INLINE})(?:\s[^<>]*)?/?>", re.IGNORECASE)
_ENTITY = re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")

_LINE_ENDS = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")


def clean(text: str, settings: config.Clean) -> tuple[str, Counter[str]]:
    """The cleaned text, and how often what was changed.

    Counted are "repaired" (0 or 1), "tag", "entity", "marker" and "correction"; what did not occur is left out.
    """
    counts: Counter[str] = Counter()
    if settings.unicode:
        repaired = repair(text)
        counts["repaired"] += repaired != text
        text = repaired
    if settings.markup:
        text, found = markup(text)
        counts += found
    if settings.unicode:
        text = unicodedata.normalize("NFC", even(text))  # again, because entities may have brought anything
    if settings.markup:
        text = collapse(text)
    return text, +counts


def repair(text: str) -> str:
    """Mojibake, stray control characters and ligatures mended by ftfy; NFC. Quotation marks stay as they were set."""
    import ftfy

    # Entities are `markup`'s business; curly quotes are typography, not damage.
    settings = ftfy.TextFixerConfig(unescape_html=False, uncurl_quotes=False, normalization="NFC", explain=False)
    return ftfy.fix_text(text, settings)


def markup(text: str) -> tuple[str, Counter[str]]:
    """Without HTML and stage directions. Brackets with other words ([the States], [1833]) are text and stay.

    "works. [Applause] Let's"     -> "works. Let's"
    "top 1—[applause]—yes"        -> "top 1—yes"
    "<p>Fish &amp; chips</p>"     -> "Fish & chips"
    """
    counts: Counter[str] = Counter()
    if "<" in text:
        for pattern, instead in ((_HIDDEN_TAG, ""), (_BREAK_TAG, "\n"), (_BLOCK_TAG, "\n\n"), (_INLINE_TAG, "")):
            text, n = pattern.subn(instead, text)
            counts["tag"] += n
    if "&" in text:

        def unescape(match: re.Match[str]) -> str:
            plain = html.unescape(match[0])
            counts["entity"] += plain != match[0]
            return plain

        text = _ENTITY.sub(unescape, text)
    if "[" in text:
        counts["marker"] += len(_MARKER.findall(text))
        text = _WITH_SPACE.sub("", _BETWEEN_DASHES.sub(r"\1", text))
        text, n = _CORRECTION.subn("", text)
        counts["correction"] += n
    return text, +counts


def even(text: str) -> str:
    """One kind of newline and of space, no spaces at the ends of lines, one empty line at most between paragraphs."""
    text = _SPACES.sub(" ", _LINE_ENDS.sub("\n", text))
    text = "\n".join(line.rstrip(" \t") for line in text.split("\n"))
    return re.sub(r"\n{3,}", "\n\n", text).strip("\n")


def collapse(text: str) -> str:
    """Runs of spaces within a line become one; indentation, which verse and code need, stays."""
    return re.sub(r"(?<=\S)[ \t]{2,}(?=\S)", " ", text)
