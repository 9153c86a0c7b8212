"""The judge against a server on this machine that speaks the protocol over a socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace
from typing import Any

import pytest

from cool_rlhf.compose import compose
from cool_rlhf.config import Config
from cool_rlhf.online.annotation.items import Item
from cool_rlhf.online.annotation.judge import Endpoint, JudgeError, JudgeLabeller, choice_of, settle
from cool_rlhf.online.annotation.labellers import label_with
from cool_rlhf.online.annotation.store import Store
from cool_rlhf.protocols import UserError
from cool_rlhf.rule_checks import check_rules
from cool_rlhf.stages.online import label_round

Reply = Callable[[dict[str, Any]], tuple[int, str]]


class Model(ThreadingHTTPServer):
    """Answers /v1/chat/completions with ``reply``; keeps what it was asked."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply = reply
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def endpoint(self, **changes: Any) -> Endpoint:
        values = {"url": f"http://127.0.0.1:{self.server_port}/v1", "model": "m", "key": "k", "timeout": 20.0}
        return Endpoint(**{**values, "requests": 4, "temperature": None, **changes})


class _Handler(BaseHTTPRequestHandler):
    server: Model

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.server.asked.append(request)
        self.server.keys.add(self.headers["authorization"])
        status, text = self.server.reply(request) if self.path == "/v1/chat/completions" else (404, "no such path")
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "finish_reason": "stop", "message": message}
        good = {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        body = json.dumps(good if status == 200 else {"error": {"message": text, "type": "x", "code": status}}).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing is printed."""


@pytest.fixture
def model() -> Iterator[Callable[[Reply], Model]]:
    started: list[Model] = []

    def start(reply: Reply) -> Model:
        started.append(Model(reply))
        return started[-1]

    yield start
    for server in started:
        server.shutdown()
        server.server_close()


def prefers_good(request: dict[str, Any]) -> tuple[int, str]:
    material = request["messages"][1]["content"]
    good, poor = material.index("good answer"), material.index("poor answer")
    return 200, f"The content decides.\nVerdict: {'A' if good < poor else 'B'}"


def test_both_orders_are_asked(model: Callable[[Reply], Model], store: Store, item: Callable[..., Item]) -> None:
    server = model(prefers_good)
    items = [item(number) for number in range(3)]
    items[1] = item(1, first=items[1].second, second=items[1].first)
    store.add_items(items)
    assert label_with(JudgeLabeller(server.endpoint()), store) == 3
    assert [label.winner for label in store.labels()] == ["first", "second", "first"]
    assert {(label.kind, label.annotator) for label in store.labels()} == {("judge", "model m as judge (no person)")}
    assert len(server.asked) == 6
    assert server.keys == {"Bearer k"}
    assert all("Prefer what helps." in request["messages"][0]["content"] for request in server.asked)
    orders = [r["messages"][1]["content"].index("good answer 0") for r in server.asked if "answer 0" in str(r)]
    assert len(set(orders)) == 2


def test_a_judge_who_goes_by_the_order_ties(
    model: Callable[[Reply], Model], store: Store, item: Callable[..., Item]
) -> None:
    store.add_items([item(0)])
    label_with(JudgeLabeller(model(lambda request: (200, "Verdict: A")).endpoint()), store)
    (label,) = store.labels()
    assert (label.winner, label.comment[:35]) == ("tie", "A in one order, A in the other: Ver")


def test_an_unreadable_answer_is_a_skip_that_says_so(
    model: Callable[[Reply], Model], store: Store, item: Callable[..., Item]
) -> None:
    store.add_items([item(0)])
    label_with(JudgeLabeller(model(lambda request: (200, "I would rather not say")).endpoint()), store)
    (label,) = store.labels()
    assert label.winner == "skip"
    assert label.comment.startswith("no readable verdict: I would rather not say")


def test_responses_cannot_foresee_the_fence(model: Callable[[Reply], Model], item: Callable[..., Item]) -> None:
    server = model(prefers_good)
    list(JudgeLabeller(server.endpoint()).label([item(0), item(1)]))
    fences = [request["messages"][1]["content"].splitlines()[1] for request in server.asked]
    assert len(set(fences)) == len(fences) == 4
    assert all(request["messages"][1]["content"].count(fence) == 6 for request, fence in zip(server.asked, fences))  # noqa: B905


def test_errors_are_a_sentence(model: Callable[[Reply], Model], item: Callable[..., Item]) -> None:
    def said(endpoint: Endpoint) -> str:
        with pytest.raises(UserError) as raised:
            list(JudgeLabeller(endpoint).label([item(0)]))
        assert "\n" not in str(raised.value)
        return str(raised.value)

    refusing = model(lambda request: (401, "no such key."))
    assert "refuses model m" in said(refusing.endpoint())
    assert "no such key" in said(refusing.endpoint())
    assert "no such path" in said(refusing.endpoint(url=f"http://127.0.0.1:{refusing.server_port}/v2"))
    gone = model(prefers_good)
    endpoint = gone.endpoint()
    gone.shutdown()
    gone.server_close()
    assert "cannot be reached" in said(endpoint)


def test_a_server_of_another_kind_is_no_judge(model: Callable[[Reply], Model]) -> None:
    judge = JudgeLabeller(model(prefers_good).endpoint())
    create = SimpleNamespace(create=lambda **_: "<!doctype html>\n<p>Welcome")
    judge._client = SimpleNamespace(chat=SimpleNamespace(completions=create))  # type: ignore[assignment]
    with pytest.raises(JudgeError, match=r"not to be understood .*check annotate\.judge\.url"):
        judge.check()


def test_a_judge_that_does_not_answer_is_said_before_a_run_begins(model: Callable[[Reply], Model]) -> None:
    def config(server: Model) -> Config:
        judge = ["online.labeller=judge", "annotate.judge.model=m", f"annotate.judge.url={server.endpoint().url}"]
        return compose(["+experiment=demo", *judge])

    willing = model(lambda request: (200, "yes"))
    check_rules(config(willing))
    assert len(willing.asked) == 1
    refusing = config(model(lambda request: (401, "no such key.")))
    with pytest.raises(UserError, match=r"refuses model m .*no such key"):
        check_rules(refusing)
    refusing.online.pairs = 0
    check_rules(refusing)  # nothing is labelled


def test_a_round_goes_on_without_a_judge_that_fails(
    model: Callable[[Reply], Model],
    store: Store,
    item: Callable[..., Item],
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails_on_two(request: dict[str, Any]) -> tuple[int, str]:
        return (401, "no such key") if "question 2" in str(request) else prefers_good(request)

    store.add_items([item(number) for number in range(4)])
    judge = JudgeLabeller(model(fails_on_two).endpoint(requests=1))
    label_round(judge, store, 0)
    assert len(store.labels()) == 2
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "round 0 goes on with 2 of its pairs unlabelled" in warning
    assert "no such key" in warning
    assert len(store.unlabelled(store.annotator(judge.name, "judge"))) == 2, "they stay open"


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_pair_that_is_refused_does_not_block_those_behind_it(
    model: Callable[[Reply], Model],
    store: Store,
    item: Callable[..., Item],
    caplog: pytest.LogCaptureFixture,
    status: int,
) -> None:
    def refuses_some(request: dict[str, Any]) -> tuple[int, str]:
        if len(request["messages"]) == 1:
            return 200, "yes"
        refused = any(f"question {number}" in str(request) for number in (0, 2))
        return (status, "context length exceeded") if refused else prefers_good(request)

    store.add_items([item(number) for number in range(4)])
    server = model(refuses_some)
    assert label_with(JudgeLabeller(server.endpoint(requests=1)), store) == 4
    assert [label.winner for label in store.labels()] == ["skip", "first", "skip", "first"]
    assert store.labels()[0].comment.startswith("refused: ")
    assert "context length exceeded" in store.labels()[0].comment
    assert sum(len(request["messages"]) == 1 for request in server.asked) == 1, "one word is asked for once"
    (warning,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "2 pairs" in warning


def test_an_endpoint_that_refuses_everything_is_no_judge(
    model: Callable[[Reply], Model], store: Store, item: Callable[..., Item]
) -> None:
    store.add_items([item(number) for number in range(2)])
    with pytest.raises(JudgeError, match=r"refuses a question to model m .*no such model"):
        label_with(JudgeLabeller(model(lambda request: (400, "no such model")).endpoint()), store)
    assert store.labels() == [], "all of them stay open"


def test_a_temperature_is_sent_only_where_one_is_set(
    model: Callable[[Reply], Model], item: Callable[..., Item]
) -> None:
    server = model(prefers_good)
    for temperature in (None, 0.0):
        list(JudgeLabeller(server.endpoint(temperature=temperature)).label([item(0)]))
    assert [request.get("temperature", "none sent") for request in server.asked] == ["none sent"] * 2 + [0.0] * 2


def test_what_was_labelled_before_an_error_stays(
    model: Callable[[Reply], Model], store: Store, item: Callable[..., Item]
) -> None:
    def fails_on_two(request: dict[str, Any]) -> tuple[int, str]:
        return (401, "no such key") if "question 2" in str(request) else prefers_good(request)

    server = model(fails_on_two)
    store.add_items([item(number) for number in range(4)])
    with pytest.raises(UserError, match="no such key"):
        label_with(JudgeLabeller(server.endpoint(requests=1)), store)
    assert len(store.labels()) == 2


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("Verdict: A", "A"),
        ("**Verdict:** B.", "B"),
        ("verdict: tie", "tie"),
        ("Verdict: both bad", "both bad"),
        ("Verdict: A at first sight.\nVerdict: B", "B"),
        ("Verdict: a tie", "tie"),
        ("verdict: it is a tie.", "tie"),
        ("Verdict: it's **a tie**", "tie"),
        ("verdict: **B**", "B"),
        ("Verdict: a", "A"),
        ("Verdict: A, because it is short", "A"),
        ("Verdict: Answer B", "B"),
        ("Verdict: the response **A**.", "A"),
        ("**Verdict: Option B**", "B"),
        ("Verdict: Both are bad", "both bad"),
        ("Verdict: neither", "both bad"),
        ("Verdict: Response 1", "A"),
        ("Verdict: the answer **2**", "B"),
        ("Verdict: Assistant A", "A"),
        (r"Verdict: \boxed{A}", "A"),
        (r"**Verdict:** $\boxed{\text{Answer B}}$", "B"),
        ("Verdict: A, since B is too long", "A"),
        ("Verdict: A and not B", "A"),
        ("Verdict: B > A", "B"),
        ("Verdict: A/B", None),
        ("Verdict: **A** / **B**", None),
        ("Verdict: A or B, I cannot tell", None),
        ("Verdict: A and B", None),
        ("Verdict: Answer A and Answer B are equal", None),
        ("Verdict: Response 1 or Response 2", None),
        ("Verdict: A, B", None),
        ("Verdict: A\nVerdict: A/B", None),
        ("Verdict: 1", None),
        ("Verdict: a close call, but B wins", None),
        ("A is better", None),
        ("Verdict: Absolutely", None),
        ("", None),
    ],
)
def test_reading_a_reply(reply: str, choice: str | None) -> None:
    assert choice_of(reply) == choice


def test_settling() -> None:
    assert settle("A", "B")[0] == "first"
    assert settle("B", "A")[0] == "second"
    assert settle("A", "A")[0] == settle("A", "tie")[0] == settle("tie", "both bad")[0] == "tie"
    assert settle("both bad", "both bad")[0] == "both_bad"
    assert settle(None, "B")[0] == "skip"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (
            {"content": [{"type": "text", "text": "It is. "}, {"type": "text", "text": "Verdict: A"}]},
            "It is. Verdict: A",
        ),
        ({"content": None}, ""),
        ({"content": [{"type": "image"}]}, None),
        ({"content": 5}, None),
        (None, None),
    ],
)
def test_a_reply_is_text_in_one_piece_or_in_several(
    model: Callable[[Reply], Model], message: dict[str, object] | None, said: str | None
) -> None:
    judge = JudgeLabeller(model(prefers_good).endpoint())
    answer = SimpleNamespace(choices=[SimpleNamespace(message=message and SimpleNamespace(**message))])
    judge._client = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(create=lambda **_: answer)))  # type: ignore[assignment]
    if said is None:
        with pytest.raises(JudgeError, match="not to be understood"):
            judge.check()
    else:
        assert judge._reply([]) == said
