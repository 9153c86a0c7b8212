"""What an engine is told, apart from vLLM so that the driver need not import it."""

from __future__ import annotations

from dataclasses import dataclass

CPU_CACHE_GIB = 1.0  # of keys and values, where nothing else is said


@dataclass(frozen=True)
class EngineSettings:
    """How one engine runs; see RolloutRoleConfig."""

    dtype: str  # bfloat16, float16 or float32
    max_length: int  # tokens of prompt and response together, at most; a checkpoint may allow less
    tensor_parallel_size: int
    gpu_memory_utilization: float
    cache_gib: float | None  # of keys and values; None: what the share above leaves on a GPU, 1 on a CPU
    max_concurrent: int
    compile: bool | None = None  # the model's kernels, at the start; None: on GPUs alone
    stop: tuple[str, ...] = ()  # texts or special tokens that end a response, beside the end of turn


@dataclass(frozen=True)
class SamplingSettings:
    temperature: float
    top_p: float
    max_new_tokens: int
