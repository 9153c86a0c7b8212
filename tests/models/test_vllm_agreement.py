"""vLLM loads both kinds of checkpoint without this project and finds the numbers that transformers finds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cool_rlhf.data.packing import pack
from cool_rlhf.models.forward import token_logprobs, token_values
from cool_rlhf.models.loading import load_scalar_model

pytest.importorskip("vllm", reason="vLLM is not installed (extras cpu or gpu)")

SCRIPT = """
import gc, json, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("cool_rlhf", "reward", "rollout"):
            raise ImportError(f"{name} is out of reach here")

sys.meta_path.insert(0, Blocked())
from vllm import LLM, PoolingParams, SamplingParams
from vllm.distributed import cleanup_dist_env_and_memory

chat, reward, sequences = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
prompts = [{"prompt_token_ids": sequence} for sequence in sequences]
common = {"enforce_eager": True, "trust_remote_code": True, "dtype": "float32", "max_model_len": 256}

engine = LLM(chat, **common)
outputs = engine.generate(prompts, SamplingParams(max_tokens=8, temperature=0, logprobs=0, prompt_logprobs=0))
generated = [
    {
        "prompt": [list(entry.values())[0].logprob for entry in output.prompt_logprobs[1:]],
        "tokens": list(output.outputs[0].token_ids),
        "sampled": [entry[token].logprob for entry, token in
                    zip(output.outputs[0].logprobs, output.outputs[0].token_ids)],
    }
    for output in outputs
]
del engine, outputs
gc.collect()
cleanup_dist_env_and_memory()

engine = LLM(reward, runner="pooling", **common)
outputs = engine.encode(prompts, pooling_task="token_classify", pooling_params=PoolingParams(use_activation=False))
scored = [output.outputs.data.flatten().tolist() for output in outputs]
print("FOUND" + json.dumps([generated, scored]))
"""


def run_vllm(chat: Path, reward: Path, sequences: list[list[int]], scratch: Path) -> list:
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(scratch / "modules"),
        "HOME": str(scratch),
        "OMP_NUM_THREADS": "1",
        "PATH": "/usr/bin:/bin",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_PLUGINS": "",  # not even this project's own plugin
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(chat), str(reward), json.dumps(sequences)],
        cwd=scratch,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(next(line for line in done.stdout.splitlines() if line.startswith("FOUND"))[5:])


def sequences() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randint(6, 250, (length,), generator=generator) for length in (9, 120, 40)]


def test_both_kinds_give_the_same_numbers(chat_folder, reward_folder, policy, tmp_path) -> None:
    asked = [sequence.tolist() for sequence in sequences()]
    generated, scored = run_vllm(chat_folder, reward_folder, asked, tmp_path)
    for sequence, output in zip(sequences(), generated, strict=True):
        whole = torch.cat([sequence, torch.tensor(output["tokens"])])
        expected, _ = token_logprobs(policy, pack([whole]))
        mine = torch.tensor(output["prompt"] + output["sampled"])
        torch.testing.assert_close(mine, expected[1:].detach(), atol=1e-4, rtol=0)
    model = load_scalar_model(reward_folder, torch.float32, head="keep", seed=0)
    packed = pack(sequences())
    expected_scores = packed.split(token_values(model, packed).detach())
    for mine, expected in zip(scored, expected_scores, strict=True):
        torch.testing.assert_close(torch.tensor(mine), expected, atol=1e-4, rtol=0)
