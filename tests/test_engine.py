"""The engine against plain torch: same gradients, same weights, however the batch is cut and shared out."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed import TCPStore

from cool_rlhf.data.packing import pack
from cool_rlhf.models.forward import token_values
from cool_rlhf.models.internlm2 import InternLM2ForCausalLM, InternLM2ForRewardModel

sys.path.insert(0, str(Path(__file__).parent / "engine_cases"))
import engine_models
import engine_rank
import engine_updates as updates
from engine_models import BETAS, BUDGETS, CLIP, TOKENS, WEIGHT_DECAY, language_loss, scalar_loss, sequences

from reward.losses import reward_loss

WORLDS = (1, 2)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[Any, Any]]:
    """World size → what its rank 0 left."""
    folder = tmp_path_factory.mktemp("engine")
    ranks, stores = [], []
    for world in WORLDS:
        # Here and at once: a port that is only looked for may be taken by the time that the ranks have started.
        stores.append(TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False))
        for rank in range(world):
            command = [sys.executable, engine_rank.__file__, *map(str, (rank, world, stores[-1].port, folder))]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            with (folder / f"log_{world}_{rank}").open("w") as log:
                ranks.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
    try:
        codes = [rank.wait(timeout=900) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    logs = "\n".join(log.read_text()[-2000:] for log in folder.glob("log_*"))
    assert codes == [0] * len(ranks), logs
    return {world: torch.load(folder / f"found_{world}.pt", weights_only=False) for world in WORLDS}


def flat(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([value.flatten().float() for value in values.values()])


def relative(mine: Tensor, expected: Tensor) -> float:
    return float((mine - expected).norm() / expected.norm())


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """The same steps in plain torch: one backward pass over the whole batch, AdamW, clipping."""
    model = engine_models.model(InternLM2ForCausalLM)
    named = dict(model.named_parameters())
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in named.values() if p.dim() > 1], "weight_decay": WEIGHT_DECAY},
            {"params": [p for p in named.values() if p.dim() == 1], "weight_decay": 0.0},
        ],
        betas=BETAS,
    )
    norms, seen = [], []
    for rate in engine_rank.RATES:
        optimizer.zero_grad()
        language_loss(lambda function, *arguments: function(model, *arguments), sequences()).backward()
        seen.append({name: p.grad.clone() for name, p in named.items()})
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), CLIP)))
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    assert all(norm > CLIP for norm in norms), "clipping has to show"
    return {"norms": norms, "gradients": seen, "weights": {name: p.detach() for name, p in named.items()}}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("cut", list(BUDGETS))
def test_steps_equal_plain_adamw(found, plain, world: int, stage: int, cut: str) -> None:
    mine = found[world]["training", stage, cut]
    for step, (norm, expected) in enumerate(zip(mine["norms"], plain["norms"], strict=True)):
        assert norm == pytest.approx(expected, rel=1e-5)
        assert mine["gradients"][step].keys() == plain["gradients"][step].keys()
        assert relative(flat(mine["gradients"][step]), flat(plain["gradients"][step])) <= 1e-5
    assert mine["weights"].keys() == plain["weights"].keys()
    for name, weight in mine["weights"].items():
        torch.testing.assert_close(weight, plain["weights"][name], atol=2e-6, rtol=1e-5, msg=name)


@pytest.fixture(scope="module")
def plain_updates() -> dict[str, dict[str, Tensor]]:
    """Gradients of PPO's losses in plain torch, one unpacked sequence at a time."""
    losses = {
        "policy": (InternLM2ForCausalLM, updates.plain_policy_loss),
        "critic": (InternLM2ForRewardModel, updates.plain_value_loss),
    }
    found = {}
    for role, (kind, loss) in losses.items():
        model = engine_models.model(kind)
        loss(model).backward()
        found[role] = {name: p.grad for name, p in model.named_parameters()}
    return found


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(
    ("stage", "cut"), [*itertools.product((0, 1, 2, 3), BUDGETS), *((stage, "kept") for stage in (0, 1, 2))]
)
@pytest.mark.parametrize("role", ["policy", "critic"])
def test_an_update_has_one_gradient_however_it_is_cut(found, plain_updates, world, stage, cut, role) -> None:
    mine, expected = found[world][role, stage, cut], plain_updates[role]
    assert mine["gradients"].keys() == expected.keys()
    assert relative(flat(mine["gradients"]), flat(expected)) <= 1e-5
    assert mine["passes"] == 0, "each micro-batch is passed once, beforehand or in the update"


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("stage", [1, 2])
@pytest.mark.parametrize("role", ["policy", "critic"])
def test_kept_passes_give_the_same_gradient_in_bfloat16(found, world: int, stage: int, role: str) -> None:
    plain, kept = (flat(found[world]["bfloat16", role, stage, kept]["gradients"]) for kept in (False, True))
    assert plain.norm() > 0
    assert torch.equal(kept, plain)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("stage", [0, 3])
def test_ranks_with_other_numbers_of_chunks_give_one_gradient(found, world: int, stage: int) -> None:
    mine = found[world]["vocabulary", stage]
    model = engine_models.model(InternLM2ForCausalLM, vocabulary=engine_rank.VOCABULARY)
    loss = language_loss(lambda function, *arguments: function(model, *arguments), sequences()[:-1])
    loss.backward()
    assert mine["logprobs"] == pytest.approx(-TOKENS * float(loss.detach()), rel=1e-5)
    expected = {name: p.grad for name, p in model.named_parameters()}
    assert mine["gradients"].keys() == expected.keys()
    assert relative(flat(mine["gradients"]), flat(expected)) <= 1e-5


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("fault", list(updates.FAULTS))
def test_a_scaled_or_negated_gradient_does_not_pass(found, plain_updates, world, fault) -> None:
    error = relative(flat(found[world][fault]["gradients"]), flat(plain_updates["policy"]))
    assert error == pytest.approx(abs(updates.FAULTS[fault] - 1), rel=1e-3)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_loaded_engine_goes_on_as_the_saved_one(found, world: int, stage: int) -> None:
    onwards, resumed = (found[world]["resume", stage][name] for name in ("onwards", "resumed"))
    assert resumed["norms"] == onwards["norms"]
    assert torch.equal(flat(resumed["weights"]), flat(onwards["weights"]))
    assert resumed["draws"] == onwards["draws"]
    assert len(set(resumed["draws"])) == world


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("saved_stage", "stage"), engine_rank.MOVES)
def test_a_state_goes_on_under_other_ranks_and_another_zero_stage(found, world, saved_stage: int, stage: int) -> None:
    saved_world = 3 - world
    expected = found[saved_world]["resume", saved_stage]["onwards"]["weights"]
    moved = found[world]["moved", saved_stage, stage]["weights"]
    assert moved.keys() == expected.keys()
    for name, weight in moved.items():
        torch.testing.assert_close(weight, expected[name], atol=2e-6, rtol=1e-5, msg=name)
    drawn = found[world]["moved", saved_stage, stage]["draws"]
    assert len(set(drawn)) == world, "each rank draws its own"


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_a_state_from_before_the_first_step_is_that_of_a_fresh_engine(found, plain, world: int, stage: int) -> None:
    first = found[1]["unmoved", 0]
    for name, weight in found[world]["unmoved", stage].items():
        torch.testing.assert_close(weight, first[name], atol=2e-6, rtol=1e-5, msg=name)
    assert relative(flat(first), flat(plain["weights"])) > 1e-4, "three steps are not one"


@pytest.fixture(scope="module")
def exact() -> nn.Module:
    """The bfloat16 case's model with the same weights in float32, and their gradient."""
    model = engine_models.model(InternLM2ForRewardModel, torch.bfloat16).float()
    scalar_loss(lambda function, *arguments: function(model, *arguments), sequences()).backward()
    return model


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_bfloat16_trains_float32_masters_and_a_float32_head(found, exact, world: int, stage: int) -> None:
    mine = found[world]["bfloat16", stage]
    expected = {name: p.grad for name, p in exact.named_parameters()}
    assert relative(flat(mine["gradients"]), flat(expected)) <= 0.02
    assert mine["norm"] == pytest.approx(float(flat(expected).norm()), rel=0.02)

    name = "v_head.weight"
    assert {key for key, weight in mine["before"].items() if weight.dtype == torch.float32} == {name}
    assert torch.equal(mine["before"][name], exact.v_head.weight), "the cast took nothing off the head"
    rounded = engine_models.model(InternLM2ForRewardModel, torch.bfloat16)
    torch.testing.assert_close(mine["values"], token_values(rounded, pack(sequences())), atol=1e-6, rtol=1e-6)

    # A step of 1e-5 is far below bfloat16's spacing: only the head shows it at once, and a hundred show everywhere.
    moved = mine["after_one"][name] - mine["before"][name]
    expected_move = -1e-5 * (expected[name].sign() + WEIGHT_DECAY * mine["before"][name])
    torch.testing.assert_close(moved, expected_move, atol=1e-7, rtol=0.05)
    layer = "model.layers.0.attention.wqkv.weight"
    still = (mine["after_one"][layer] == mine["before"][layer]).float().mean()
    finally_still = (mine["after_all"][layer] == mine["before"][layer]).float().mean()
    assert still > 0.9
    assert finally_still < still - 0.2
    assert torch.equal(flat(mine["reloaded"]), flat(mine["after_all"]))


def test_bfloat16_gradients_are_summed_in_float32_by_every_stage(found) -> None:
    """Rounded to bfloat16, the sum's norm is off by 2e-4."""
    norms = [found[1]["bfloat16", stage]["norm"] for stage in (0, 2, 3)]
    assert norms == pytest.approx([norms[1]] * 3, rel=1e-5)


@pytest.mark.parametrize("world", WORLDS)
def test_layers_and_a_float32_head_that_ranks_cannot_share_evenly(found, world: int) -> None:
    mine, alone = found[world]["uneven"], found[1]["uneven"]
    for name, made in mine["made"].items():
        assert mine["begun"][name].dtype == made.dtype
        assert torch.equal(mine["begun"][name], made), name
        assert torch.equal(mine["loaded"][name], mine["after"][name]), name
        if made.dim() > 1:  # a step is far below the spacing of numbers near 1, which the norms have
            assert not torch.equal(mine["after"][name], made), name
        # Adam's first step goes by the gradient's sign, which rounding decides where the gradient is next to nothing.
        assert torch.isclose(mine["after"][name], alone["after"][name], rtol=0.01, atol=1e-4).float().mean() > 0.95


@pytest.fixture(scope="module")
def whole_reward_gradient() -> dict[str, Tensor]:
    """Plain torch: every conversation alone in a pass of its own, one loss over all pairs."""
    model = engine_models.model(InternLM2ForRewardModel)
    pairs = updates.pairs()
    chosen, rejected = (
        torch.stack([token_values(model, pack([getattr(pair, side)]))[-1] for pair in pairs])
        for side in ("chosen", "rejected")
    )
    margin = torch.tensor([pair.margin for pair in pairs])
    reward_loss(chosen, rejected, margin=margin).backward()
    return {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(("stage", "cut"), [(0, 1), (0, 2), (0, 4), (0, "one by one"), (2, 2)])
def test_gradient_of_reward_training_does_not_depend_on_the_cut(
    found, whole_reward_gradient, world: int, stage: int, cut: int | str
) -> None:
    mine = found[world]["reward", stage, cut]
    assert mine.keys() == whole_reward_gradient.keys()
    assert relative(flat(mine), flat(whole_reward_gradient)) <= 1e-5


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_adapters_train_alike_under_every_zero_stage_and_are_exported_merged(found, world: int, stage: int) -> None:
    mine, plain = found[world]["lora", stage], found[1]["lora", 0]
    assert mine["norms"] == pytest.approx(plain["norms"], rel=1e-5)
    merged = engine_models.model(InternLM2ForRewardModel)
    before = {name: p.clone() for name, p in merged.named_parameters()}
    merged.load_state_dict(mine["weights"])
    torch.testing.assert_close(token_values(merged, pack(sequences())), mine["values"], atol=1e-5, rtol=1e-5)
    learnt = {name for name, p in merged.named_parameters() if not torch.equal(p, before[name])}
    assert learnt == {name for name in before if "norm" not in name and "embeddings" not in name}
    onwards, resumed = mine["next"]
    assert resumed == onwards


def test_matrices_decay_and_vectors_do_not() -> None:
    from cool_rlhf.engine import parameter_groups

    model = engine_models.model(InternLM2ForRewardModel)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed, spared = parameter_groups(model, 0.1)
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.1, 0.0)
    assert {names[id(p)] for p in spared["params"]} == {name for name in names.values() if "norm" in name}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)
