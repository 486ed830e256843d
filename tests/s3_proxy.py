"""A proxy on loopback before an S3 server that misbehaves as told: late, with errors, cut or wrong bodies."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Faults:
    """What happens to requests for objects whose path holds `match` (listings are never touched).

    latency: seconds before an answer. Each of the others says how many requests it still strikes: errors (500),
    cut (half of the body, then the end of the connection), flipped (one byte of the body is another), zeros (the
    body is nothing else). seen: (path, Range) of every request.
    """

    match: str = ".h5"
    latency: float = 0.0
    errors: int = 0
    cut: int = 0
    flipped: int = 0
    zeros: int = 0
    seen: list[tuple[str, str]] = field(default_factory=list)
    lock: Any = field(default_factory=threading.Lock)

    def strike(self, kind: str) -> bool:
        """Whether a fault happens now; it is counted."""
        with self.lock:
            left = getattr(self, kind)
            setattr(self, kind, max(0, left - 1))
            return bool(left)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """A client that goes away is no news."""


class Proxy:
    """`with Proxy(url) as proxy`: `proxy.url` leads to the server at `url`, with `proxy.faults`."""

    def __init__(self, target: str) -> None:
        self.faults = Faults()
        self._server = _Server(("127.0.0.1", 0), _handler(target, lambda: self.faults))
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Proxy:
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(target: str, faults_now: Callable[[], Faults]) -> type[BaseHTTPRequestHandler]:
    place = urlsplit(target)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            faults = faults_now()
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            strikes = self.command == "GET" and faults.match in self.path and "list-type" not in self.path
            if strikes:
                faults.seen.append((self.path, self.headers.get("Range") or ""))
                time.sleep(faults.latency)
                if faults.strike("errors"):
                    self.send_response(500)
                    self.send_header("Content-Length", "0")
                    self.end_headers()
                    return
            connection = http.client.HTTPConnection(str(place.hostname), place.port)
            headers = {key: value for key, value in self.headers.items() if key.lower() != "connection"}
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            data = bytearray(answer.read())
            connection.close()
            wrong = strikes and answer.status < 300
            if wrong and faults.strike("flipped"):
                data[len(data) // 2] ^= 0x10
            if wrong and faults.strike("zeros"):
                data = bytearray(len(data))
            self.send_response(answer.status)
            for key, value in answer.getheaders():
                if key.lower() not in ("transfer-encoding", "connection", "content-length", "date", "server"):
                    self.send_header(key, value)
            length = str(len(data)) if self.command != "HEAD" else answer.getheader("Content-Length") or "0"
            self.send_header("Content-Length", length)
            self.end_headers()
            if self.command != "HEAD":
                if wrong and faults.strike("cut"):
                    self.wfile.write(data[: len(data) // 2])
                    self.close_connection = True
                else:
                    self.wfile.write(data)

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    return Handler
