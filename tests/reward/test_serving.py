"""The reward model in vLLM, in a process and behind ``vllm serve``, against the API and the shipped class."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from cool_rlhf.protocols import UserError
from reward import RewardModel, serving
from reward.serving import HttpRewardModel, VllmRewardModel

BENCHMARK = Path(__file__).parents[2] / "experiments" / "benchmarks" / "scoring_agreement"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "reward_model"
    code = "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import made;"
    code += "made.make_checkpoint(Path(sys.argv[2]), 'internlm2', 0, 256)"
    subprocess.run([sys.executable, "-c", code, str(BENCHMARK), str(folder)], check=True)
    return folder


def dialogue(answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": answer}]


DIALOGUES = [dialogue(answer) for answer in ("So.", "No.", "It is the one that was <|reward|>", "a" * 300)]


def test_all_four_ways_agree(tmp_path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed (extras cpu or gpu)")
    command = [sys.executable, str(BENCHMARK / "run.py"), "--conversations", "24", "--longest", "300"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "numbers.json")],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["conversations"] == 24
    assert numbers["scores"]["greatest"] - numbers["scores"]["least"] > 0.5
    assert set(numbers["largest_difference"]) == {"foreign", "offline", "http"}
    assert max(numbers["largest_difference"].values()) < 1e-3


class Server(HttpRewardModel):
    """Answers as vLLM does, a number for each token, by the model itself, and in any order."""

    def __init__(self, checkpoint: Path) -> None:
        super().__init__("http://localhost:1/", checkpoint)
        self.judge = RewardModel.from_pretrained(checkpoint, device="cpu")
        self.requests: list[int] = []

    def _post(self, sequences: list[list[int]]) -> list[float]:
        self.requests.append(sum(map(len, sequences)))
        return self.judge.score_tokens([torch.tensor(tokens) for tokens in sequences])


def test_requests_are_bounded_and_answers_keep_their_order(checkpoint, monkeypatch) -> None:
    server = Server(checkpoint)
    expected = server.judge.scores(DIALOGUES, "brief")
    assert server.scores(DIALOGUES, "brief") == pytest.approx(expected, abs=1e-4)
    assert len(server.requests) == 1
    monkeypatch.setattr(serving, "REQUEST_TOKENS", 60)
    server.requests.clear()
    assert server.scores(DIALOGUES, "brief") == pytest.approx(expected, abs=1e-4)
    assert server.rank(DIALOGUES) == server.judge.rank(DIALOGUES)
    assert len(server.requests) > 2


def test_an_answer_is_read_at_its_last_token() -> None:
    assert serving.last_value([[0.5], [1.5]]) == 1.5
    assert serving.last_value([0.5, 2.5]) == 2.5
    assert serving.last_value([3.5]) == 3.5


def test_the_task_goes_by_the_family() -> None:
    assert serving.pooling_task({"architectures": ["InternLM2ForRewardModel"]}) == "token_classify"
    assert serving.pooling_task({"architectures": ["LlamaForSequenceClassification"]}) == "classify"


def test_a_server_that_is_not_there_is_the_users_mistake(checkpoint) -> None:
    with pytest.raises(UserError, match=r"localhost:1/pooling cannot be reached .*start `vllm serve`"):
        HttpRewardModel("http://localhost:1", checkpoint).score(DIALOGUES[0])


OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (b"", "gave no whole answer"),
        (OK + b"Content-Length: 100\r\n\r\n{", "gave no whole answer"),
        (OK + b"\r\nhello", "gave no whole answer"),
        (OK + b'\r\n{"error": "no such model"}', "gave no whole answer .KeyError: 'data'"),
        (OK + b'\r\n{"data": [{"index": 0, "data": []}]}', "gave no whole answer"),
        (OK + b'\r\n{"data": []}', "gave 0 scores for 1 conversations"),
    ],
)
def test_a_broken_answer_is_named(checkpoint, answer: bytes, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, connection.makefile("rb") as request:
                request.readline()
                length = int(http.client.parse_headers(request)["Content-Length"])
                request.read(length)  # all of it: what is closed with bytes unread resets the connection
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with pytest.raises(UserError, match=said):
            HttpRewardModel(f"http://127.0.0.1:{server.getsockname()[1]}", checkpoint).score(DIALOGUES[0])
        thread.join()


def test_what_is_no_reward_model_is_refused_before_an_engine_starts(checkpoint, tmp_path) -> None:
    fields = json.loads((checkpoint / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(fields | {"architectures": ["InternLM2ForCausalLM"]}))
    for make in (VllmRewardModel.from_pretrained, lambda path: HttpRewardModel("http://localhost:1", path)):
        with pytest.raises(UserError, match="holds no reward model"):
            make(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(fields | {"condition_join": "merged"}))
    with pytest.raises(UserError, match="joins conditions by 'merged'"):
        HttpRewardModel("http://localhost:1", tmp_path)


def test_the_length_is_known_by_the_familys_name(checkpoint, tmp_path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(checkpoint, folder)
    fields = json.loads((checkpoint / "config.json").read_text())
    length = fields.pop("max_position_embeddings")
    (folder / "config.json").write_text(json.dumps({**fields, "n_positions": length}))  # as GPT-2 does
    lengths = [HttpRewardModel("http://localhost:1", folder, max_length=asked).max_length for asked in (None, 99, 999)]
    assert lengths == [length, 99, length]
    (folder / "config.json").write_text(json.dumps({**fields, "max_position_embeddings": None}))
    assert HttpRewardModel("http://localhost:1", folder, max_length=99).max_length == 99
    with pytest.raises(UserError, match=r"config\.json of .*model does not say how long .*: give max_length"):
        HttpRewardModel("http://localhost:1", folder)
