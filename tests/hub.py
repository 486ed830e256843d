"""A Hugging Face hub on loopback, for the real clients: repo info, tree with pages, resolve with redirect,
ranges; and every way to misbehave.

    hub = Hub()                               # with Hub() as hub: ...
    hub.add("org/name", {"train/a.jsonl": b"..."})
    hub.faults.append(Fault("resolve", status=429, retry_after=1, times=3))

Files of 1 KiB and more are LFS files (their SHA-256 is in the tree, and `resolve` redirects to /cdn), smaller
ones are git blobs, as on the hub. The server binds 127.0.0.1 and a port the system chooses.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, quote, unquote, urlsplit

LFS_FROM = 1024
PAGE = 1000


@dataclass
class Fault:
    """What goes wrong, where, and how often.

    kind: "info", "tree", "resolve" (headers and redirect) or "body" (the bytes themselves, at /cdn or
    resolve). match: part of the file's path. times: how often it happens (None: always). status, retry_after,
    error_code: the answer. cut_at: bytes of the body after which the connection is cut. corrupt_at: offset of
    a flipped bit. trickle: bytes a second. ignore_range: answer 200 with everything. stall: seconds of
    silence in mid-body. extra: bytes sent beyond the end.
    """

    kind: str
    match: str = ""
    times: int | None = 1
    status: int | None = None
    retry_after: str | None = None
    error_code: str | None = None
    cut_at: int | None = None
    corrupt_at: int | None = None
    trickle: float | None = None
    ignore_range: bool = False
    stall: float | None = None
    extra: int = 0
    garbage: bytes | None = None

    def applies(self, kind: str, path: str) -> bool:
        """Whether it strikes now; counts it if so."""
        if self.kind != kind or self.match not in path or self.times == 0:
            return False
        if self.times is not None:
            self.times -= 1
        return True


@dataclass
class Repository:
    """Commits of one data set, oldest first: (commit id, path -> bytes)."""

    commits: list[tuple[str, dict[str, bytes]]] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)  # name -> commit id, besides main
    gated: bool = False
    private: bool = False
    fake_tree: list[dict[str, Any]] | None = None  # what `tree` says instead of the truth


@dataclass
class Request:
    """One request, as it came."""

    method: str
    path: str
    range: str | None
    authorized: bool
    time: float


class Hub:
    """The server; a context manager."""

    def __init__(self, *, rate: float | None = None, token: str = "hf_test") -> None:
        """rate: bytes a second of all bodies together."""
        self.repositories: dict[str, Repository] = {}
        self.blobs: dict[str, bytes] = {}
        self.uploads: dict[str, bytes] = {}  # large files that were put, by SHA-256
        self._entries: dict[
            tuple[str, int], dict[str, Any]
        ] = {}  # by the bodies' ids: `repositories` keeps the bodies alive
        self.faults: list[Fault] = []
        self.requests: list[Request] = []
        self.rate = rate
        self.token = token
        self.bytes_sent = 0
        self.lock = threading.Lock()
        self._budget_at = time.monotonic()
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = _Server(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        """For HF_ENDPOINT."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def add(
        self, repository: str, files: Mapping[str, bytes], *, gated: bool = False, private: bool = False
    ) -> str:
        """A new commit that holds `files`; returns its id."""
        entry = self.repositories.setdefault(repository, Repository())
        entry.gated, entry.private = gated, private
        digest = hashlib.sha1(
            repr(
                (
                    repository,
                    len(entry.commits),
                    sorted((n, hashlib.sha1(b).hexdigest()) for n, b in files.items()),
                )
            ).encode()
        )
        entry.commits.append((digest.hexdigest(), dict(files)))
        for path, body in files.items():
            entry_of = self.entry(path, body)
            self.blobs[entry_of["lfs"]["oid"] if "lfs" in entry_of else hashlib.sha256(body).hexdigest()] = (
                body
            )
        return digest.hexdigest()

    def entry(self, path: str, body: bytes) -> dict[str, Any]:
        """What `tree` says of a file; hashed once."""
        known = self._entries.get((path, id(body)))
        if known is None:
            known = self._entries[path, id(body)] = _entry(path, body)
        return known

    def count(self, part: str, method: str | None = None) -> int:
        """Requests whose path holds `part`."""
        return sum(part in request.path and method in (None, request.method) for request in self.requests)

    def fault(self, kind: str, path: str) -> Fault | None:
        """The first fault that strikes now."""
        with self.lock:
            return next((fault for fault in self.faults if fault.applies(kind, path)), None)

    def throttle(self, amount: int) -> None:
        """Wait as long as `amount` bytes take at the hub's rate, all connections together."""
        if self.rate is None:
            return
        with self.lock:
            now = time.monotonic()
            self._budget_at = max(self._budget_at, now - 0.02) + amount / self.rate
            wait = self._budget_at - now
        if wait > 0:
            time.sleep(wait)


class _Server(ThreadingHTTPServer):
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"
    timeout = 30
    disable_nagle_algorithm = (
        True  # headers and body are two writes; waiting for the client's ACK between them costs 40 ms
    )

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._take()

    def do_PUT(self) -> None:
        self._take()

    def _take(self) -> None:
        """What an upload asks for: a repository, where each file goes, large files, a commit."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub, path = self.hub, urlsplit(self.path).path
        with hub.lock:
            hub.requests.append(Request(self.command, path, None, True, time.monotonic()))
        if self._struck("upload", path):
            return
        if match := re.fullmatch(r"/upload/([0-9a-f]{64})", path):
            assert hashlib.sha256(body).hexdigest() == match[1]
            hub.uploads[match[1]] = body
            self._send(200, b"", {})
            return
        if self.headers.get("Authorization") != f"Bearer {hub.token}":
            self._refuse(401)
        elif path == "/api/repos/create":
            value = json.loads(body)
            name = f"{value['organization']}/{value['name']}"
            status = 409 if name in hub.repositories else 200
            if status == 200:
                hub.add(name, {".gitattributes": b""}, private=bool(value.get("private")))
            answer = json.dumps({"url": f"{hub.url}/datasets/{name}"}).encode()
            self._send(status, answer, {"Content-Type": "application/json"})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif re.fullmatch(r"/api/datasets/[^/]+/[^/]+/preupload/main", path):
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["size"] >= LFS_FROM else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            self._json({"files": modes})
        elif re.fullmatch(r"/datasets/[^/]+/[^/]+\.git/info/lfs/objects/batch", path):
            objects = [
                {**one, "actions": {"upload": {"href": f"{hub.url}/upload/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            self._json({"transfer": "basic", "objects": objects})
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/commit/main", path):
            self._commit(match[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._refuse(404)

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        files = dict(self.hub.repositories[name].commits[-1][1])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.uploads[value["oid"]]
        commit = self.hub.add(name, files)
        self._json({"commitUrl": f"{self.hub.url}/datasets/{name}/commit/{commit}", "commitOid": commit})

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        path = parts.path
        authorized = self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        with self.hub.lock:
            self.hub.requests.append(
                Request(
                    self.command,
                    path,
                    self.headers.get("Range"),
                    "Authorization" in self.headers,
                    time.monotonic(),
                )
            )
        if match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self._info(match[1], unquote(match[2] or "main"), authorized)
        elif match := re.fullmatch(r"/api/datasets/([^/]+/[^/]+)/tree/([^/]+)(?:/(.+))?", path):
            self._tree(
                match[1], unquote(match[2]), unquote(match[3] or ""), parse_qs(parts.query), authorized
            )
        elif match := re.fullmatch(r"/(?:datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve(match[1], unquote(match[2]), unquote(match[3]), authorized)
        elif match := re.fullmatch(r"/cdn/([0-9a-f]{64})/(.+)", path):
            self._body(self.hub.blobs[match[1]], f'"{match[1]}"', unquote(match[2]), {})
        elif match := re.fullmatch(
            r"/plain/([^/]+/[^/]+)/(.+)", path
        ):  # a bare web server with the newest commit
            _, files = self.hub.repositories[match[1]].commits[-1]
            body = files.get(unquote(match[2]))
            if body is None:
                self._refuse(404)
            else:
                self._body(body, f'"{hashlib.md5(body).hexdigest()}"', unquote(match[2]), {})
        else:
            self._refuse(404)

    def _find(
        self, name: str, revision: str, authorized: bool
    ) -> tuple[Repository, str, dict[str, bytes]] | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not authorized):
            self._refuse(401 if not authorized else 404, "RepoNotFound")
            return None
        for commit, files in reversed(repository.commits):
            if revision in ("main", commit) or repository.refs.get(revision) == commit:
                return repository, commit, files
        self._refuse(404, "RevisionNotFound")
        return None

    def _struck(self, kind: str, path: str) -> bool:
        fault = self.hub.fault(kind, path)
        if fault is None:
            return False
        if fault.stall is not None:
            time.sleep(fault.stall)
        if fault.garbage is not None:
            self._send(200, fault.garbage, {"Content-Type": "application/json"})
            return True
        if fault.status is not None:
            self._refuse(fault.status, fault.error_code, fault.retry_after)
            return True
        return False

    def _info(self, name: str, revision: str, authorized: bool) -> None:
        if self._struck("info", name):
            return
        found = self._find(name, revision, authorized)
        if found:
            repository, commit, files = found
            siblings = [{"rfilename": path} for path in sorted(files)]
            gated: Any = "auto" if repository.gated else False
            value = {
                "_id": "1",
                "id": name,
                "sha": commit,
                "private": repository.private,
                "gated": gated,
                "disabled": False,
                "tags": [],
                "siblings": siblings,
            }
            self._json(value)

    def _tree(
        self, name: str, revision: str, folder: str, query: dict[str, list[str]], authorized: bool
    ) -> None:
        if self._struck("tree", f"{name}/{folder}"):
            return
        found = self._find(name, revision, authorized)
        if found is None:
            return
        repository, _, files = found
        if repository.fake_tree is not None:
            entries = repository.fake_tree
        else:
            inside = {
                path: body for path, body in files.items() if not folder or path.startswith(folder + "/")
            }
            if folder and not inside:
                self._refuse(404, "EntryNotFound")
                return
            entries = [self.hub.entry(path, body) for path, body in sorted(inside.items())]
            folders = sorted({path.rpartition("/")[0] for path in inside} - {""})
            entries = [
                {"type": "directory", "oid": "0" * 40, "size": 0, "path": path} for path in folders
            ] + entries
        start = int(query.get("cursor", ["0"])[0])
        headers = {}
        if start + PAGE < len(entries):
            place = f"{self.hub.url}{quote(urlsplit(self.path).path, safe='/%')}?recursive=True&cursor={start + PAGE}"
            headers["Link"] = f'<{place}>; rel="next"'
        self._json(entries[start : start + PAGE], headers)

    def _resolve(self, name: str, revision: str, path: str, authorized: bool) -> None:
        if self._struck("resolve", path):
            return
        found = self._find(name, revision, authorized)
        if found is None:
            return
        repository, commit, files = found
        if repository.gated and not authorized:
            self._refuse(401, "GatedRepo")
            return
        if path not in files:
            self._refuse(404, "EntryNotFound")
            return
        body = files[path]
        headers = {"X-Repo-Commit": commit}
        if len(body) >= LFS_FROM:
            sha256 = self.hub.entry(path, body)["lfs"]["oid"]
            headers |= {"X-Linked-Size": str(len(body)), "X-Linked-Etag": f'"{sha256}"'}
            headers["Location"] = (
                f"{self.hub.url.replace('127.0.0.1', 'localhost')}/cdn/{sha256}/{quote(path)}"
            )
            self._send(302, b"", headers)
        else:
            self._body(body, f'"{git_hash(body)}"', path, headers)

    def _body(self, body: bytes, etag: str, path: str, headers: dict[str, str]) -> None:
        headers = headers | {
            "ETag": etag,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        if self.command == "HEAD":
            self._send(200, body, headers)
            return
        fault = self.hub.fault("body", path)
        if fault is not None and fault.status is not None:
            self._refuse(fault.status, fault.error_code, fault.retry_after)
            return
        start, status = 0, 200
        asked = self.headers.get("Range")
        if asked and not (fault is not None and fault.ignore_range):
            match = re.fullmatch(r"bytes=(\d+)-(\d*)", asked)
            assert match is not None, asked
            start = int(match[1])
            if start >= len(body):
                self._refuse(416)
                return
            status = 206
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
        data = body
        if fault is not None and fault.corrupt_at is not None:
            at = fault.corrupt_at % len(body)
            data = body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]
        extra = fault.extra if fault is not None else 0
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(data) - start + extra))
        self.end_headers()
        end = len(data) if fault is None or fault.cut_at is None else min(len(data), max(start, fault.cut_at))
        step = 2**16
        if fault is not None and fault.trickle is not None:
            step = max(1, int(fault.trickle / 20))
        if fault is not None and fault.stall is not None:
            step = max(1, (end - start) // 2)
        for position in range(start, end, step):
            piece = data[position : min(end, position + step)]
            self.hub.throttle(len(piece))
            self.wfile.write(piece)
            with self.hub.lock:
                self.hub.bytes_sent += len(piece)
            if fault is not None and fault.trickle is not None:
                time.sleep(len(piece) / fault.trickle)
            if fault is not None and fault.stall is not None:
                self.wfile.flush()
                time.sleep(fault.stall)
        if extra:
            self.wfile.write(b"\0" * extra)
        if end < len(data):
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()

    def _refuse(self, status: int, code: str | None = None, retry_after: str | None = None) -> None:
        headers = {"X-Error-Message": f"refused with {status}"}
        if code:
            headers["X-Error-Code"] = code
        if retry_after is not None:
            headers["Retry-After"] = retry_after
        self._send(status, json.dumps({"error": f"refused with {status}"}).encode(), headers)

    def _json(self, value: Any, headers: dict[str, str] | None = None) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def git_hash(body: bytes) -> str:
    """The id git gives to a file."""
    return hashlib.sha1(b"blob %d\0" % len(body) + body).hexdigest()


def _entry(path: str, body: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": git_hash(body), "size": len(body), "path": path}
    if len(body) >= LFS_FROM:
        entry["lfs"] = {"oid": hashlib.sha256(body).hexdigest(), "size": len(body), "pointerSize": 134}
    return entry
