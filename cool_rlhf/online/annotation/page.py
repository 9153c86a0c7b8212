"""The annotation page as an ASGI application: one question with two answers at a time, for any number of people."""

from __future__ import annotations

import hashlib
import sqlite3
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import parse_qsl, quote, unquote

import jinja2
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from cool_rlhf.online.annotation.agreement import Agreement
from cool_rlhf.online.annotation.gate import Gate
from cool_rlhf.online.annotation.items import Item, Winner
from cool_rlhf.online.annotation.markdown import render, render_both
from cool_rlhf.online.annotation.store import AlreadyLabelledError, Store
from cool_rlhf.protocols import UserError

Side = Literal["first", "second"]
_NEUTRAL = ("tie", "both_bad", "skip")
_BODY_LIMIT = 64_000  # bytes of a form
_COMMENT_LIMIT = 2000  # characters
_AGREEMENT_SECONDS = 3.0  # how old the agreement that is shown may be
_HERE = Path(__file__).parent


def left_side(item: str, annotator: str) -> Side:
    """Which response of an item stands on the left for one person: a fair coin, the same at every look."""
    return "first" if hashlib.sha256(f"{item}\n{annotator}".encode()).digest()[0] % 2 else "second"


def winner_of(verdict: str, item: str, annotator: str) -> Winner:
    """What a verdict on what was shown says of the item. Raises KeyError for an unknown verdict."""
    if verdict in _NEUTRAL:
        return cast(Winner, verdict)
    left = left_side(item, annotator)
    right: Side = "second" if left == "first" else "first"
    sides: Mapping[str, Winner] = {"left": left, "right": right}
    return sides[verdict]


def annotation_app(store: Store, token: str, cookie: str = "cool_rlhf") -> ASGIApp:
    """The page over ``store`` behind ``token``. ``cookie`` begins the names of its cookies: browsers keep them by
    machine, not by port."""
    page = _Page(store, f"{cookie}_annotator")
    routes = [
        Route("/", page.show),
        Route("/name", page.name, methods=["POST"]),
        Route("/label", page.label, methods=["POST"]),
        Route("/undo", page.undo, methods=["POST"]),
        Mount("/static", StaticFiles(directory=_HERE / "static")),
    ]
    faults: Mapping[Any, Any] = {sqlite3.Error: page.not_kept}
    return Gate(Starlette(routes=routes, exception_handlers=faults), token, f"{cookie}_token")


class _Page:
    def __init__(self, store: Store, cookie: str) -> None:
        self._store = store
        self._cookie = cookie
        self._agreement: Callable[[], Agreement] = _kept(store.agreement, _AGREEMENT_SECONDS)
        self._templates = jinja2.Environment(
            loader=jinja2.FileSystemLoader(_HERE / "templates"), autoescape=True, undefined=jinja2.StrictUndefined
        )
        self._templates.filters["markdown"] = render

    async def show(self, request: Request) -> Response:
        return await run_in_threadpool(self._show, request)

    async def name(self, request: Request) -> Response:
        form = await _form(request)
        try:
            annotator = await run_in_threadpool(self._store.annotator, form.get("name", ""))
            name = await run_in_threadpool(self._store.name, annotator)
        except UserError as error:
            return self._page("name", status=400, fault=f"{str(error)[0].upper()}{str(error)[1:]}.")
        response = RedirectResponse("/", status_code=303)
        # The name, since numbers stand for others in another run's store.
        response.set_cookie(self._cookie, quote(str(name)), httponly=True, samesite="lax", max_age=30 * 24 * 3600)
        return response

    async def label(self, request: Request) -> Response:
        form = await _form(request)
        return await run_in_threadpool(self._label, request, form)

    async def undo(self, request: Request) -> Response:
        form = await _form(request)
        annotator, name = await run_in_threadpool(self._who, request)
        if name is not None:
            await run_in_threadpool(self._store.undo, form.get("item", ""), annotator)
        return RedirectResponse("/", status_code=303)

    def not_kept(self, request: Request, error: Exception) -> Response:
        """The store could not be written, for lack of room for instance: nothing is acknowledged then."""
        return self._page("fault", status=500, fault=f"The store cannot be used ({error}). Tell who runs this page.")

    def _show(self, request: Request) -> Response:
        annotator, name = self._who(request)
        if name is None:
            return self._page("name", fault="")
        item = self._store.next_item(annotator)
        last = self._store.last_label(annotator)
        values: dict[str, Any] = {
            "name": name,
            "progress": self._store.progress(annotator),
            "agreement": self._agreement(),
            "undo": last and last[0],
        }
        if item is None:
            return self._page("done", **values)
        left, right = _in_order(item, name)
        shown = render_both(left.text, right.text)
        responses = zip(("left", "right"), (left, right), shown, strict=True)
        return self._page("item", item=item, responses=responses, **values)

    def _label(self, request: Request, form: Mapping[str, str]) -> Response:
        annotator, name = self._who(request)
        if name is None:
            return self._page("name", status=400, fault="Your name is not known any more: say it again.")
        if form.get("annotator", name) != name:  # left and right are not the same for all
            return self._page(
                "fault", status=409, fault=f"This question was shown to another annotator; here you are {name} now."
            )
        item = form.get("item", "")
        try:
            winner = winner_of(form.get("verdict", ""), item, name)
            self._store.record(item, annotator, winner, form.get("comment", "").strip()[:_COMMENT_LIMIT])
        except KeyError:
            return self._page("fault", status=400, fault="There is no such question or no such answer.")
        except AlreadyLabelledError:
            return self._page(
                "fault", status=409, fault="You have answered this question otherwise before: undo takes that back."
            )
        return RedirectResponse("/", status_code=303)

    def _who(self, request: Request) -> tuple[int, str | None]:
        return self._store.person(unquote(request.cookies.get(self._cookie, ""))) or (0, None)

    def _page(self, template: str, status: int = 200, **values: Any) -> Response:
        return HTMLResponse(self._templates.get_template(f"{template}.html.j2").render(**values), status_code=status)


def _in_order(item: Item, annotator: str) -> tuple[Any, Any]:
    return (item.first, item.second) if left_side(item.id, annotator) == "first" else (item.second, item.first)


def _kept(compute: Callable[[], Agreement], seconds: float) -> Callable[[], Agreement]:
    """``compute``, asked again only once its last answer is ``seconds`` old."""
    answer: list[tuple[float, Agreement]] = []

    def latest() -> Agreement:
        if not answer or time.monotonic() - answer[0][0] > seconds:
            answer[:] = [(time.monotonic(), compute())]
        return answer[0][1]

    return latest


async def _form(request: Request) -> dict[str, str]:
    """The fields of a form as browsers send it; none of a body that is too long."""
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _BODY_LIMIT:
            return {}
    return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
