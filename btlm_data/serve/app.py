"""The application: addresses and their views."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs
from xml.etree.ElementTree import Element

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from btlm_data.errors import BtlmError, DataError
from btlm_data.inspection import difference
from btlm_data.lineage import queries
from btlm_data.lineage.trace import trace
from btlm_data.pages import data_sections, report_page
from btlm_data.pages.elements import tag
from btlm_data.serve import left_out, run_state, views, views_datasets, views_runs, views_search
from btlm_data.serve.guard import Guard
from btlm_data.serve.originals import Original
from btlm_data.serve.pairs import PairDocument
from btlm_data.serve.served import Served
from btlm_data.serve.site import Site
from btlm_data.terminal import visible

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
STATIC = {
    "page.css": ("btlm_data.pages", "text/css"),
    "page.js": ("btlm_data.pages", "text/javascript"),
    "serve.css": ("btlm_data.serve", "text/css"),
    "serve.js": ("btlm_data.serve", "text/javascript"),
}
MAX_FORM = 4096  # bytes of a form
MAX_QUERY = 1000  # characters of a text that is looked for


def create(paths: Sequence[Path], *, host: str, token: str | None, run: Path | None = None) -> Guard:
    """The application that serves what is at `paths`.

    run: folder of a training run whose steps are shown, too. host: where it listens; on a loopback address only requests that name one are answered. token: see Guard.
    Raises DataError for a path that holds nothing to serve, ConfigError for a run that no trainer knows.
    """
    views_of = _Views(Site(paths, run))
    routes = [
        Route("/", views_of.page(views_of.front)),
        Route("/compare", views_of.page(views_of.compare)),
        Route("/training", views_of.page(views_of.training)),
        Route("/static/{name}", _static),
        Route("/favicon.ico", _no_icon),
        Route("/run/{k:int}", views_of.page(views_of.run)),
        Route("/{k:int}/report", views_of.page(views_of.report)),
        Route("/{k:int}/sample", views_of.page(views_of.sample)),
        Route("/{k:int}/documents", views_of.page(views_of.documents)),
        Route("/{k:int}/document", views_of.page(views_of.document)),
        Route("/{k:int}/search", views_of.page(views_of.search)),
        Route("/{k:int}/dropped", views_of.page(views_of.dropped)),
        Route("/{k:int}/record", views_of.page(views_of.record)),
        Route("/{k:int}/pairs", views_of.page(views_of.pairs)),
        Route("/{k:int}/verdicts.json", views_of.verdicts),
        Route("/{k:int}/verdict", views_of.say, methods=["POST"]),
    ]
    exceptions: dict[Any, Any] = {404: views_of.nothing}
    return Guard(
        Starlette(routes=routes, exception_handlers=exceptions), LOOPBACK if host in LOOPBACK else None, token
    )


async def _static(request: Request) -> Response:
    name = request.path_params["name"]
    if name not in STATIC:
        return PlainTextResponse("There is no such file.\n", 404)
    package, kind = STATIC[name]
    return Response(resources.files(package).joinpath(name).read_bytes(), media_type=kind)


async def _no_icon(_: Request) -> Response:
    """Nothing, which browsers ask for by themselves and would otherwise report as missing."""
    return Response(status_code=204)


Content = tuple[str, list[Element]]  # title, and what is below it


class _Views:
    """One method for each address; each gets the request and returns a title and elements."""

    def __init__(self, site: Site) -> None:
        self.site = site

    def page(self, view: Callable[[Request], Content]) -> Callable[[Request], Any]:
        """The handler of a view: it runs in a thread, and what it refuses becomes a page with the message."""

        async def answer(request: Request) -> Response:
            k = request.path_params.get("k") if not request.url.path.startswith("/run/") else None
            if k is not None and k >= len(self.site.datasets):
                return self._html("Nothing here", views.problem("There is no such dataset."), None, "", 404)
            try:
                title, content = await run_in_threadpool(view, request)
                status = 200
            except BtlmError as error:
                title, content, status = "This cannot be shown", views.problem(str(error)), 404
            return self._html(title, content, k, request.url.path, status)

        return answer

    async def nothing(self, request: Request, _: Exception) -> Response:
        """The answer to an address that no view has."""
        words = "There is no such page. Choose one above."
        return self._html("Nothing here", views.problem(words), None, "", 404)

    def _html(self, title: str, content: list[Element], k: int | None, place: str, status: int) -> Response:
        site = self.site
        entries = [(series.name, f"/{series.members[0]}/report") for series in site.series]
        entries += [(f"Run {name}", f"/run/{number}") for number, name in enumerate(site.run_names)]
        entries += [("Training order", "/training")] if site.training is not None else []
        members: Sequence[int] = ()
        if k is not None:
            members = site.series_of(k).members
            if len(members) > 1 and place != f"/{k}/search":  # a search is of all generations
                title = f"{title}, generation {members.index(k) + 1}"
        view = place.rpartition("/")[2]
        text = views.page(visible(title), content, entries, place, current=k, members=members, view=view)
        return HTMLResponse(text, status)

    def _chosen(self, request: Request) -> tuple[int, Served, str]:
        """Number, dataset and split that the address names."""
        k = request.path_params["k"]
        served = self.site.datasets[k]
        split = request.query_params.get("split") or next(iter(served.splits), "")
        served.rows(split)
        return k, served, split

    def front(self, request: Request) -> Content:
        """Everything that is served."""
        training = self.site.training.folder.name if self.site.training is not None else None
        return "Datasets", views_datasets.front(self.site, training)

    def report(self, request: Request) -> Content:
        """The report of a dataset."""
        k = request.path_params["k"]
        return self.site.series_of(k).name, report_page.content(self.site.datasets[k].report)

    def sample(self, request: Request) -> Content:
        """One sample; without a number, one at random."""
        k, served, split = self._chosen(request)
        total = served.num_samples(split)
        if not total:
            raise DataError(f"{split} has no samples.")
        chance = secrets.randbelow(total)
        number = _whole(request.query_params, "n", secrets.randbelow(total))
        if number >= total:
            raise DataError(f"{split} has {total:,} samples, numbered from 0.")
        taken = None
        if self.site.training is not None:
            taken = self.site.training.steps_of(served, split, number)
        return f"Sample {number:,} of {split}", views.sample(self.site, k, split, number, chance, taken)

    def training(self, request: Request) -> Content:
        """A step of the training run, and one of its samples; without a number, the step that comes next."""
        training = self.site.training
        if training is None:
            raise DataError("No training run is served. Name its folder with --run.")
        done = training.steps_done
        step = _whole(request.query_params, "step", max(0, done - 1))
        taken = training.step(step)
        batch_index = _whole(request.query_params, "batch_index", 0)
        if batch_index >= len(taken):
            raise DataError(f"Step {step:,} takes {len(taken):,} samples, with places from 0.")
        chosen = taken[batch_index]
        chance = secrets.randbelow(max(1, done))
        content = views_runs.training(step, done, chance, taken, chosen, self.site.names)
        if chosen.dataset is not None:
            served = self.site.datasets[chosen.dataset]
            shown = served.sample(chosen.split, chosen.number)
            manifest = served.opened.manifest
            eos = manifest.tokenizer.eos_id if manifest is not None else served.opened.eos_id
            content.append(tag("section", *data_sections.sample(shown, eos)))
            content += views.documents_of(chosen.dataset, chosen.split, shown)
        return f"Step {step:,} of {training.folder.name}", content

    def documents(self, request: Request) -> Content:
        """A list of documents."""
        k, served, split = self._chosen(request)
        query = {key: request.query_params.get(key, "")[:MAX_QUERY] for key in ("source", "file", "first")}
        first = _whole(request.query_params, "first", 0)
        rows, after = served.documents(split, source=query["source"], file=query["file"], first=first)
        return f"Documents of {split}", views.documents(k, served, split, query, rows, after)

    def document(self, request: Request) -> Content:
        """One document with the original beside it."""
        k, served, split = self._chosen(request)
        row = served.document(split, _whole(request.query_params, "row", 0))
        original = self.site.originals[k].read(row["file"], row["offset"])
        text, sample = served.document_text(split, row["row"]), served.first_sample_of(split, row["row"])
        return f"Document {row['row']:,} of {split}", views.one_document(
            k, served, split, row, text, original, sample
        )

    def search(self, request: Request) -> Content:
        """Samples that hold a text; documents by id, URL, hash or cluster."""
        k = request.path_params["k"]
        served = self.site.datasets[k]
        by = request.query_params.get("by", "text")
        value = request.query_params.get("q", "")[:MAX_QUERY]
        if by not in views_search.BY:
            raise DataError(f"Documents are looked for by {', '.join(views_search.BY)}, not by {by[:40]!r}.")
        content = views_search.form(k, by, value)
        if not value:
            return "Search", content
        try:
            if by == "text":
                began = time.perf_counter()
                hits, complete = self.site.search(k, value)
                seconds = time.perf_counter() - began
                content += views_search.hits(self.site, hits, complete, seconds)
            elif by == "cluster":
                content += views_search.cluster(k, value, left_out.members(served.opened.root, value))
            else:
                query = queries.make("id" if by == "id" else "url" if by == "url" else "hash", value)
                [answer] = trace(self.site.series_of(k).root, [query])
                content += views_search.answer(self.site, k, answer)
        except BtlmError as error:  # the form stays, so that it can be asked again
            content += views.problem(str(error))
        return "Search", content

    def dropped(self, request: Request) -> Content:
        """Documents that are in no split, by reason."""
        k = request.path_params["k"]
        opened = self.site.datasets[k].opened
        reason = request.query_params.get("reason", "")[:MAX_QUERY]
        first = _whole(request.query_params, "first", 0)
        rows, after = left_out.dropped(opened.root, reason, first)
        reasons = left_out.reasons(opened.manifest) if opened.manifest is not None else {}
        return "Left out", views_search.left_out(k, reasons, reason, rows, after)

    def record(self, request: Request) -> Content:
        """The text of a record of the source."""
        k = request.path_params["k"]
        file = request.query_params.get("file", "")
        offset = _whole(request.query_params, "offset", 0)
        original = self.site.originals[k].read(file, offset)
        return "A record of the source", views_search.record(k, file, offset, original)

    def pairs(self, request: Request) -> Content:
        """A pair of duplicates; without a number, one at random."""
        k = request.path_params["k"]
        pairs = self.site.pairs(k)
        if not len(pairs):
            raise DataError("No document was dropped as a duplicate, or there is no removals.parquet.")
        number = _whole(request.query_params, "n", secrets.randbelow(len(pairs)))
        if number >= len(pairs):
            raise DataError(f"There are {len(pairs):,} pairs, numbered from 0.")
        shown = pairs.pair(number)
        dropped = self.site.originals[k].read(shown.removed.file, shown.removed.offset)
        kept = Original(None, "its text is in the corpus of an earlier run")
        if shown.kept is not None:
            kept = self.site.originals[k].read(shown.kept.file, shown.kept.offset)
        chance = secrets.randbelow(len(pairs))
        return f"Duplicates, pair {number:,}", views.pair(
            k, pairs, number, (kept, dropped), self.site.verdicts[k], chance
        )

    async def say(self, request: Request) -> Response:
        """Keep a verdict, and show the next pair."""
        k = request.path_params["k"]
        form = await _form(request)
        if k >= len(self.site.datasets) or form is None or form.get("verdict") not in ("right", "wrong"):
            return PlainTextResponse("That is no verdict.\n", 400)
        total = len(self.site.pairs(k))
        pair, following = (_whole(form, key, total) for key in ("pair", "next"))
        if pair >= total or following >= total:
            return PlainTextResponse("There is no such pair.\n", 400)
        self.site.verdicts[k].say(pair, "right" if form["verdict"] == "right" else "wrong")
        return RedirectResponse(views.address(k, "pairs", n=following), 303)

    async def verdicts(self, request: Request) -> Response:
        """The verdicts so far, for programs."""
        k = request.path_params["k"]
        if k >= len(self.site.datasets):
            return PlainTextResponse("There is no such dataset.\n", 404)
        pairs, verdicts = self.site.pairs(k), self.site.verdicts[k]
        listed = []
        for number, verdict in sorted(verdicts.by_pair.items()):
            shown = pairs.pair(number)
            kept = _as_json(shown.kept) if shown.kept is not None else None
            listed.append(
                {
                    "pair": number,
                    "verdict": verdict,
                    "similarity": shown.similarity,
                    "kept": kept,
                    "dropped": _as_json(shown.removed),
                }
            )
        manifest = self.site.datasets[k].opened.manifest
        checksum = manifest.checksum if manifest is not None else None
        return JSONResponse({"dataset": checksum, "tally": verdicts.tally(), "verdicts": listed})

    def run(self, request: Request) -> Content:
        """How far a run is."""
        k = request.path_params["k"]
        if k >= len(self.site.runs):
            raise DataError("There is no such work folder.")
        path = self.site.runs[k]
        return f"Run in {path}", views_runs.run(run_state.read(path))

    def compare(self, request: Request) -> Content:
        """Two datasets beside each other."""
        chosen = [_whole(request.query_params, key, number) for number, key in enumerate(("a", "b"))]
        left, right = (self.site.side(number) for number in chosen)
        compared = difference.compare_sides(left, right)
        return "Comparison", views_datasets.comparison(compared, [left.name, right.name])


def _as_json(document: PairDocument) -> dict[str, Any]:
    return {"file": document.file, "offset": document.offset, "document": document.document}


def _whole(query: Mapping[str, Any], key: str, default: int) -> int:
    """A number from 0 on of a query. Raises DataError for anything else."""
    text = query.get(key)
    if text in (None, ""):
        return default
    if not (isinstance(text, str) and text.isascii() and text.isdigit() and len(text) < 16):
        raise DataError(f"{key} is {str(text)[:40]!r}, expected a number from 0 on.")
    return int(text)


async def _form(request: Request) -> dict[str, str] | None:
    """The fields of a small form; None for anything else."""
    if request.headers.get("content-type", "").partition(";")[0] != "application/x-www-form-urlencoded":
        return None
    data = b""
    async for piece in request.stream():
        data += piece
        if len(data) > MAX_FORM:
            return None
    return {key: values[0] for key, values in parse_qs(data.decode("ascii", "replace")).items()}


def listen(
    paths: Sequence[Path], host: str, port: int, ready: Callable[[str], None], run: Path | None = None
) -> None:
    """Serve until interrupted. run: folder of a training run. ready: called with the address to open, once the server listens there.

    Raises ConfigError if the port cannot be had, DataError for a path that holds nothing to serve.
    """
    import asyncio
    import socket

    import uvicorn

    from btlm_data.errors import ConfigError

    token = None if host in LOOPBACK else secrets.token_urlsafe(18)
    app = create(paths, host=host, token=token, run=run)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # TCP by name: asyncio then sends at once what it has, instead of waiting 40 ms for an acknowledgement.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((host, port))
        except OSError as error:
            raise ConfigError(
                f"Port {port} of {host} cannot be used: {error.strerror}. Name another with --port."
            ) from None
        listening.listen(64)
        shown = f"[{host}]" if ":" in host else host
        ready(f"http://{shown}:{listening.getsockname()[1]}/" + (f"?token={token}" if token else ""))
        config = uvicorn.Config(app, log_level="error", access_log=False, lifespan="off", server_header=False)
        asyncio.run(uvicorn.Server(config).serve(sockets=[listening]))
    finally:
        listening.close()
