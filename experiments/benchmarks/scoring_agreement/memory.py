"""Many scores in bounded memory: time and the peak of this process's proportional set size."""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parent))


class Peak:
    """The largest proportional set size in bytes (Linux) seen while the block runs, looked at ten times a second."""

    def __enter__(self) -> Peak:
        self.bytes = 0
        self._done = threading.Event()
        self._watch = threading.Thread(target=self._look, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._watch.join()

    def _look(self) -> None:
        process = psutil.Process()
        while True:
            self.bytes = max(self.bytes, process.memory_full_info().pss)
            if self._done.wait(0.1):
                return


def conversations(count: int, words: list[str]) -> Iterator[list[dict[str, str]]]:
    """About 60 tokens each, one in a thousand about 2,000; made as they are read."""
    draw = random.Random(0)
    for index in range(count):
        length = 1500 if index % 1000 == 500 else draw.randint(5, 60)
        answer = " ".join(draw.choices(words, k=length))
        yield [{"role": "user", "content": f"Question {index}?"}, {"role": "assistant", "content": answer}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    import torch
    from made import WORDS, make_checkpoint

    from reward import RewardModel

    torch.set_num_threads(arguments.threads)
    rows = []
    with tempfile.TemporaryDirectory() as place:
        make_checkpoint(Path(place) / "model", "internlm2", 0, 4096, hidden=64, layers=2)
        judge = RewardModel.from_pretrained(Path(place) / "model", device="cpu")
        for count in arguments.counts:
            with Peak() as peak:
                begun = time.monotonic()
                scores = judge.scores(conversations(count, WORDS), "helpful")
                seconds = time.monotonic() - begun
            assert len(scores) == count
            row = {"scores": count, "seconds": round(seconds, 1), "per_second": round(count / seconds)}
            rows.append(row | {"peak_pss_mib": round(peak.bytes / 2**20)})
            print(json.dumps(rows[-1]), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
