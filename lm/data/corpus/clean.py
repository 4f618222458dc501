"""Cleaning of one document's text. By default only damage is repaired; anything that may be text is removed on request.

Every step is a pure function of the text. `clean` applies the enabled ones and counts what each changed. With all of them off,
the text is returned unchanged, byte for byte.
"""

import functools
import html
import re
import unicodedata
from collections import Counter
from dataclasses import replace

from lm import config

# The names that `clean` counts under: documents repaired, then occurrences of each kind changed.
COUNTED = ("repaired", "width", "tag", "entity", "marker", "correction", "space")

# Sounds and silence noted in a transcript, alone or among a few words: [Applause], [prolonged laughter], [Inaudible].
_SOUND = "applause|laughter|laughs?|cheers|cheering|inaudible|crosstalk|boos|booing|music|pause|silence"
# An editor's notes: [see APP Note], [p.3183], [Delivered in person before a joint session at 9:04 p.m.].
_NOTE = r"see app note|p\. ?\d+|(?:as )?(?:delivered|read|recorded) [^\[\]]*|released [^\[\]]*\bdated [^\[\]]*"
# A sentence about the scene: [At this point, ...], [Members of the audience spoke over the President.]
_DEED = "applauded|entered|escorted|held|joined|pinned|presented|responded|sang|spoke|turned"
_SCENE = rf"(?:at t?his point,|there was an?) [^\[\]]*\.|[A-Z][^\[\]]* (?:{_DEED}) [^\[\]]*\.[\"”]?"
_MARKER = re.compile(rf"\[ ?(?:(?:\w+,? ){{0,3}}(?:{_SOUND})(?:,? \w+){{0,3}}|{_NOTE}|{_SCENE})\.? ?\]", re.IGNORECASE)
_BETWEEN_DASHES = re.compile(rf"(—|--)(?:[ \t]*(?:{_MARKER.pattern}[ \t]*)+(?:—|--))+", re.IGNORECASE)
_WITH_SPACE = re.compile(rf"(?:^{_MARKER.pattern}[ \t]*|[ \t]*{_MARKER.pattern})", re.IGNORECASE | re.MULTILINE)
_ONE_SOUND = re.compile(rf"\[(?:{_SOUND})\]", re.IGNORECASE)
# "Alejandro [Alejandra; White House correction]" -> "Alejandro [Alejandra]": only the attribution is removed.
_CORRECTION = re.compile(r"(?<=[^\[\]]); White House correction(?=\])")

# Only the names of HTML elements count as tags, so that "a < b and c > d" and "<stdio.h>" stay.
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

_SPACES = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]")


def resolved(settings: config.Clean, *, transcripts: bool) -> config.Clean:
    """The settings for one source: `directions=None` removes stage directions if its documents are transcripts."""
    return settings if settings.directions is not None else replace(settings, directions=transcripts)


def clean(text: str, settings: config.Clean) -> tuple[str, Counter[str]]:
    """The cleaned text, and the number of changes by their names in COUNTED, without zeros."""
    counts: Counter[str] = Counter()
    if settings.unicode:
        repaired = repair(text)
        counts["repaired"] += repaired != text
        text = repaired
    if settings.width:
        pattern, plain = _widths()
        text, counts["width"] = pattern.subn(lambda match: plain[ord(match[0])], text)
    if settings.markup:
        text, found = markup(text)
        counts += found
    if settings.directions:
        text, found = directions(text)
        counts += found
    if settings.spaces:
        text, found = spaces(text)
        counts += found
    if settings.unicode:
        text = unicodedata.normalize("NFC", text)  # again, because an entity may stand for any character
    return text, +counts


def repair(text: str) -> str:
    """Repairs mojibake, control characters and line ends with ftfy, and normalises to NFC.

    Quotation marks, ligatures, full-width letters and the ideographic space (U+3000) stay as they are. NFC also merges
    characters that Unicode declares equivalent although fonts may draw them differently: compatibility ideographs, as in some
    Japanese names, become the unified ones (U+FA19 -> U+795E), and the angstrom sign becomes a letter (U+212B -> U+00C5).
    """
    import ftfy

    settings = ftfy.TextFixerConfig(
        unescape_html=False,
        uncurl_quotes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        normalization="NFC",
        explain=False,
    )
    return ftfy.fix_text(text, settings)


@functools.cache
def _widths() -> tuple[re.Pattern[str], dict[int, str]]:
    """A pattern of full-width and half-width forms and Latin ligatures, and ftfy's table of the plain characters for each."""
    from ftfy.chardata import LIGATURES, WIDTH_MAP

    plain = LIGATURES | WIDTH_MAP
    return re.compile(f"[{''.join(map(chr, plain))}]"), plain


def markup(text: str) -> tuple[str, Counter[str]]:
    """Removes HTML tags and replaces entities by their characters; returns the text and the counts. Only the names of HTML
    elements count as tags.

    "<p>Fish &amp; chips</p>" -> "Fish & chips"
    """
    counts: Counter[str] = Counter()
    if "<" in text:
        for pattern, replacement in ((_HIDDEN_TAG, ""), (_BREAK_TAG, "\n"), (_BLOCK_TAG, "\n\n"), (_INLINE_TAG, "")):
            text, n = pattern.subn(replacement, text)
            counts["tag"] += n
    if "&" in text:

        def unescape(match: re.Match[str]) -> str:
            plain = html.unescape(match[0])
            counts["entity"] += plain != match[0]
            return plain

        text = _ENTITY.sub(unescape, text)
    if counts["tag"]:
        text, counts["space"] = trim(text)
    return text, +counts


def directions(text: str) -> tuple[str, Counter[str]]:
    """Removes a transcript's stage directions; returns the text and the counts. Brackets with other words ([the States],
    [1833]) are text and stay, and so does a single word for a sound in the middle of a sentence ("the [music] of our time").

    "works. [Applause] Let's"  -> "works. Let's"
    "top 1—[applause]—yes"     -> "top 1—yes"
    """
    counts: Counter[str] = Counter()
    if "[" not in text:
        return text, counts

    def between_dashes(match: re.Match[str]) -> str:
        counts["marker"] += len(_MARKER.findall(match[0]))
        return match[1]

    def with_space(match: re.Match[str]) -> str:
        if _ONE_SOUND.fullmatch(match[0].strip()) and _within_sentence(match):
            return match[0]
        counts["marker"] += 1
        return ""

    text = _WITH_SPACE.sub(with_space, _BETWEEN_DASHES.sub(between_dashes, text))
    text, counts["correction"] = _CORRECTION.subn("", text)
    if counts["marker"]:
        text, counts["space"] = trim(text)
    return text, +counts


def _within_sentence(match: re.Match[str]) -> bool:
    """Whether the match follows a word or a comma on its line and precedes a lower-case letter or a comma."""
    before, after = match.string[: match.start()].rstrip(" \t")[-1:], match.string[match.end() :].lstrip(" \t")[:1]
    return (before.isalnum() or before in {",", ";"}) and (after.islower() or after in {",", ";"})


def spaces(text: str) -> tuple[str, Counter[str]]:
    """Replaces typographic spaces by ordinary ones and runs of spaces within a line by one, then trims; returns the text and
    the counts. Indentation stays."""
    text, typographic = _SPACES.subn(" ", text)
    text, runs = re.subn(r"(?<=\S)[ \t]{2,}(?=\S)", " ", text)
    text, ends = trim(text)
    return text, +Counter({"space": typographic + runs + ends})


def trim(text: str) -> tuple[str, int]:
    """Removes spaces at line ends, all but one of several empty lines, and newlines at both ends of the text; returns the text
    and the number of changes."""
    lines = text.split("\n")
    trimmed = [line.rstrip(" \t") for line in lines]
    trailing = sum(len(a) != len(b) for a, b in zip(lines, trimmed, strict=True))
    text, empty = re.subn(r"\n{3,}", "\n\n", "\n".join(trimmed))
    stripped = text.strip("\n")
    return stripped, trailing + empty + (stripped != text)
