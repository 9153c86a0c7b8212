"""The reward model served by vLLM: in this process, or over HTTP by ``vllm serve`` (docs/reward_model.md).

Both send token ids, made by the same code as in :class:`reward.RewardModel`, and take the head's value at the last
token, without the sigmoid that vLLM puts over classifiers.
"""

from __future__ import annotations

import json
import os
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from cool_rlhf.models.fields import POSITIONS, size_of
from cool_rlhf.models.tokenizer import load_tokenizer
from cool_rlhf.protocols import UserError
from reward.conditions import Conditions
from reward.scoring import ConditionalScorer, check_condition_join, load_conditions

REQUEST_TOKENS = 65536  # of one HTTP request: its answer holds a number for each


class VllmRewardModel(ConditionalScorer):
    """A reward checkpoint in a vLLM engine of this process."""

    def __init__(
        self, engine: Any, task: str, tokenizer: PreTrainedTokenizerBase, conditions: Conditions, max_length: int
    ) -> None:
        super().__init__(tokenizer, conditions, max_length)
        self.engine = engine
        self._task = task

    @classmethod
    def from_pretrained(
        cls, path: str | Path, dtype: str | None = None, *, max_length: int | None = None, **engine: Any
    ) -> VllmRewardModel:
        """Start an engine on a checkpoint folder or Hub name.

        Args:
            dtype: bfloat16 on a GPU, float32 on the CPU. The head is float32 in any case.
            max_length: of a conversation in tokens; what the checkpoint allows if not given.
            engine: further arguments of ``vllm.LLM``, such as ``tensor_parallel_size``.
        """
        # Read when vLLM is imported: the engine runs in this process.
        os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        from vllm import LLM

        fields, length = _fields(path, max_length)
        on_gpu = torch.cuda.is_available()
        settings: dict[str, Any] = {
            "dtype": dtype or ("bfloat16" if on_gpu else "float32"),
            "max_model_len": length,
            "trust_remote_code": True,
            "enforce_eager": not on_gpu,
            # Texts arrive as tokens; but vLLM offers classifiers as rerankers too, for which it wants the tokenizer.
            "skip_tokenizer_init": pooling_task(fields) == "token_classify",
            "disable_log_stats": True,
        }
        llm = LLM(str(path), runner="pooling", **(settings | engine))
        return cls(llm, pooling_task(fields), load_tokenizer(path), load_conditions(path), length)

    def score_tokens(self, sequences: Sequence[Tensor]) -> list[float]:
        from vllm import PoolingParams
        from vllm.inputs import TokensPrompt

        outputs = self.engine.encode(
            [TokensPrompt(prompt_token_ids=sequence.tolist()) for sequence in sequences],
            pooling_params=PoolingParams(use_activation=False),
            pooling_task=self._task,
            use_tqdm=False,
        )
        return [float(output.outputs.data.flatten()[-1]) for output in outputs]


class HttpRewardModel(ConditionalScorer):
    """A reward checkpoint behind ``vllm serve PATH --runner pooling``; its tokenizer and conditions are read here."""

    def __init__(
        self,
        url: str,
        path: str | Path,
        *,
        model: str | None = None,
        max_length: int | None = None,
        api_key: str | None = None,
        timeout: float = 600.0,
    ) -> None:
        """
        Args:
            url: of the server, such as ``http://localhost:8000``.
            path: the checkpoint that it serves: a folder or Hub name.
            model: the name it is served under; ``path`` if not given.
            max_length: the server's ``--max-model-len``; what the checkpoint allows if not given.
            timeout: seconds for one request.
        """
        self._fields, length = _fields(path, max_length)
        super().__init__(load_tokenizer(path), load_conditions(path), length)
        self._url = url.rstrip("/") + "/pooling"
        self._model = model or str(path)
        self._headers = {"Content-Type": "application/json"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = timeout

    def score_tokens(self, sequences: Sequence[Tensor]) -> list[float]:
        """In requests of ``REQUEST_TOKENS``; the server batches what a request holds.

        Raises: UserError where the server cannot be reached or refuses, with what it says.
        """
        scores: list[float] = []
        request: list[list[int]] = []
        held = 0
        for sequence in sequences:
            if request and held + len(sequence) > REQUEST_TOKENS:
                scores += self._post(request)
                request, held = [], 0
            request.append(sequence.tolist())
            held += len(sequence)
        return scores + self._post(request) if request else scores

    def _post(self, sequences: list[list[int]]) -> list[float]:
        body = {
            "model": self._model,
            "input": sequences,
            "task": pooling_task(self._fields),
            "use_activation": False,
            "encoding_format": "float",
        }
        request = urllib.request.Request(self._url, json.dumps(body).encode(), self._headers)
        try:
            with urllib.request.urlopen(request, timeout=self._timeout) as response:
                answer = json.load(response)
            entries = sorted(answer["data"], key=lambda entry: entry["index"])
            scores = [last_value(entry["data"]) for entry in entries]
        except urllib.error.HTTPError as error:
            said = error.read().decode("utf-8", "replace")[:500]
            raise UserError(f"{self._url} answers {error.code}: {said}; check model, path and max_length") from error
        except urllib.error.URLError as error:
            raise UserError(f"{self._url} cannot be reached ({error.reason}): start `vllm serve` there") from error
        # Too late, broken off, or no vLLM at all.
        except (OSError, HTTPException, ValueError, LookupError, TypeError) as error:
            said = f"{type(error).__name__}: {error}".removesuffix(": ")
            raise UserError(f"{self._url} gave no whole answer ({said}): look at the server's log") from error
        if len(scores) != len(sequences):
            raise UserError(f"{self._url} gave {len(scores)} scores for {len(sequences)} conversations: is it vLLM?")
        return scores


def pooling_task(fields: dict[str, Any]) -> str:
    """InternLM2's reward model gives the head's value at every token, other families' classifiers at the last one."""
    (architecture,) = fields["architectures"]
    return "classify" if architecture.endswith("ForSequenceClassification") else "token_classify"


def _fields(path: str | Path, max_length: int | None) -> tuple[dict[str, Any], int]:
    """The config's fields, and the length that conversations may have."""
    fields, _ = PreTrainedConfig.get_config_dict(str(path))
    if not str((fields.get("architectures") or [""])[0]).endswith(("ForRewardModel", "ForSequenceClassification")):
        raise UserError(f"{path} holds no reward model: give a reward model's checkpoint")
    check_condition_join(path, fields)
    lengths = [length for length in (max_length, size_of(fields, POSITIONS)) if length is not None]
    if not lengths:
        raise UserError(f"the config.json of {path} does not say how long a conversation may be: give max_length")
    return fields, min(lengths)


def last_value(values: Any) -> float:
    while isinstance(values, list):
        values = values[-1]
    return float(values)
