"""A server with the addresses of OpenAI's: /models, /chat/completions and /embeddings, asked with the standard library."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lm import untrusted
from lm.errors import UserError

LARGEST = 64 * 2**20  # bytes of an answer
AGAIN = (429, 503)  # codes of a server that is busy
TRIES, LONGEST_WAIT = 5, 60.0  # times that a busy server is asked; seconds between them at most
SETTINGS = {  # of `lm.config.Sampling` -> of a request
    "temperature": "temperature",
    "top_p": "top_p",
    "frequency": "frequency_penalty",
    "presence": "presence_penalty",
    "seed": "seed",
}


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The token is for the given address alone."""

    def redirect_request(self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, newurl: Any) -> None:
        return None


class Server:
    """address: of the API, such as http://127.0.0.1:8000/v1
    token: the API key; None: none is sent
    model: the name of one; None: the first that the server lists
    """

    def __init__(self, address: str, *, token: str | None, model: str | None, timeout: float) -> None:
        parts = urllib.parse.urlsplit(address)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"--server={address} is no address; give one such as http://127.0.0.1:8000/v1")
        self.address, self.token, self.timeout = address.rstrip("/"), token, timeout
        proxies = [urllib.request.ProxyHandler({})] if untrusted.is_loopback(parts.hostname) else []
        self._opener = urllib.request.build_opener(_NoRedirects, *proxies)
        self.model = model or self._first()

    def answer(self, messages: Sequence[Mapping[str, str]], new_tokens: int, settings: Mapping[str, Any]) -> str:
        """The answer to a conversation. UserError for settings of sampling that no such server knows."""
        if unknown := sorted(settings.keys() - SETTINGS.keys()):
            raise UserError(f"--{unknown[0]} is not known to a server: leave it out")
        asked: dict[str, Any] = dict(model=self.model, messages=list(messages), max_tokens=new_tokens)
        asked |= {SETTINGS[name]: value for name, value in settings.items()}
        found = self._of("chat/completions", self._call("chat/completions", asked), "choices", 0, "message", "content")
        if not isinstance(found, str):
            raise UserError(f"{self.address}/chat/completions gave an answer without a text; take another model")
        return found.strip()

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """float32 [N, D], not normalised."""
        data = self._of("embeddings", self._call("embeddings", dict(model=self.model, input=list(texts))), "data")
        try:
            rows = {entry["index"]: entry["embedding"] for entry in data}
            found = np.array([rows[i] for i in range(len(texts))], np.float32)
        except (KeyError, TypeError, ValueError):
            found = np.zeros(0, np.float32)
        if found.ndim != 2 or not np.isfinite(found).all():
            raise UserError(f"{self.address}/embeddings gave no vector for each text; give --embedder=FOLDER")
        return found

    def _first(self) -> str:
        found = self._of("models", self._call("models"), "data", 0, "id")
        return str(found)

    def _of(self, path: str, answer: Mapping[str, Any], *where: str | int) -> Any:
        found: Any = answer
        for key in where:
            try:
                found = found[key]
            except (KeyError, IndexError, TypeError):
                name = ".".join(map(str, where))
                raise UserError(
                    f"{self.address}/{path} gave an answer without {name}; is it an OpenAI-compatible API?"
                ) from None
        return found

    def _call(self, path: str, asked: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """The JSON object that the server answers with; `asked` is posted."""
        address = f"{self.address}/{path}"
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.token}"} if self.token else {})
        body = None if asked is None else json.dumps(asked).encode()
        for tried in range(1, TRIES + 1):
            try:
                request = urllib.request.Request(address, body, headers)
                with self._opener.open(request, timeout=self.timeout) as response:
                    data = response.read(LARGEST + 1)
                break
            except urllib.error.HTTPError as error:
                with error:
                    said = error.read(2000).decode(errors="replace")
                if error.code not in AGAIN or tried == TRIES:
                    raise UserError(f"{address} refused ({error.code}): {_reason(said)}") from None
                time.sleep(min(LONGEST_WAIT, _seconds(error.headers.get("Retry-After"), 2.0**tried)))
            except (urllib.error.URLError, OSError, ValueError) as error:
                why = getattr(error, "reason", None) or error
                raise UserError(f"{address} cannot be reached ({why}); is the server running?") from None
        if len(data) > LARGEST:
            raise UserError(f"{address} gave more than {LARGEST // 2**20} MB; is it an OpenAI-compatible API?")
        return untrusted.parse_json(data, address)


def _seconds(given: str | None, otherwise: float) -> float:
    try:
        return max(0.0, float(given or otherwise))
    except ValueError:  # a date
        return otherwise


def _reason(said: str) -> str:
    """The message in an error's JSON, or the beginning of whatever it is."""
    try:
        found = json.loads(said)
        error = found.get("error", found)
        return str(error.get("message", error) if isinstance(error, dict) else error)[:300]
    except (ValueError, AttributeError, RecursionError):
        return said[:300] or "without a reason"
