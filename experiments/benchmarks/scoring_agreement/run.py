"""The same conversations scored in four ways: RewardModel, transformers alone, vLLM in a process, ``vllm serve``."""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
WAYS = ("api", "foreign", "offline", "http")
ENGINE = {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
START_SECONDS = 450
Asked = list[tuple[list[dict[str, str]], str | None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--conversations", type=int, default=200)
    parser.add_argument("--longest", type=int, default=2000, help="tokens of the longest conversation's texts")
    parser.add_argument("--family", choices=["internlm2", "llama"], default="internlm2")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a JSON file for the numbers")
    parser.add_argument("--part", choices=WAYS, help=argparse.SUPPRESS)  # one way, in a process of its own
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print("SCORES" + json.dumps(score(arguments.part, arguments.folder, read(arguments.folder), arguments)))
        return
    with tempfile.TemporaryDirectory() as place:
        result = compare(Path(place), arguments)
    print(json.dumps(result, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def compare(place: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Largest difference of each way's scores from the first way's."""
    from made import make_checkpoint, make_conversations

    from cool_rlhf.models.tokenizer import load_tokenizer

    make_checkpoint(place / "model", arguments.family, arguments.seed, arguments.longest + 96)
    tokenizer = load_tokenizer(place / "model")
    awkward = arguments.family == "internlm2"  # a Jinja template alone cannot keep texts from spelling tokens
    asked = make_conversations(tokenizer, arguments.conversations, arguments.longest, arguments.seed, awkward)
    (place / "asked.json").write_text(json.dumps(asked), encoding="utf-8")
    scores: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    for way in arguments.ways:
        begun = time.monotonic()
        command = [sys.executable, __file__, "--part", way, "--folder", str(place), "--family", arguments.family]
        done = subprocess.run(command, env=os.environ | ENGINE, stdout=subprocess.PIPE, text=True, check=True)
        scores[way] = json.loads(next(line for line in done.stdout.splitlines() if line.startswith("SCORES"))[6:])
        seconds[way] = round(time.monotonic() - begun, 1)
    first = scores[arguments.ways[0]]
    return {
        "family": arguments.family,
        "conversations": len(first),
        "longest": arguments.longest,
        "scores": {"least": min(first), "greatest": max(first)},
        "largest_difference": {
            way: max(abs(a - b) for a, b in zip(first, scores[way], strict=True)) for way in arguments.ways[1:]
        },
        "seconds_with_start": seconds,
    }


def read(folder: Path) -> Asked:
    return [(turns, name) for turns, name in json.loads((folder / "asked.json").read_text(encoding="utf-8"))]


def score(way: str, folder: Path, asked: Asked, arguments: argparse.Namespace) -> list[float]:
    path = folder / "model"
    conversations: Any = [turns for turns, _ in asked]
    conditions = [name for _, name in asked]
    if way == "foreign":
        return foreign(path, asked, arguments.family)
    if way == "api":
        from reward import RewardModel

        return RewardModel.from_pretrained(path, device="cpu").scores(conversations, conditions)
    if way == "offline":
        from reward.serving import VllmRewardModel

        return VllmRewardModel.from_pretrained(path).scores(conversations, conditions)
    from reward.serving import HttpRewardModel

    with served(path, folder / "server.log") as url:
        return HttpRewardModel(url, path).scores(conversations, conditions)


def foreign(path: Path, asked: Asked, family: str) -> list[float]:
    prompts = json.loads((path / "conditions.json").read_text(encoding="utf-8"))
    conversations = [
        [*([{"role": "system", "content": prompts[name]}] if name and prompts[name].strip() else []), *turns]
        for turns, name in asked
    ]
    done = subprocess.run(
        [sys.executable, str(HERE / "foreign.py")],
        input=json.dumps({"path": str(path), "family": family, "conversations": conversations}),
        env={"HF_MODULES_CACHE": str(path.parent / "modules"), "PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"},
        cwd=path.parent,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("SCORES"))[6:])


@contextmanager
def served(path: Path, log: Path) -> Iterator[str]:
    """A ``vllm serve`` process on a free port, as docs/reward_model.md starts it; ended with the block."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    vllm = Path(sys.executable).parent / "vllm"
    command = [str(vllm), "serve", str(path), "--runner", "pooling", "--trust-remote-code", "--dtype", "float32"]
    command += ["--enforce-eager", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            url = f"http://127.0.0.1:{port}"
            wait(url, process, log)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=60)


def wait(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"vllm serve ended with status {process.returncode}:\n{log.read_text()[-3000:]}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise TimeoutError(f"vllm serve was not up after {START_SECONDS} s:\n{log.read_text()[-3000:]}")


if __name__ == "__main__":
    main()
