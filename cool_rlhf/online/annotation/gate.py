"""Who gets anything from the page: who brings the token, once in the address and then in a cookie."""

from __future__ import annotations

import hmac
from urllib.parse import parse_qs

from starlette.requests import HTTPConnection
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# All that the page needs are files of its own. No script stands in a page: one that a response got in cannot run.
_HEADERS = {
    b"content-security-policy": b"default-src 'none'; style-src 'self'; script-src 'self'; form-action 'self'; "
    b"base-uri 'none'; frame-ancestors 'none'",
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"cross-origin-resource-policy": b"same-origin",
    b"cache-control": b"no-store",
}


class Gate:
    """Answers 403 without content to every request that brings no token, or a wrong one.

    ``/?token=…`` puts the token into a cookie that scripts cannot read and leads to ``/``, so that it stands in the
    address no longer than that. A request that changes something has to come from the page itself: other pages of this
    machine (of another port) would bring the cookie along.
    """

    def __init__(self, app: ASGIApp, token: str, cookie: str) -> None:
        self._app = app
        self._token = token
        self._cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # nothing else is spoken here: the server closes the connection

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *_HEADERS.items()]
            await send(message)

        await self._answer(scope)(scope, receive, send_with_headers)

    def _answer(self, scope: Scope) -> ASGIApp:
        request = HTTPConnection(scope)
        given = parse_qs(scope["query_string"].decode("latin-1")).get("token")
        if given is not None and scope["path"] == "/" and scope["method"] == "GET":
            return self._welcome() if self._is_token(given[0]) else Response(status_code=403)
        if not self._is_token(request.cookies.get(self._cookie, "")):
            return Response(status_code=403)
        if scope["method"] == "POST" and request.headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return Response(status_code=403)
        return self._app

    def _is_token(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())

    def _welcome(self) -> Response:
        response = RedirectResponse("/", status_code=303)
        # Lax, as a strict cookie would not come along when the link is opened from another page, such as a mail's.
        response.set_cookie(self._cookie, self._token, httponly=True, samesite="lax", max_age=30 * 24 * 3600)
        return response
