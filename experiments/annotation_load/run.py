"""Many annotators at once against the annotation page's server, which is killed (-9) on the way.

    .venv/bin/python experiments/annotation_load/run.py --labels 10000 --annotators 20 --kills 5

Every annotator speaks HTTP as a browser does: it reads the page, picks a button, sends the form, and repeats what the
server did not acknowledge. At the end the store must hold every acknowledged label once and nothing else. Exit status 1
where it does not.
"""

from __future__ import annotations

import argparse
import random
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from cool_rlhf.online.annotation.items import Item, ShownResponse, write_pairs_to_label
from cool_rlhf.online.annotation.page import winner_of
from cool_rlhf.online.annotation.store import FILE_NAME, Store

TOKEN = "load-of-many-annotators"
PATIENCE = 60.0  # seconds that the server may be away
VERDICTS = ("left", "right", "tie", "both_bad")
ITEM = re.compile(r'name="item" value="([^"]+)">\s*<textarea')


@dataclass
class Told:
    """What one annotator was told is kept, ``item`` → winner, and the seconds that each answer took."""

    labels: dict[str, str] = field(default_factory=dict)
    again: int = 0  # requests that had to be repeated
    undone: int = 0
    seconds: list[float] = field(default_factory=list)
    twice: int = 0  # items shown after they had been answered


class Annotator(threading.Thread):
    def __init__(self, name: str, port: int, done: threading.Semaphore) -> None:
        super().__init__(name=name, daemon=True)
        self.told = Told()
        self.error: BaseException | None = None
        self._done = done
        self._rng = random.Random(name)
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}", timeout=10.0, follow_redirects=True, trust_env=False
        )

    def run(self) -> None:
        try:
            self._get(f"/?token={TOKEN}")
            page = self._post("/name", {"name": self.name})
            while shown := ITEM.search(page):
                page = self._answer(shown[1])
        except (httpx.HTTPError, AssertionError) as error:
            self.error = error

    def _answer(self, item: str) -> str:
        self.told.twice += item in self.told.labels
        verdict = self._rng.choice(VERDICTS)
        begun = time.monotonic()
        page = self._post("/label", {"item": item, "verdict": verdict, "comment": f"by {self.name}"})
        self.told.seconds.append(time.monotonic() - begun)
        self.told.labels[item] = winner_of(verdict, item, self.name)
        if self._rng.random() < 0.02:  # take it back; the page shows it again
            page = self._post("/undo", {"item": item})
            del self.told.labels[item]
            self.told.undone += 1
        else:
            self._done.release()
        return page

    def _get(self, path: str) -> str:
        return self._until_answered("GET", path, None)

    def _post(self, path: str, form: dict[str, str]) -> str:
        return self._until_answered("POST", path, form)

    def _until_answered(self, method: str, path: str, form: dict[str, str] | None) -> str:
        """Whatever the server said before it died, the same request again must do no harm."""
        end = time.monotonic() + PATIENCE
        while True:
            try:
                answer = self._client.request(method, path, data=form)
            except httpx.TransportError:
                if time.monotonic() > end:
                    raise
                self.told.again += 1
                time.sleep(0.1)
                continue
            assert answer.status_code == 200, f"{method} {path}: {answer.status_code}"
            return answer.text


class Server:
    """``stage=annotate`` in a process of its own."""

    def __init__(self, output_dir: Path, overlap: int) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._command = [
            *(sys.executable, "-m", "cool_rlhf.run", "stage=annotate", f"output_dir={output_dir}"),
            *(f"annotate.token={TOKEN}", f"annotate.port={self.port}", f"annotate.overlap={overlap}"),
        ]
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "the server did not start"

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def end(self) -> int:
        self._process.send_signal(signal.SIGINT)
        return self._process.wait(timeout=60)


def load(folder: Path, labels: int, annotators: int, kills: int, overlap: int) -> tuple[list[Told], float]:
    """``labels`` answers by ``annotators`` at once, with the server killed ``kills`` times, evenly spread; what they
    were told, and the seconds from first to last."""
    items = [
        Item(
            prompt=[{"role": "user", "content": f"Question {number}?"}],
            first=ShownResponse(
                f"A first answer to question {number}, with **two** words in bold and `code`.\n" * 4, True, "sft"
            ),
            second=ShownResponse(f"- one\n- two\n- {number}\n", True, "round 0, late"),
            domain="helpful",
            guideline="Prefer what helps.",
            answer=None,
            round=0,
        )
        for number in range(labels // overlap)
    ]
    write_pairs_to_label(folder / "rounds/0/slow_path/pairs.jsonl", items)
    server = Server(folder, overlap)
    done = threading.Semaphore(0)
    people = [Annotator(f"annotator {number}", server.port, done) for number in range(annotators)]
    begun = time.monotonic()
    for person in people:
        person.start()
    for _ in range(kills):
        for _ in range(len(items) * overlap // (kills + 1)):
            while not done.acquire(timeout=1.0):
                _raise_first(people)
                if not any(person.is_alive() for person in people):
                    raise RuntimeError("everybody found that there was nothing more to label")
        server.kill()
        server.start()
    for person in people:
        person.join()
    seconds = time.monotonic() - begun
    _raise_first(people)
    assert server.end() == 0
    return [person.told for person in people], seconds


def _raise_first(people: list[Annotator]) -> None:
    for person in people:
        if person.error is not None:
            raise person.error


def compare(store: Store, told: list[Told]) -> dict[str, int]:
    """What was told against what is kept."""
    expected = {(f"annotator {n}", item): w for n, entry in enumerate(told) for item, w in entry.labels.items()}
    kept = [((label.annotator, label.item), label.winner) for label in store.labels()]
    times = Counter(key for key, _ in kept)
    return {
        "acknowledged": len(expected),
        "kept": len(kept),
        "lost": len(expected.keys() - times.keys()),
        "doubled": sum(count - 1 for count in times.values()),
        "changed": sum(expected.get(key, winner) != winner for key, winner in kept),
        "unasked": len(times.keys() - expected.keys()),
        "shown twice to one person": sum(entry.twice for entry in told),
        "taken back on the way": sum(entry.undone for entry in told),
        "requests repeated": sum(entry.again for entry in told),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, default=10_000)
    parser.add_argument("--annotators", type=int, default=20)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--overlap", type=int, default=2)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        told, seconds = load(Path(folder), arguments.labels, arguments.annotators, arguments.kills, arguments.overlap)
        with Store(Path(folder) / FILE_NAME) as store:
            found = compare(store, told)
    times = sorted(second for entry in told for second in entry.seconds)
    for name, value in found.items():
        print(f"{name:<28}{value:>8}")
    print(f"{'seconds':<28}{seconds:>8.0f}")
    print(f"{'labels a second':<28}{len(times) / seconds:>8.0f}")
    print(f"{'median answer, ms':<28}{1000 * statistics.median(times):>8.0f}")
    print(f"{'99th percentile, ms':<28}{1000 * times[int(0.99 * len(times))]:>8.0f}")
    faults = [found[name] for name in ("lost", "doubled", "changed", "unasked", "shown twice to one person")]
    return int(any(faults) or found["acknowledged"] < arguments.labels // arguments.overlap * arguments.overlap)


if __name__ == "__main__":
    sys.exit(main())
