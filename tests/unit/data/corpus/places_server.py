"""A web server and a hub of data sets, for sources that are read by their URL: bytes in ranges, from a folder."""

import contextlib
import json
import re
import threading
from collections.abc import Generator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


@dataclass
class Server:
    folder: Path
    url: str = ""
    ranges: bool = True  # answers to them
    stamps: bool = True  # tells an ETag
    fails: bool = False  # with 503
    asked: list[tuple[str, str, int]] = field(default_factory=list)  # method, path, bytes sent


@contextlib.contextmanager
def serving(folder: Path) -> Generator[Server]:
    server = Server(folder)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"served": server}))
    httpd.daemon_threads = True
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{httpd.server_address[1]}"
    try:
        yield server
    finally:
        httpd.shutdown()
        httpd.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    served: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two packets

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if self.served.fails:
            return self._send(503, b"")
        if path.startswith("/api/datasets/"):
            return self._hub(path)
        path = re.sub(r"^/datasets/([^/]+/[^/]+)/resolve/[^/]+/", r"/datasets/\1/", path)
        file = self.served.folder / path.strip("/")
        if file.is_dir():
            names = [p.name + "/" * p.is_dir() for p in sorted(file.iterdir())]
            return self._send(
                200, "".join(f'<a href="{name}">{name}</a>\n' for name in names).encode(), **{"Content-Type": "text/html"}
            )
        if not file.is_file():
            return self._send(404, b"")
        raw = file.read_bytes()
        headers = {"ETag": f'"{hash(raw)}"'} if self.served.stamps else {}
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not asked or not self.served.ranges:
            return self._send(200, raw, **headers)
        start, stop = int(asked[1]), min(int(asked[2] or len(raw)) + 1, len(raw))
        if start >= len(raw):
            return self._send(416, b"")
        self._send(206, raw[start:stop], **headers, **{"Content-Range": f"bytes {start}-{stop - 1}/{len(raw)}"})

    def _hub(self, path: str) -> None:
        name, rest = re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(/.*)?", path).groups()
        folder = self.served.folder / "datasets" / name
        if not folder.is_dir():
            return self._send(404, b"", **{"X-Error-Code": "RepoNotFound"})
        if rest and rest.startswith("/tree/"):
            below = folder / rest.split("/", 3)[3] if rest.count("/") > 2 else folder
            if not below.is_dir():
                return self._send(404, b"", **{"X-Error-Code": "EntryNotFound"})
            every = below.rglob("*") if "recursive=True" in self.path or "recursive=true" in self.path else below.iterdir()
            found = [self._entry(folder, p) for p in sorted(every)]
        else:
            found = {"id": name, "sha": "0" * 40, "siblings": [], "private": False, "downloads": 0, "likes": 0, "tags": []}
        self._send(200, json.dumps(found).encode(), **{"Content-Type": "application/json"})

    def _entry(self, folder: Path, path: Path) -> dict:
        if path.is_dir():
            return {"type": "directory", "path": str(path.relative_to(folder)), "size": 0, "oid": "1" * 40}
        raw = path.read_bytes()
        return {"type": "file", "path": str(path.relative_to(folder)), "size": len(raw), "oid": f"{hash(raw) % 16**40:040x}"}

    def _send(self, code: int, body: bytes, **headers: str) -> None:
        sent = b"" if self.command == "HEAD" else body
        self.served.asked.append((self.command, self.path, len(sent)))
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.wfile.write(sent)
