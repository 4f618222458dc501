"""Writes over personal data: e-mail addresses, public IP addresses, telephone numbers.

What stands in their place is reserved and nobody's (RFC 2606, RFC 5737, RFC 3849; numbers from 555-0100 on are for fiction), so
that a text keeps its form, and a second pass changes nothing. It is a matter of patterns: a version such as 1.2.3.4 is taken
for an address, and a name and a street are not found.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable, Sequence

EMAIL, IP4, IP6, PHONE = "email@example.com", "192.0.2.1", "2001:db8::1", "555-0100"

# Parts no longer than mail takes (RFC 5321, section 4.5.3.1), or a long line without spaces would be searched from each word.
_EMAIL = re.compile(r"\b[\w.!#$%&'*+/=?^`{|}~-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}\b")
_IP4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?!\.?\w)")
_IP6 = re.compile(r"(?<![\w:.])[23][0-9A-Fa-f]{3}(?::[0-9A-Fa-f]{0,4}){2,7}(?![\w:])")  # global ones: 2000::/3
# +49 30 901820, +1 (202) 456-1414; and North American numbers without +: (202) 456-1414, 202-456-1414, 1-202-456-1414
_PHONE = re.compile(
    r"(?<![\w+])\+\d{1,3}(?:[ .-]?\(?\d{1,4}\)?){2,5}(?![\w-])"
    r"|(?<![\w+(./-])(?:1[ .-])?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}(?![\w-])"
)


def redact(text: str, kinds: Sequence[str]) -> tuple[str, Counter[str]]:
    """The text without personal data of these kinds (email, ip, phone), and how many of each were written over.

    "Call 202-456-1414 or write to me@home.org" -> "Call 555-0100 or write to email@example.com"
    """
    counts: Counter[str] = Counter()
    if "email" in kinds and "@" in text:
        text = _replaced(
            _EMAIL, text, lambda found: found if found.endswith(("@example.com", "@example.org")) else EMAIL, "email", counts
        )
    if "ip" in kinds:
        text = _replaced(_IP4, text, lambda found: _reserved(found, IP4), "ip", counts)
        if "::" in text or text.count(":") > 6:
            text = _replaced(_IP6, text, lambda found: _reserved(found, IP6), "ip", counts)
    if "phone" in kinds:
        text = _replaced(_PHONE, text, _phone, "phone", counts)
    return text, +counts


def _replaced(pattern: re.Pattern[str], text: str, by: Callable[[str], str], kind: str, counts: Counter[str]) -> str:
    def replace(match: re.Match[str]) -> str:
        new = by(match[0])
        counts[kind] += new != match[0]
        return new

    return pattern.sub(replace, text)


def _reserved(found: str, instead: str) -> str:
    """`instead` of a public address; any other, such as 127.0.0.1, tells nothing of anyone."""
    try:
        return instead if ipaddress.ip_address(found).is_global else found
    except ValueError:
        return found


def _phone(found: str) -> str:
    """A number has 7 to 15 digits (ITU-T E.164)."""
    return PHONE if 7 <= sum(map(str.isdigit, found)) <= 15 else found
