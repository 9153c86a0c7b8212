"""Placement under Ray's rules, and the estimate of memory."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import pytest

from cool_rlhf.compose import compose
from cool_rlhf.memory import ModelShape, rank_bytes
from cool_rlhf.planning import Node, Placement, Resources, describe, holds_all_at_once, phases, plan
from cool_rlhf.protocols import UserError

SIZES = {"vocab_size": 9, "hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 5}
SEVEN_B = ModelShape(92544, 4096, 32, 32, 8, 14336)
EIGHT_GPUS = Resources.of_machine(cpus=16, gpus=8)


@pytest.fixture(autouse=True)
def _without_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cool_rlhf.memory.prepare_hub", lambda: False)


def gpu_load(placements: list[Placement], phase: str) -> dict[tuple[int, int], float]:
    load: dict[tuple[int, int], float] = defaultdict(float)
    for place in placements:
        if place.phase == phase:
            for device in place.devices:
                load[place.node, device] += place.gpus / len(place.devices)
    return load


def test_7b_fits_eight_gpus_exactly() -> None:
    placements = plan(compose(["+experiment=7b_ppo"]), EIGHT_GPUS)
    of_role = {role: [p for p in placements if p.role == role] for role in {p.role for p in placements}}
    counts = {role: len(places) for role, places in of_role.items()}
    assert counts == {"trainer": 8, "policy": 3, "critic": 3, "reference": 1, "scorer": 1, "rollout": 1}
    assert [p.rank for p in of_role["policy"]] == [0, 1, 2]
    for phase in ("training", "ppo"):
        load = gpu_load(placements, phase)
        assert len(load) == 8
        assert all(share == pytest.approx(1.0) for share in load.values())
    assert of_role["reference"][0].devices == of_role["scorer"][0].devices


@pytest.mark.parametrize(("name", "gpus", "nodes"), [("1_8b_ppo", 4, 1), ("7b_ppo", 8, 1), ("20b_ppo", 8, 3)])
def test_big_experiments_fit_80_gb_with_room_for_activations(name: str, gpus: int, nodes: int) -> None:
    config = compose([f"+experiment={name}"])
    shape = ModelShape.of(config)
    load: dict[tuple[str, int, int], float] = defaultdict(float)
    for place in plan(config, Resources((Node(64, gpus),) * nodes)):
        for device in place.devices:
            load[place.phase, place.node, device] += rank_bytes(config, place.role, shape)
    assert max(load.values()) < 60 * 2**30


def test_all_roles_of_1_8b_share_one_gpu() -> None:
    placements = plan(compose(["+experiment=1_8b_ppo", "cluster=gpu_1"]), Resources.of_machine(16, 1))
    assert {place.devices for place in placements} == {(0,)}


def test_shortage_says_what_is_needed_and_what_there_is() -> None:
    with pytest.raises(UserError, match=r"ppo phase needs 8 GPUs .*policy 3 x 1.*no GPU and 2 CPUs"):
        plan(compose(["+experiment=7b_ppo"]), Resources.of_machine(cpus=2, gpus=0))


def test_a_plan_for_another_machine_is_told_of() -> None:
    planned = compose(["+experiment=7b_ppo", "stage=plan"])
    with pytest.raises(UserError, match=r"another machine say what it has: cluster.gpus=8 cluster.cpus=16$"):
        plan(planned, Resources.of_machine(cpus=2, gpus=0))


@pytest.mark.parametrize("given", [None, 2.0])
def test_what_engines_fill_is_told_or_counted(given: float | None) -> None:
    config = compose(["+experiment=7b_ppo", f"cluster.rollout.cache_gib={'null' if given is None else given}"])
    told = describe(config, plan(config, EIGHT_GPUS), SEVEN_B)
    assert ("Each engine fills 90% of its GPU" in told) == (given is None)
    weights = rank_bytes(compose(["+experiment=7b_ppo"]), "rollout", SEVEN_B)
    assert rank_bytes(config, "rollout", SEVEN_B) - weights == (given or 0.0) * 2**30


def test_demo_runs_on_one_core_and_not_on_none() -> None:
    config = compose(["+experiment=demo"])
    assert {place.devices for place in plan(config, Resources.of_machine(cpus=1, gpus=0))} == {()}
    with pytest.raises(UserError, match="CPUs"):
        plan(config, Resources.of_machine(cpus=0.5, gpus=0))


def test_roles_wait_for_each_other_where_a_node_has_not_the_cpus_for_all() -> None:
    cluster = compose(["+experiment=demo"]).cluster  # 2 * 0.5 for training, 0.8 for PPO
    assert holds_all_at_once(cluster, Resources.of_machine(cpus=2, gpus=0))
    assert not holds_all_at_once(cluster, Resources.of_machine(cpus=1.7, gpus=0))
    assert not holds_all_at_once(cluster, Resources((Node(8, 0), Node(1, 0))))


def test_a_rank_never_has_pieces_of_two_gpus() -> None:
    shares = [f"cluster.{role}.gpus=0.6" for role in ("policy", "critic", "reference", "scorer", "rollout")]
    config = compose(["+experiment=demo", "stage=ppo", "sft.path=x", "reward.path=y", *shares])
    with pytest.raises(UserError, match="needs 5 GPUs"):
        plan(config, Resources.of_machine(cpus=8, gpus=3))
    assert len(plan(config, Resources.of_machine(cpus=8, gpus=5))) == 5


def test_tensor_parallel_engine_stays_on_one_node() -> None:
    config = compose(["+experiment=demo", "cluster.rollout.gpus=1", "cluster.rollout.tensor_parallel_size=2"])
    with pytest.raises(UserError, match="cannot be cut"):
        plan(config, Resources((Node(8, 1), Node(8, 1))))
    engine = plan(config, Resources((Node(8, 1), Node(8, 2))))[-1]
    assert (engine.role, engine.node, engine.devices, engine.gpus) == ("rollout", 1, (0, 1), 2)


def test_phases_are_those_that_the_stage_goes_through() -> None:
    def of(*overrides: str) -> tuple[str, ...]:
        return phases(compose(["+experiment=demo", *overrides]))

    assert of() == ("training", "ppo")
    assert of("stage=sft") == ("training",)
    assert of("stage=reward") == ("training", "collect")
    assert of("stage=ppo", "sft.path=x", "reward.path=y") == ("ppo",)
    assert of("stage=annotate") == ()


@pytest.mark.parametrize(
    ("size", "parameters"), [("1_8b", 1_889_110_016), ("7b", 7_737_708_544), ("20b", 19_861_149_696)]
)
def test_parameters_are_those_of_the_released_checkpoints(size: str, parameters: int) -> None:
    assert ModelShape.of(compose([f"+experiment={size}_ppo"])).parameters() == parameters


def test_zero_shards_what_its_stage_says() -> None:
    shape = ModelShape(vocab_size=10, hidden_size=4, layers=1, heads=2, kv_heads=1, ffn_size=8)
    parameters = 10 * 4 + (2 * 16 + 2 * 4 * 2 + 3 * 4 * 8 + 2 * 4) + 4 + 10 * 4
    assert shape.parameters() == parameters

    def held(stage: int, ranks: int) -> float:
        overrides = [f"cluster.policy.zero_stage={stage}", f"cluster.policy.ranks={ranks}", "model.dtype=bfloat16"]
        config = compose(["+experiment=demo", *overrides])
        return rank_bytes(config, "policy", shape)

    saved = [held(stage, 1) - held(stage, 2) for stage in (0, 1, 2, 3)]
    assert saved == pytest.approx([6 * parameters, 6 * parameters, 8 * parameters, 9 * parameters])
    plain = ["+experiment=demo", "cluster.policy.zero_stage=0", "model.dtype=float32"]
    in_float32 = [rank_bytes(compose([*plain, f"cluster.policy.ranks={ranks}"]), "policy", shape) for ranks in (1, 2)]
    assert in_float32[0] == in_float32[1], "nothing is shared out"


@pytest.mark.parametrize(("checkpointing", "by_layer"), [("false", 34), ("true", 2)])
def test_passes_that_are_kept_hold_a_ranks_share_of_an_iteration(checkpointing: str, by_layer: int) -> None:
    """Of 64 responses of up to 100 tokens, to prompts as long, 6,400 tokens on each of two ranks; bytes a layer keeps
    of a token and hidden unit, of all or of its input alone."""
    shape = ModelShape(vocab_size=10, hidden_size=4, layers=2, heads=2, kv_heads=1, ffn_size=8)
    sizes = ["ppo.prompts_per_iteration=64", "sampling.max_new_tokens=100", "ppo.micro_batch_tokens=1000"]
    others = [f"model.gradient_checkpointing={checkpointing}", "model.dtype=bfloat16", "cluster.policy.ranks=2"]

    def held(role: str, keep: str) -> float:
        return rank_bytes(compose(["+experiment=demo", *sizes, *others, f"ppo.keep_passes={keep}"]), role, shape)

    more_held = held("policy", "true") - held("policy", "false")
    assert more_held == pytest.approx((6400 - 1000) * shape.hidden_size * shape.layers * by_layer)
    assert held("reference", "true") == held("reference", "false")


def test_checkpoint_on_disk_tells_its_own_shape(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(SIZES))
    config = compose(["+experiment=7b_ppo", f"model.path={tmp_path}"])
    assert ModelShape.of(config) == ModelShape(9, 8, 3, 4, 4, 5)
    told = describe(config, plan(config, EIGHT_GPUS), ModelShape.of(config)).splitlines()[0]
    assert told.startswith("The model: hidden size 8, 3 layers, 4 heads (4 of keys and values)")
    assert told.endswith(f"(from the config.json of {tmp_path}).")
    (tmp_path / "config.json").write_text(json.dumps({**SIZES, "num_experts": 128}))
    assert "its experts, counted as one, take more" in ModelShape.of(config).source


@pytest.mark.parametrize(
    ("key", "path", "told"),
    [
        ("model.path", "/no/such/model", "there is no folder /no/such/model"),
        ("model.path", "./gone", "there is no folder ./gone"),
        ("sft.path", "outputs/gone", "there is no folder outputs/gone"),
        ("sft.path", "outputs/demo/sft", "there is no folder outputs/demo/sft"),
        ("model.path", "gpt2", "there is no folder gpt2"),
        ("model.path", "EMPTY", "holds no config.json, so it is not a checkpoint"),
        ("model.path", "EMPTY/file", "is a file; give the checkpoint's folder"),
    ],
)
def test_a_model_that_is_not_there_is_not_estimated(tmp_path: Path, key: str, path: str, told: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=rf"^{key}: .*{told}"):
        ModelShape.of(compose(["+experiment=demo", f"{key}={path.replace('EMPTY', str(tmp_path))}"]))


def test_sizes_that_stand_in_for_a_checkpoint_out_of_reach_are_told() -> None:
    """As those of an experiment do, which come after its model's."""
    config = compose(["+experiment=demo", "model=internlm2_7b"])
    shape = ModelShape.of(config)
    told = describe(config, plan(config, EIGHT_GPUS), shape).splitlines()[0]
    assert "hidden size 128, 4 layers" in told
    name = "internlm/internlm2-chat-7b-sft"
    assert told.endswith(f"(from model.hidden_size and its like, since the config.json of {name} is not at hand).")
    assert "since the weights are fresh" in ModelShape.of(compose(["+experiment=demo"])).source


def test_the_hub_is_asked_for_sizes_that_are_not_at_hand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = compose(["+experiment=demo", "model.path=some/model"])
    asked: list[str] = []

    def download(name: str, file: str, etag_timeout: float) -> str:
        asked.append(name)
        if len(asked) == 1:
            raise OSError("out of reach")
        (tmp_path / file).write_text(json.dumps(SIZES))
        return str(tmp_path / file)

    monkeypatch.setattr("cool_rlhf.memory.prepare_hub", lambda: True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache",
        lambda name, file: str(tmp_path / file) if (tmp_path / file).exists() else None,
    )
    assert ModelShape.of(config).hidden_size == config.model.hidden_size
    assert ModelShape.of(config) == ModelShape(9, 8, 3, 4, 4, 5)
    assert ModelShape.of(config).source == "the config.json of some/model"
    assert asked == ["some/model"] * 2, "what is in the cache is not asked for again"


@pytest.mark.parametrize(
    ("fields", "shape"),
    [
        (
            {"n_embd": 8, "n_layer": 3, "n_head": 4, "n_inner": None, "n_positions": 64},  # GPT-2
            ModelShape(9, 8, 3, 4, 4, 32),
        ),
        ({"n_embd": 8, "n_layer": 3, "n_head": 4, "n_inner": 20}, ModelShape(9, 8, 3, 4, 4, 20)),
        (
            {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 4, "ffn_dim": 20},  # OPT
            ModelShape(9, 8, 3, 4, 4, 20),
        ),
    ],
)
def test_a_shape_is_read_by_the_familys_names(tmp_path: Path, fields: dict[str, int], shape: ModelShape) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 9, **fields}))
    assert ModelShape.of(compose(["+experiment=demo", f"model.path={tmp_path}"])) == shape
    other = ["+experiment=7b_ppo", f"sft.path={tmp_path}"]  # it is what is trained on, not model.path
    assert ModelShape.of(compose(other)) == shape


@pytest.mark.parametrize("key", ["model.path", "sft.path"])
def test_a_shape_that_cannot_be_read_is_the_users_mistake(tmp_path: Path, key: str) -> None:
    config = compose(["+experiment=demo", f"{key}={tmp_path}"])
    fields = {"vocab_size": 9, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(UserError, match=rf"^{key}: the config\.json of .* gives no intermediate_size or ffn_dim"):
        ModelShape.of(config)
    (tmp_path / "config.json").write_text(json.dumps({**fields, "num_hidden_layers": None}))
    with pytest.raises(UserError, match=r"gives no num_hidden_layers or n_layer .*memory"):
        ModelShape.of(config)
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(UserError, match=r"config\.json is not valid JSON"):
        ModelShape.of(config)


def test_beside_frozen_weights_adapters_alone_are_trained() -> None:
    """Two layers, rank 4: of hidden size 8 the query and output matrices, of half that the key and value matrices, and
    three of the feed-forward layer."""
    shape = ModelShape(vocab_size=10, hidden_size=8, layers=2, heads=4, kv_heads=2, ffn_size=16)
    adapters = 2 * 4 * (2 * (8 + 8) + 2 * (8 + 4) + 3 * (8 + 16))
    assert shape.adapters(4) == adapters

    def held(*overrides: str) -> float:
        ranks = ["cluster.trainer.ranks=2", "cluster.trainer.zero_stage=2", "model.dtype=bfloat16"]
        return rank_bytes(compose(["+experiment=demo", *ranks, *overrides]), "trainer", shape)

    sft, reward = "sft.lora.rank=4", "reward.lora.rank=4"
    whole = held()
    less = shape.parameters() * (4 + 12) / 2 - adapters * (2 + (4 + 12) / 2)
    assert whole - held(sft, reward) == pytest.approx(less)
    assert held(sft) == held(reward) == whole, "one of the two trains all weights"
    assert held(sft, "reward.path=x") == held(reward, "sft.path=x") == held(sft, reward)
    assert held(sft, reward, "cluster.trainer.zero_stage=3") < held(sft, reward)


def test_description_names_every_process_and_the_fullest_gpu() -> None:
    config = compose(["+experiment=7b_ppo"])
    placements = plan(config, EIGHT_GPUS)
    lines = describe(config, placements, ModelShape.of(config)).splitlines()
    assert len(lines) == len(placements) + 4
    assert "GiB" in lines[-2]
