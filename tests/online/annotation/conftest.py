"""Items to label, a store whose clock the test moves, the page's server in a process, and a browser."""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import websockets.sync.client

from cool_rlhf.online.annotation.items import Item, ShownResponse, write_pairs_to_label
from cool_rlhf.online.annotation.store import FILE_NAME, Store


@pytest.fixture
def item() -> Callable[..., Item]:
    def make(number: int, round: int = 0, **changes: object) -> Item:
        fields = {
            "prompt": [{"role": "user", "content": f"question {number}"}],
            "first": ShownResponse(f"good answer {number}", True, "sft"),
            "second": ShownResponse(f"poor answer {number}", False, "round 0, late"),
            "domain": "helpful",
            "guideline": "Prefer what helps.",
            "answer": None,
            "round": round,
        }
        return Item(**{**fields, **changes})  # type: ignore[arg-type]

    return make


class Clock:
    def __init__(self) -> None:
        self.time = 1000.0

    def __call__(self) -> float:
        return self.time


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    with Store(tmp_path / FILE_NAME, overlap=1, lease_seconds=60, now=clock) as opened:
        yield opened


@pytest.fixture
def full(store: Store, item: Callable[..., Item]) -> Store:
    """Every kind of answer, by two people, over two rounds."""
    items = [item(0), item(1, domain="harmless"), item(2, answer="x"), item(3, round=1), item(4, round=1), item(5)]
    store.add_items(items)
    for entry, answers in zip(items, ["first second", "second", "tie", "both_bad", "first first", "skip"], strict=True):
        for number, winner in enumerate(answers.split()):
            store.record(entry.id, store.annotator(f"person {number}"), winner, f"says {winner}", 2.5)  # type: ignore[arg-type]
    return store


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "other.sqlite") as opened:
        yield opened


class Browser:
    """A headless Chromium behind its DevTools protocol; it is given keys and asked what the page shows."""

    def __init__(self, folder: Path, size: tuple[int, int]) -> None:
        self._process = subprocess.Popen(
            [
                *(shutil.which("chromium") or "", "--headless=new", "--no-sandbox", "--disable-gpu"),
                *("--remote-debugging-port=0", f"--user-data-dir={folder}", f"--window-size={size[0]},{size[1]}"),
                *("--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage", "about:blank"),
            ],
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            start_new_session=True,
        )
        port = _wait_for(lambda: _first_line(folder / "DevToolsActivePort"))
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/json") as answer:
            pages = [target for target in json.load(answer) if target["type"] == "page"]
        self._closing = ExitStack()
        address = pages[0]["webSocketDebuggerUrl"]
        self._socket = self._closing.enter_context(websockets.sync.client.connect(address, max_size=None))
        self._calls = 0
        self.events: list[dict[str, Any]] = []
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self._closing.close()
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._calls += 1
        self._socket.send(json.dumps({"id": self._calls, "method": method, "params": parameters}))
        while True:
            message = json.loads(self._socket.recv(timeout=30))
            if message.get("id") == self._calls:
                return message.get("result", message)
            self.events.append(message)

    def open(self, address: str) -> None:
        self.call("Page.navigate", url=address)
        self.wait("document.readyState == 'complete'")

    def evaluate(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression).get("result", {}).get("value")

    def wait(self, expression: str) -> None:
        """Until ``expression`` is true on the page, and the page is whole."""
        _wait_for(lambda: self.evaluate(f"document.readyState == 'complete' && Boolean({expression})"))

    def text(self, selector: str) -> str:
        return str(self.evaluate(f"document.querySelector({selector!r})?.innerText"))

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, repeat: bool = False) -> None:
        """One key, as a keyboard sends it; ``repeat`` as it does while the key is held down."""
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = {"Enter": 13, "Escape": 27, "ArrowLeft": 37, "ArrowRight": 39, "Tab": 9}.get(key, ord(key[0].upper()))
        common = {"key": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, autoRepeat=repeat, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def requests(self) -> set[str]:
        """Every address that anything on the page asked for."""
        sent = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        return {request["request"]["url"] for request in sent}

    def picture(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


def _first_line(path: Path) -> str | None:
    return path.read_text(encoding="utf-8").splitlines()[0] if path.exists() and path.stat().st_size else None


def _wait_for(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "the browser did not come to that"
        time.sleep(0.02)
    return found


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    if shutil.which("chromium") is None:
        pytest.skip("no chromium on this machine")
    opened = Browser(tmp_path / "browser", (1200, 800))
    yield opened
    opened.close()


class Server:
    """``stage=annotate`` in a process of its own, over the pairs of ``output_dir``."""

    TOKEN = "token-of-the-tests"

    def __init__(self, output_dir: Path, *arguments: str) -> None:
        self._command = [
            *(sys.executable, "-m", "cool_rlhf.run", "stage=annotate", f"output_dir={output_dir}"),
            *(f"annotate.token={self.TOKEN}", *arguments),
        ]
        self.port = 0
        self.start()

    def start(self) -> None:
        """On the same port as before, if there was one."""
        command = [*self._command, f"annotate.port={self.port}"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        said = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)/\?token=(\S+)", said)
        assert found, said + self.process.communicate()[1]
        self.port, self.link = int(found[1]), found[0]
        _wait_for(self._answers)

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def end(self, number: signal.Signals) -> tuple[int, str, str]:
        """Status, standard output and error after ``number``."""
        self.process.send_signal(number)
        output, error = self.process.communicate(timeout=20)
        return self.process.returncode, output, error


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    started: list[Server] = []

    def start(items: list[Item], *arguments: str) -> Server:
        write_pairs_to_label(tmp_path / "rounds/0/slow_path/pairs.jsonl", items)
        started.append(Server(tmp_path, *arguments))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.process.communicate()
