"""Updates of PPO's roles and of the reward model on an engine, and what plain torch makes of the same losses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from engine_models import LENGTHS, build, gradients, sequences
from torch import Tensor
from transformers import PreTrainedModel

from cool_rlhf.models.internlm2 import InternLM2ForCausalLM, InternLM2ForRewardModel
from cool_rlhf.ppo.losses import Clip
from cool_rlhf.ppo.update import (
    Objective,
    count_predictions,
    count_response_tokens,
    critic_pass,
    critic_update,
    masks_from,
    policy_pass,
    policy_update,
)
from cool_rlhf.protocols import Experience

PROMPT = 3  # tokens of each response's
REWARD: dict[str, Any] = {
    "gamma": 2.0,
    "penalty_weight": 0.02,
    "bound": 5.0,
    "detach_focal": False,
    "use_margin": True,
}
OBJECTIVE = Objective(
    clip=Clip(0.2, 0.3, 2.0),
    temperature=0.9,
    kl_coefficient=0.3,
    kl_kind="k2",
    kl_gradient="k2",
    entropy_coefficient=0.1,
    pretrain_coefficient=0.5,
)
VALUE_CLIP = 0.4
FAULTS = {"doubled": 2.0, "negated": -1.0}


def experiences() -> list[Experience]:
    """Responses after a prompt, with another speaker's two tokens inside; the last text is short."""
    generator = torch.Generator().manual_seed(6)
    made = []
    for tokens in sequences():
        places = torch.arange(len(tokens))
        mask = (places >= PROMPT) & (places != 5) & (places != 6)

        def noise(scale: float, mask: Tensor = mask) -> Tensor:
            return torch.where(mask, scale * torch.randn(len(mask), generator=generator), 0.0)

        old = torch.where(mask, noise(0.4) - 3.5, 0.0)
        reference = torch.where(mask, noise(0.4) - 3.5, 0.0)
        made.append(Experience(tokens, mask, old, reference, noise(1.0), noise(1.0), noise(1.0)))
    return made


def texts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(9)
    return [torch.randint(0, 40, (length,), generator=generator) for length in (12, 3, 17, 8)]


def plain_policy_loss(model: PreTrainedModel) -> Tensor:
    """OBJECTIVE on one sequence at a time, by the model's own forward pass."""

    def logprobs(tokens: Tensor, temperature: float) -> Tensor:
        return (model(input_ids=tokens[None], use_cache=False).logits[0, :-1] / temperature).log_softmax(-1)

    total, count = torch.zeros(()), 0
    for e in experiences():
        everything = logprobs(e.tokens, OBJECTIVE.temperature)
        own, kept = everything.gather(1, e.tokens[1:, None])[:, 0], e.mask[1:]
        ratio, advantages = (own - e.old_logprobs[1:]).exp(), e.advantages[1:]
        surrogate = torch.minimum(ratio * advantages, ratio.clamp(0.8, 1.3) * advantages)
        surrogate = torch.where(advantages < 0, torch.maximum(surrogate, 2.0 * advantages), surrogate)
        entropy = -(everything.exp() * everything).sum(-1)
        divergence = (own - e.reference_logprobs[1:]) ** 2 / 2
        total = total + (-surrogate + 0.3 * divergence - 0.1 * entropy)[kept].sum()
        count += int(kept.sum())
    nll = torch.cat([-logprobs(text, 1.0).gather(1, text[1:, None])[:, 0] for text in texts()])
    return total / count + 0.5 * nll.mean()


def plain_value_loss(model: PreTrainedModel) -> Tensor:
    losses = []
    for e in experiences():
        head = model.v_head(model.model(input_ids=e.tokens[None], use_cache=False).last_hidden_state[0])[:-1, 0]
        old, returns = e.values[1:], e.returns[1:]
        near = old + (head - old).clamp(-VALUE_CLIP, VALUE_CLIP)
        losses.append(torch.maximum((head - returns) ** 2, (near - returns) ** 2)[e.mask[1:]] / 2)
    return torch.cat(losses).mean()


def update_case(
    role: str,
    stage: int,
    budget: int,
    factor: float = 1.0,
    kept: bool = False,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Any]:
    """One update of PPO as a role's rank runs it, with all forward passes made beforehand if they are ``kept``; a
    ``factor`` other than 1 is a planted fault. ``passes``: how many were made in all, less one for each micro-batch."""
    from cool_rlhf.roles.group import share_out

    engine = build(InternLM2ForCausalLM if role == "policy" else InternLM2ForRewardModel, stage, dtype)
    backward, step = engine.backward, engine.step
    seen: list[dict[str, Tensor]] = []

    def watched(rate: float) -> float:
        seen.append(gradients(engine))
        return float(step(rate))

    forward, passes_made = engine.forward, []

    def counted(function: Callable[..., Any], *arguments: Any) -> Any:
        passes_made.append(function)
        return forward(function, *arguments)

    engine.step = watched
    engine.forward = counted
    engine.backward = lambda loss, last: backward(factor * loss, last)

    def mine(items: list[Any], lengths: list[int]) -> list[list[Any]]:
        return share_out(lengths, engine.world_size, budget)[engine.rank].pick(items)

    records = experiences()
    batches = mine(records, list(LENGTHS))
    count = count_response_tokens(records)
    tokens = [[record.tokens for record in batch] for batch in batches] if kept else []
    passes: Any
    if role == "critic":
        read: list[list[Any]] = []
        passes = [critic_pass(engine, each) for each in tokens]
        shares = critic_update(engine, batches, token_count=count, learning_rate=1e-3, clip=VALUE_CLIP, passes=passes)
    else:
        read = mine(texts(), [len(text) for text in texts()])
        counts = {"token_count": count, "pretrain_token_count": count_predictions(texts())}
        passes = [policy_pass(engine, each, masks_from(each, [PROMPT] * len(each)), OBJECTIVE) for each in tokens]
        shares = policy_update(engine, batches, read, OBJECTIVE, **counts, learning_rate=1e-3, passes=passes)
    return {"gradients": seen[0], "shares": shares, "passes": len(passes_made) - len(batches) - len(read)}


def pairs() -> list[Any]:
    from reward.pairs import EncodedPair

    shared = sequences()
    return [
        EncodedPair(torch.cat([shared[0][:n], left]), torch.cat([shared[0][:n], right]), margin)
        for n, left, right, margin in zip(
            (5, 0, 9, 2, 12), shared[1:6], shared[2:7], (0.0, 0.5, 0.0, 1.0, 0.0), strict=True
        )
    ]


def reward_case(stage: int, cuts: int, one_by_one: bool) -> dict[str, Tensor]:
    """Gradient of one step of reward training whose batch is cut into ``cuts`` micro-batches on each rank."""
    from reward.training import reward_update

    engine = build(InternLM2ForRewardModel, stage)
    mine = pairs()[engine.rank :: engine.world_size]
    batches = [[pair] for pair in mine] if one_by_one else [mine[index::cuts] for index in range(cuts)]
    batches += [[] for _ in range(len(pairs()) - len(batches))] if one_by_one else []
    seen: dict[str, Tensor] = {}
    step = engine.step

    def look(learning_rate: float) -> float:
        seen.update(gradients(engine))
        return step(learning_rate)

    engine.step = look
    reward_update(engine, batches, pair_count=len(pairs()), learning_rate=1e-3, **REWARD)
    return seen
