"""A vLLM engine that samples responses with weights of a known version."""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

# Read when vLLM is imported: the engine runs in this process, and says only what is wrong.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")

import torch
from torch import Tensor
from vllm import LLM, SamplingParams
from vllm.inputs import TokensPrompt
from vllm.outputs import RequestOutput

from cool_rlhf.data.chat import TURN_END, decode_response, encode_prompt, token_id
from cool_rlhf.models.loading import (
    check_vocabulary,
    checkpoint_folder,
    load_tokenizer,
    longest_sequence,
    stored_weights,
)
from cool_rlhf.protocols import Portion, Prompt, Rollout, StaleWeightsError, UserError
from rollout.settings import CPU_CACHE_GIB, EngineSettings, SamplingSettings

CPU_BATCHED_TOKENS = 4096  # of prompts prefilled at once
GIB = 1024**3
PORTION = 0.25  # of the responses: once as many are finished, they leave, so that they are scored beside the rest
LEAST_PORTION = 16  # responses: fewer at a time cost more than they save


class RolloutEngine:
    """Holds one policy's weights. Every push of weights gives them a version, which every rollout carries."""

    def __init__(self, path: Path, settings: EngineSettings, version: int) -> None:
        self._tokenizer = load_tokenizer(path)
        self._stops = [token_id(self._tokenizer, TURN_END)]
        if self._tokenizer.eos_token_id is not None:
            self._stops.append(int(self._tokenizer.eos_token_id))
        # A special token is looked for among the tokens: a response that spells its letters has not said it.
        special = {token.content: id for id, token in self._tokenizer.added_tokens_decoder.items() if token.special}
        self._stops += [special[stop] for stop in settings.stop if stop in special]
        self._stop_texts = [stop for stop in settings.stop if stop not in special]
        check_vocabulary(path, self._tokenizer)
        self._max_length = longest_sequence(path, settings.max_length)
        self._version: int | None = version
        on_gpu = torch.cuda.is_available()
        cache_gib = settings.cache_gib or (None if on_gpu else CPU_CACHE_GIB)
        # Prompts arrive as tokens, and responses leave as tokens: vLLM needs a tokenizer only to look for texts.
        self._files = tempfile.TemporaryDirectory()
        if self._stop_texts:
            self._tokenizer.save_pretrained(self._files.name)
        with _answering_for_memory(path, self._max_length):
            self._llm = LLM(
                str(path),
                skip_tokenizer_init=not self._stop_texts,
                tokenizer=self._files.name if self._stop_texts else None,
                trust_remote_code=True,
                dtype=cast(Any, settings.dtype),
                max_model_len=self._max_length,
                max_num_seqs=settings.max_concurrent,
                tensor_parallel_size=settings.tensor_parallel_size,
                gpu_memory_utilization=settings.gpu_memory_utilization,
                kv_cache_memory_bytes=None if cache_gib is None else int(cache_gib * GIB),
                enforce_eager=not (on_gpu if settings.compile is None else settings.compile),
                # vLLM rewinds a seeded request's generator after a partial prefill, which a CPU generator cannot.
                enable_chunked_prefill=on_gpu,
                max_num_batched_tokens=(
                    None if on_gpu else max(self._max_length, CPU_BATCHED_TOKENS, settings.max_concurrent)
                ),
                worker_extension_cls="rollout.weights.WeightReceiver",
                disable_log_stats=True,
            )

    @property
    def version(self) -> int | None:
        """Of the weights it holds; None while new ones are arriving."""
        return self._version

    def begin_weights(self) -> None:
        self._version = None
        self._llm.collective_rpc("begin_weights")

    def load_weights_chunk(self, chunk: Sequence[tuple[str, Tensor]]) -> None:
        self._llm.collective_rpc("load_weights_chunk", args=(chunk,))

    def finish_weights(self, version: int) -> None:
        """The weights are complete and are ``version`` from now on; what was cached of older ones is dropped."""
        self._llm.collective_rpc("finish_weights")
        self._forget_prompts()
        self._version = version

    def load_checkpoint(self, path: str | Path, version: int) -> None:
        """Serve another checkpoint of the same architecture, a folder or a Hub name, from now on."""
        self.begin_weights()
        for weights in stored_weights(checkpoint_folder(path)):
            self.load_weights_chunk(list(weights.items()))
        self.finish_weights(version)

    def sample(
        self, prompts: Sequence[Prompt], sampling: SamplingSettings, *, seeds: Sequence[int], version: int
    ) -> Iterator[Portion]:
        """One response to each prompt, drawn with the seed of its own in ``seeds``, in portions as they are finished.

        Raises:
            StaleWeightsError: the engine's weights are not ``version``.
            UserError: a prompt leaves no room for a response.
        """
        if self._version != version:
            held = "incomplete" if self._version is None else f"of version {self._version}"
            raise StaleWeightsError(f"version {version} was asked for, but the engine's weights are {held}")
        encoded = [encode_prompt(self._tokenizer, prompt.messages) for prompt in prompts]
        parameters = [
            self._parameters(prompt, len(tokens), sampling, seed)
            for prompt, tokens, seed in zip(prompts, encoded, seeds, strict=True)
        ]
        inputs = [TokensPrompt(prompt_token_ids=tokens) for tokens in encoded]
        self._forget_prompts()  # of earlier calls, which a resumed run has not made: prompts of one call share theirs
        for outputs in self._portions(inputs, parameters):
            yield [(place, self._rollout(prompts[place], output, version)) for place, output in outputs]

    def _forget_prompts(self) -> None:
        if not self._llm.reset_prefix_cache():  # as while a response is under way
            raise RuntimeError(
                "vLLM keeps what it has cached of earlier prompts, since responses are still being sampled"
            )

    def _portions(
        self, inputs: Sequence[TokensPrompt], parameters: Sequence[SamplingParams]
    ) -> Iterator[list[tuple[int, RequestOutput]]]:
        """What ``LLM.generate`` returns, in portions and with the places of the inputs."""
        ids = self._llm.enqueue(inputs, parameters, use_tqdm=False)
        places = {id.partition("-")[0]: place for place, id in enumerate(ids)}  # vLLM appends random characters
        engine, enough = self._llm.llm_engine, max(LEAST_PORTION, math.ceil(len(inputs) * PORTION))
        finished: list[tuple[int, RequestOutput]] = []
        try:
            while engine.has_unfinished_requests():
                outputs = cast(list[RequestOutput], engine.step())
                finished += [(places[output.request_id], output) for output in outputs if output.finished]
                if finished and (len(finished) >= enough or not engine.has_unfinished_requests()):
                    yield finished
                    finished = []
        finally:
            engine.abort_request(ids, internal=True)  # where nobody took the rest

    def _parameters(self, prompt: Prompt, length: int, sampling: SamplingSettings, seed: int) -> SamplingParams:
        room = self._max_length - length
        if room < 1:
            raise UserError(
                f"the prompt that begins with {prompt.messages[-1]['content'][:60]!r} has {length} tokens, which "
                f"leaves no room for a response in the model's {self._max_length}: drop it or raise model.max_positions"
            )
        return SamplingParams(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            max_tokens=min(sampling.max_new_tokens, room),
            stop_token_ids=self._stops,
            stop=self._stop_texts,
            logprobs=0,  # of the sampled token only, before temperature and top-p
            seed=seed,
            detokenize=bool(self._stop_texts),
            skip_special_tokens=False,  # texts that end a response are looked for in what is read of it
        )

    def _rollout(self, prompt: Prompt, output: RequestOutput, version: int) -> Rollout:
        completion = output.outputs[0]
        tokens = list(completion.token_ids)
        finished = completion.finish_reason == "stop"
        stop_text = completion.stop_reason if isinstance(completion.stop_reason, str) else None
        entries: Any = completion.logprobs
        logprobs = [entry[token].logprob for entry, token in zip(entries, tokens, strict=True)]
        return Rollout(
            prompt=prompt,
            prompt_tokens=torch.tensor(output.prompt_token_ids, dtype=torch.int64),
            response_tokens=torch.tensor(tokens, dtype=torch.int64),
            logprobs=torch.tensor(logprobs, dtype=torch.float32),
            finished=finished,
            policy_version=version,
            response=decode_response(self._tokenizer, tokens, finished, stop_text),
        )


@contextmanager
def _answering_for_memory(path: Path, max_length: int) -> Iterator[None]:
    """Where vLLM finds too little memory to start, whoever set how much it has is told in one sentence."""
    try:
        yield
    except (ValueError, torch.OutOfMemoryError) as error:
        said = re.split(r"\.\s", str(error))[0]  # vLLM goes on with arguments of its own
        if "memory" not in said:
            raise
        raise UserError(
            f"vLLM cannot serve {path} in sequences of up to {max_length} tokens ({said}): change "
            "cluster.rollout.cache_gib or cluster.rollout.gpu_memory_utilization, or lower model.max_positions"
        ) from error
