"""Removes secrets from text that others may read: logs, manifests, reports and error messages."""

import re
from collections.abc import Iterable, Iterator

# Words that mark a name as secret. They match whole words only: "HF_TOKEN" and "--api-key", but not "tokenizer".
NAMES = (
    "key|apikey|token|secret|secrets|pass|passwd|password|passphrase|pwd|pat|auth|authorization|credential|credentials|cookie"
)
NAMES += "|signature|bearer"
NAMED = re.compile(rf"(?:.*[_.\-])?(?:{NAMES})(?:[_.\-].*)?", re.IGNORECASE)
ANYWHERE = re.compile(
    "KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL"
)  # in names of environment variables, which may lack separators ("ACCESSTOKEN")
SHAPES = (  # each match is replaced by its first group and "(redacted)"
    re.compile(r"(\b[a-zA-Z][\w+.-]*://)[^/\s'\"]*(?=@)"),  # https://user:password@host
    re.compile(r"(\bbearer\s+|\bauthorization['\"]?\s*[:=]\s*['\"]?basic\s+)[\w.~+/=-]{8,}", re.IGNORECASE),
    re.compile(r"([?&](?:[\w-]+[_-])?(?:key|token|sig|signature|secret|password|credential|auth)=)[^&\s'\"]+", re.IGNORECASE),
    re.compile(r"()\b(?:hf_|gh[opsur]_|github_pat_|glpat-|sk-|xox[abeprs]-|npm_|pypi-)[\w-]{12,}"),
    re.compile(r"()\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"),  # AWS
    re.compile(r"()\bAIza[\w-]{30,}"),  # Google
    re.compile(r"()\bya29\.[\w-]{12,}"),
    re.compile(r"()\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"),  # a JSON web token
    re.compile(r"()-----BEGIN [A-Z ]*PRIVATE KEY-----(?:.|\n)*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)"),
)
GONE = "(redacted)"


def redacted(text: str) -> str:
    """Returns the text with everything that looks like a secret replaced by "(redacted)": credentials in URLs and headers,
    and keys of known services."""
    for shape in SHAPES:
        text = shape.sub(rf"\g<1>{GONE}", text)
    return text


def redacted_value(name: str, value: str) -> str:
    """Returns the redacted value of an environment variable or flag, just "(redacted)" if its name is that of a secret."""
    return GONE if NAMED.fullmatch(name) else redacted(value)


def redacted_command(words: Iterable[str]) -> list[str]:
    """Returns a redacted command line. Values of flags with a secret name are hidden in `--token=x` and in `--token x`."""

    def each() -> Iterator[str]:
        secret = False  # whether the word is the value of a secret flag before it
        for word in words:
            name, equals, value = word.partition("=")
            if secret and not word.startswith("-"):
                yield GONE
            else:
                yield f"{name}={redacted_value(name, value)}" if equals and re.fullmatch(r"[\w.-]+", name) else redacted(word)
            secret = word.startswith("-") and not equals and NAMED.fullmatch(name) is not None

    return list(each())


def redacted_environment(variables: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Returns {name: redacted value} of environment variables, stricter on names than `redacted_value`."""
    return {name: GONE if ANYWHERE.search(name.upper()) else redacted_value(name, value) for name, value in variables}
