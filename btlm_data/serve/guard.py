"""Who may ask, and what a browser may do with an answer.

Documents are hostile and so may be other pages in the same browser. Therefore: only requests that name this
server as their host are answered (a foreign name that leads to 127.0.0.1 is not); with a token, only those
that carry it; changes only by forms of these very pages. Answers carry a Content-Security-Policy that allows
this server's own files only.
"""

from __future__ import annotations

import hmac

import msgspec
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

COOKIE = "btlm_data_token"
HEADERS = {
    "content-security-policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "same-origin",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class Guard(msgspec.Struct, frozen=True):
    """The outermost layer of the application. hosts: what the Host header may say, without the port; None:
    anything.

    token: what has to be in the address, `?token=...`, once; then in a cookie. None where none is needed.
    """

    app: ASGIApp
    hosts: frozenset[str] | None
    token: str | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or refuse with a message."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused = self._refused(Request(scope))

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = {name for name, _ in message["headers"]}
                message["headers"] += [
                    (name.encode(), value.encode())
                    for name, value in HEADERS.items()
                    if name.encode() not in own
                ]
            await send(message)

        await (refused or self.app)(scope, receive, send_with_headers)

    def _refused(self, request: Request) -> Response | None:
        """The answer to a request that is not let through; None lets it through."""
        host = request.headers.get("host", "").rsplit(":", 1)[0].strip("[]").lower()
        if self.hosts is not None and host not in self.hosts:
            return PlainTextResponse("This server does not answer to that name.\n", 421)
        if request.method not in ("GET", "HEAD"):
            origin = request.headers.get("origin")
            if origin is None or origin.split("://", 1)[-1] != request.headers.get("host"):
                return PlainTextResponse("Only forms of this page are taken.\n", 403)
        if self.token is None:
            return None
        given = request.query_params.get("token")
        if given is not None and _equal(given, self.token):
            view = request.url.remove_query_params("token")
            answer = RedirectResponse(view.path + (f"?{view.query}" if view.query else ""), 303)
            answer.set_cookie(COOKIE, self.token, httponly=True, samesite="strict")
            return answer
        if not _equal(request.cookies.get(COOKIE, ""), self.token):
            return PlainTextResponse(
                "Open the address that `btlm-data serve` printed; it carries the token.\n", 403
            )
        return None


def _equal(given: str, expected: str) -> bool:
    return hmac.compare_digest(given.encode(errors="replace"), expected.encode())
