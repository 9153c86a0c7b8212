"""One rank of the engine's tests: runs every case of its world size and leaves rank 0's numbers in a file.

Run as ``python engine_rank.py RANK WORLD_SIZE PORT FOLDER``; a process group needs processes of its own.
"""

from __future__ import annotations

import faulthandler
import os
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from engine_models import (
    BETAS,
    BUDGETS,
    CLIP,
    WEIGHT_DECAY,
    accumulate,
    build,
    gradients,
    language_loss,
    model,
    scalar_loss,
    sequences,
    weights,
)
from engine_updates import FAULTS, reward_case, update_case
from torch import Tensor
from transformers import LlamaConfig, LlamaForSequenceClassification, PreTrainedModel

from cool_rlhf.data.packing import pack
from cool_rlhf.models import attention, forward
from cool_rlhf.models.forward import token_logprobs, token_values
from cool_rlhf.models.internlm2 import InternLM2ForCausalLM, InternLM2ForRewardModel

RATES = (1e-3, 2e-3, 5e-4)
VOCABULARY = 4096  # its embeddings have more parameters than ZeRO-3 leaves whole
HANGS_SECONDS = 60  # ranks that gather it other numbers of times wait for each other in vain
MOVES = ((3, 0), (0, 1), (3, 2), (2, 3))  # ZeRO stages: saved under, gone on under


def training_case(stage: int, budget: int) -> dict[str, Any]:
    engine = build(InternLM2ForCausalLM, stage)
    norms, seen = [], []
    for rate in RATES:
        accumulate(engine, budget)
        seen.append(gradients(engine))
        norms.append(engine.step(rate))
    return {"norms": norms, "gradients": seen, "weights": weights(engine)}


def vocabulary_case(stage: int) -> dict[str, Any]:
    """A step whose output layer ZeRO-3 really partitions, over chunks of which ranks have different numbers; and
    log-probabilities without a gradient."""
    plain = forward.CHUNK_ELEMENTS
    forward.CHUNK_ELEMENTS = 8 * VOCABULARY
    faulthandler.dump_traceback_later(HANGS_SECONDS, exit=True)
    engine = build(InternLM2ForCausalLM, stage, vocabulary=VOCABULARY)
    mine = sequences()[:-1] if engine.world_size == 1 else [sequences()[:1], sequences()[1:-1]][engine.rank]
    with torch.no_grad():
        logprobs = engine.forward(token_logprobs, pack(mine))[0].sum()
    torch.distributed.all_reduce(logprobs)
    engine.backward(language_loss(engine.forward, mine), last=True)
    seen = gradients(engine)
    faulthandler.cancel_dump_traceback_later()
    forward.CHUNK_ELEMENTS = plain
    return {"logprobs": logprobs, "gradients": seen}


def draws(engine: Any) -> list[tuple[float, float, float]]:
    """What each rank's generators give next."""
    found: list[Any] = [None] * engine.world_size
    mine = (torch.rand(()).item(), random.random(), float(np.random.random()))
    torch.distributed.all_gather_object(found, mine)
    return found


def resume_case(stage: int, folder: Path) -> dict[str, Any]:
    """Two steps, saved, two more; against a fresh engine that loads and takes the last two."""

    def two_steps(engine: Any) -> dict[str, Any]:
        norms = []
        for rate in RATES[:2]:
            accumulate(engine, BUDGETS["cut"])
            norms.append(engine.step(rate))
        return {"norms": norms, "weights": weights(engine), "draws": draws(engine)}

    engine = build(InternLM2ForCausalLM, stage)
    torch.manual_seed(7 + engine.rank)
    random.seed(7 + engine.rank)
    np.random.seed(7 + engine.rank)
    two_steps(engine)
    engine.save(folder)
    onwards = two_steps(engine)
    again = build(InternLM2ForCausalLM, stage)
    torch.manual_seed(99)
    again.load(folder)
    return {"onwards": onwards, "resumed": two_steps(again)}


def bfloat16_case(stage: int, folder: Path) -> dict[str, Any]:
    """A scalar model whose layers are bfloat16 and whose head is float32, through many tiny steps."""
    engine = build(InternLM2ForRewardModel, stage, torch.bfloat16, clip=1e9)
    before = weights(engine)
    accumulate(engine, BUDGETS["cut"], scalar_loss)
    seen = gradients(engine)
    with torch.no_grad():
        values = engine.forward(token_values, pack(sequences()))
    norm = engine.step(1e-5)
    after_one = weights(engine)
    for _ in range(99):
        accumulate(engine, BUDGETS["whole"], scalar_loss)
        engine.step(1e-5)
    after_all = weights(engine)
    engine.save(folder)
    again = build(InternLM2ForRewardModel, stage, torch.bfloat16)
    again.load(folder)
    return {
        "norm": norm,
        "gradients": seen,
        "values": values,
        "before": before,
        "after_one": after_one,
        "after_all": after_all,
        "reloaded": weights(again),
    }


def uneven_case(folder: Path) -> dict[str, dict[str, Tensor]]:
    """A bfloat16 model with a float32 head under ZeRO-3, which gathers its layers, and again as they are computed anew
    for the backward pass; two ranks cannot share them evenly. Its weights as made, as the engine begins with them,
    after a step, and as another engine loads them."""
    from cool_rlhf.engine import DeepSpeedEngine

    def make() -> PreTrainedModel:
        size = {"vocab_size": 40, "hidden_size": 33, "intermediate_size": 3201, "num_hidden_layers": 1}
        heads = {"num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 16}
        torch.manual_seed(4)
        made = LlamaForSequenceClassification(LlamaConfig(**size, **heads, num_labels=1, pad_token_id=0))
        made.set_attn_implementation(attention.NAME)
        made.to(torch.bfloat16).score.float()
        with torch.no_grad():
            made.score.weight.copy_(torch.randn(1, 33) * 0.3)
        made.gradient_checkpointing_enable()
        return made.train()

    def engine() -> Any:
        return DeepSpeedEngine(make(), zero_stage=3, weight_decay=WEIGHT_DECAY, gradient_clip=CLIP, betas=BETAS)

    first = engine()
    found = {"made": dict(make().named_parameters()), "begun": weights(first)}
    accumulate(first, BUDGETS["cut"], scalar_loss)
    first.step(RATES[0])
    first.save(folder)
    second = engine()
    second.load(folder)
    return {**found, "after": weights(first), "loaded": weights(second)}


def moved_case(stage: int, saved: Path) -> dict[str, Any]:
    """Two steps on from what another sharding saved after two."""
    engine = build(InternLM2ForCausalLM, stage)
    engine.load(saved)
    drawn = draws(engine)
    for rate in RATES[:2]:
        accumulate(engine, BUDGETS["cut"])
        engine.step(rate)
    return {"weights": weights(engine), "draws": drawn}


def unmoved_case(stage: int, folder: Path) -> dict[str, Tensor]:
    """Saved and loaded before any step, as a frozen policy is; then one step."""
    engine = build(InternLM2ForCausalLM, stage)
    engine.save(folder)
    again = build(InternLM2ForCausalLM, stage)
    again.load(folder)
    accumulate(again, BUDGETS["cut"])
    again.step(RATES[0])
    return weights(again)


def wait_for(file: Path) -> None:
    deadline = time.monotonic() + 200
    while not file.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(file)
        time.sleep(0.1)


def lora_case(stage: int, folder: Path) -> dict[str, Any]:
    """Three steps with adapters; then what is exported, what it computes, and a resumed engine's next step."""
    from cool_rlhf.config import LoRAConfig
    from cool_rlhf.engine import DeepSpeedEngine
    from cool_rlhf.models.lora import add_lora

    def make() -> Any:
        module = model(InternLM2ForRewardModel)
        torch.manual_seed(8)
        add_lora(module, LoRAConfig(rank=2, alpha=4))
        module.train()
        return DeepSpeedEngine(module, zero_stage=stage, weight_decay=WEIGHT_DECAY, gradient_clip=CLIP, betas=BETAS)

    def steps(engine: Any) -> list[float]:
        norms = []
        for rate in RATES:
            accumulate(engine, BUDGETS["cut"], scalar_loss)
            norms.append(engine.step(rate))
        return norms

    engine = make()
    norms = steps(engine)
    with torch.no_grad():
        values = engine.forward(token_values, pack(sequences()))
    exported = weights(engine)
    engine.save(folder)
    again = make()
    again.load(folder)
    return {"norms": norms, "values": values, "weights": exported, "next": [steps(engine), steps(again)]}


def main(rank: int, world_size: int, port: int, folder: Path) -> None:
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(world_size))
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), TORCHELASTIC_USE_AGENT_STORE="True")
    torch.set_num_threads(1)
    found: dict[Any, Any] = {}
    for stage in (0, 1, 2, 3):
        for cut, budget in BUDGETS.items():
            found["training", stage, cut] = training_case(stage, budget)
            for role in ("policy", "critic"):
                found[role, stage, cut] = update_case(role, stage, budget)
        for role in ("policy", "critic") if stage < 3 else ():
            found[role, stage, "kept"] = update_case(role, stage, BUDGETS["cut"], kept=True)
            for kept in (False, True) if stage else ():
                found["bfloat16", role, stage, kept] = update_case(
                    role, stage, BUDGETS["cut"], kept=kept, dtype=torch.bfloat16
                )
        found["resume", stage] = resume_case(stage, folder / f"resume_{world_size}_{stage}")
        found["unmoved", stage] = unmoved_case(stage, folder / f"unmoved_{world_size}_{stage}")
    for stage in (0, 3):
        found["vocabulary", stage] = vocabulary_case(stage)
    for fault, factor in FAULTS.items():
        found[fault] = update_case("policy", 2, BUDGETS["cut"], factor)
    for stage in (0, 2, 3):  # 0 means 1 in bfloat16
        found["bfloat16", stage] = bfloat16_case(stage, folder / f"bfloat16_{world_size}_{stage}")
    found["uneven"] = uneven_case(folder / f"uneven_{world_size}")
    (folder / f"saved_{world_size}").touch()
    other = 3 - world_size
    wait_for(folder / f"saved_{other}")
    for saved_stage, stage in MOVES:
        found["moved", saved_stage, stage] = moved_case(stage, folder / f"resume_{other}_{saved_stage}")
    for stage in (0, 1, 2, 3):
        found["lora", stage] = lora_case(stage, folder / f"lora_{world_size}_{stage}")
    for cuts in (1, 2, 4):
        found["reward", 0, cuts] = reward_case(0, cuts, one_by_one=False)
    found["reward", 0, "one by one"] = reward_case(0, 0, one_by_one=True)
    found["reward", 2, 2] = reward_case(2, 2, one_by_one=False)
    if rank == 0:
        torch.save(found, folder / f"found_{world_size}.pt")


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:4]), Path(sys.argv[4]))
