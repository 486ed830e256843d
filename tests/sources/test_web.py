"""Files on plain web servers, well-meaning and otherwise."""

from __future__ import annotations

import gzip
import json
import logging
import pickle
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from btlm_data.errors import BtlmError, ConfigError, SourceUnavailable
from btlm_data.recipe.models import Run, SourceSettings
from btlm_data.sources.fetch import Fetcher
from btlm_data.sources.listing import list_files
from tests.hub import Hub
from tests.sources.test_end_to_end import prepare

RunMaker = Callable[..., Run]
RECORDS = b"".join(json.dumps({"text": f"document {n}"}).encode() + b"\n" for n in range(30))
PACKED = gzip.compress(RECORDS)
SECRET = "SECRETKEY0123"


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        name, _, query = self.path[1:].partition("?")
        headers: dict[str, str] = {}
        status, body = 200, PACKED if name.endswith(".gz") else RECORDS
        if name.startswith("signed") and query != f"X-Amz-Signature={SECRET}":
            status = 403
        if name == "encoded.jsonl.gz":
            headers["Content-Encoding"] = "gzip"
        if name == "encoded.jsonl":
            headers["Content-Encoding"], body = "gzip", PACKED
        if name == "on-the-fly.jsonl" and "gzip" in self.headers.get("Accept-Encoding", ""):
            headers["Content-Encoding"], body = "gzip", PACKED
        if name == "login.jsonl":
            headers["Content-Type"], body = "text/html; charset=utf-8", b"<html>Sign in</html>"
        if name in ("gone.jsonl", "five.jsonl") and self.command == "GET":
            status = 404 if name == "gone.jsonl" else 500
        length = len(body) + (50 if name == "short.jsonl" else 0)
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[str]:
    from btlm_data.sources.http import close_web_session

    with ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as httpd:
        threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_address[1]}"
        httpd.shutdown()
        close_web_session()


@pytest.mark.parametrize(
    ("name", "compression", "stored"),
    [
        ("plain.jsonl", "none", RECORDS),
        ("plain.jsonl.gz", "gzip", PACKED),
        ("encoded.jsonl.gz", "gzip", PACKED),  # stored as .gz, and the server says so once more
        ("encoded.jsonl", "gzip", PACKED),  # stored compressed under a plain name
        ("on-the-fly.jsonl", "none", RECORDS),
    ],
)
def test_the_stored_bytes_are_meant(
    server: str, make_run: RunMaker, name: str, compression: str, stored: bytes
) -> None:
    run = make_run()
    (file,) = list_files(SourceSettings(name=f"{server}/{name}"), run).files
    assert (file.name, file.size, file.compression) == (name, len(stored), compression)
    with Fetcher.of(run).local_copy(file) as path:
        assert path.read_bytes() == stored


@pytest.mark.parametrize(
    ("page", "source"),
    [
        ("https://huggingface.co/datasets/allenai/c4", "hf://datasets/allenai/c4"),
        ("https://huggingface.co/datasets/allenai/c4/tree/main/en", "hf://datasets/allenai/c4/en"),
        ("https://hf.co/datasets/o/n/blob/v1/x.jsonl", "hf://datasets/o/n@v1/x.jsonl"),
        ("https://huggingface.co/datasets/o/n/viewer", "hf://datasets/o/n"),
    ],
)
def test_a_page_about_a_data_set_is_not_the_data(page: str, source: str) -> None:
    with pytest.raises(ConfigError, match=f"Write --source {re.escape(source)}."):
        list_files(SourceSettings(name=page), Run())


def test_a_login_page_is_no_corpus(server: str, make_run: RunMaker) -> None:
    with pytest.raises(SourceUnavailable, match=r"web page.*login"):
        list_files(SourceSettings(name=f"{server}/login.jsonl"), make_run())


def test_a_signature_is_used_and_never_shown(
    server: str, make_run: RunMaker, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "btlm_data")
    run = make_run(retries=1)
    settings = SourceSettings(name=f"{server}/signed.jsonl?X-Amz-Signature={SECRET}")
    listing = list_files(settings, run)
    (file,) = listing.files
    fetcher = pickle.loads(pickle.dumps(Fetcher.of(run, listing)))
    with fetcher.local_copy(file) as path:
        assert path.read_bytes() == RECORDS
    for told in (
        file.to_json(),
        file.identity,
        dict(listing.provenance),
        settings.model_dump(mode="json"),
        fetcher,
    ):
        assert SECRET not in repr(told)
    for name in ("gone", "five", "short", "signed2"):
        with pytest.raises(BtlmError) as caught:
            run_one(f"{server}/{name}.jsonl?X-Amz-Signature={SECRET}{'x' if name == 'signed2' else ''}", run)
        assert SECRET not in str(caught.value)
    assert SECRET not in caplog.text


def run_one(url: str, run: Run) -> None:
    listing = list_files(SourceSettings(name=url), run)
    with Fetcher.of(run, listing).local_copy(listing.files[0]):
        pass


def test_no_file_of_a_run_holds_the_signature_and_a_new_one_continues_it(server: str, tmp_path: Path) -> None:
    out, texts = tmp_path / "shards", {"cache_dir": str(tmp_path / "cache"), "clean.min_chars": 0}

    def prepare_signed(signature: str) -> dict[str, str]:
        source = f"{server}/plain.jsonl.gz?X-Amz-Signature={signature}"
        return prepare(source, out, **texts, emit_text=str(tmp_path / "text"))

    first = prepare_signed(f"{SECRET}1")
    modified = (out / "dataset.json").stat().st_mtime_ns
    assert prepare_signed(f"{SECRET}2") == first
    assert (out / "dataset.json").stat().st_mtime_ns == modified  # nothing was to be done
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    for path in files:
        assert SECRET not in path.name
        assert SECRET.encode() not in path.read_bytes(), path


@pytest.fixture
def silent() -> Iterator[str]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("place", ["hf://datasets/org/data", "URL/x.jsonl", "URL/folder/"])
@pytest.mark.parametrize("how", ["refused", "silent", "no such host"])
def test_what_cannot_be_reached_is_said_within_ten_seconds(
    place: str,
    how: str,
    silent: str,
    hub: Hub,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    url = {"refused": "http://127.0.0.1:9", "silent": silent, "no such host": "http://no.such.host.invalid"}[
        how
    ]
    monkeypatch.setenv("HF_ENDPOINT", url)
    begin = time.monotonic()
    with pytest.raises(SourceUnavailable, match="cannot be reached") as caught:
        list_files(SourceSettings(name=place.replace("URL", url)), Run())
    assert time.monotonic() - begin < 10
    assert len(str(caught.value).splitlines()) == 1
    # by the data set's name: a listing that another test gave up may still be asking a port that is ours now
    said = [record.getMessage() for record in caplog.records]
    assert not [text for text in said if url in text and ("org/data" in text or "/api/" not in text)]
