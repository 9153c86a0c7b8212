"""vLLM calls this in each of its processes, so that InternLM2 folders without ``auto_map`` load too."""

from __future__ import annotations


def register() -> None:
    from transformers import AutoConfig

    from cool_rlhf.models.internlm2 import InternLM2Config

    AutoConfig.register("internlm2", InternLM2Config, exist_ok=True)
