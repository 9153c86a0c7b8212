"""Values that are refused, alone or together, each in a sentence that names the key."""

from __future__ import annotations

import pytest

from cool_rlhf.checks.settings import without_effect
from cool_rlhf.compose import compose
from cool_rlhf.metric_names import validation_metrics
from cool_rlhf.protocols import UserError

BAD_VALUES = {
    "ppo.clip=nan": "ppo.clip",
    "ppo.trace_decay=1.01": "ppo.trace_decay",
    "ppo.discount=-0.1": "ppo.discount",
    "ppo.minibatches=100000": "ppo.minibatches",
    "ppo.kl_estimator=k4": "k1, k2, k3",
    "ppo.learning_rate_schedule=step": "constant, cosine, linear",
    "ppo.entropy_schedule=step": "constant, cosine, linear",
    "ppo.learning_rate_warmup=1.1": "ppo.learning_rate_warmup",
    "ppo.final_learning_rate=-1": "ppo.final_learning_rate",
    "ppo.clip_high=0": "ppo.clip_high",
    "ppo.dual_clip=0.5": "ppo.dual_clip",
    "ppo.value_clip=-0.1": "ppo.value_clip",
    "ppo.entropy_coefficient=nan": "ppo.entropy_coefficient",
    "ppo.stop_kl=-1": "ppo.stop_kl",
    "ppo.critic_trace_decay=2": "ppo.critic_trace_decay",
    "ppo.critic_init=''": "ppo.critic_init",
    "ppo.kl_in=penalty": "reward, loss",
    "ppo.kl_in=loss": "expected gradient of zero",
    "ppo.kl_gradient=k1": "k2, k3",
    "ppo.kl_target=-1": "ppo.kl_target",
    "ppo.kl_horizon=0": "ppo.kl_horizon",
    "ppo.reward_clip=-1": "ppo.reward_clip",
    "ppo.engine_correction=-2": "ppo.engine_correction",
    "ppo.old_logprobs=vllm": "trainer, engine",
    "ppo.policy_learning_rate=0": "ppo.policy_learning_rate",
    "ppo.adam_betas=[0.9,1.0]": "ppo.adam_betas is [0.9, 1.0]: it must be two numbers",
    "sampling.temperature=0.001": "sampling.temperature is 0.001: it must be 0.01 or more",
    "ppo.adam_betas=[0.9]": "two numbers",
    "ppo.adam_betas=[[0.9],0.95]": "ppo.adam_betas[0] is [0.9]: it must be a number",
    "ppo.adam_betas=[true,0.95]": "ppo.adam_betas[0] is True: it must be a number",
    "data.prompts=[{path:x,weight:2}]": "data.prompts[0] is {'path': 'x', 'weight': 2}: it must be a text",
    "data.sft=[[a]]": "data.sft[0] is ['a']: it must be a text",
    "data.sft=[null]": "data.sft[0] is null: it must be a text",
    "data.domains={x:[math]}": "data.domains.x is ['math']: it must be a text",
    "data.domain_weights={math:[1]}": "data.domain_weights.math is [1]: it must be a number",
    "ppo.rewards={math:{conditions:{math:[1]}}}": "ppo.rewards.math.conditions.math is [1]: it must be a number",
    "ppo.validation_conditions=[[math]]": "ppo.validation_conditions[0] is ['math']: it must be a text",
    "sft.lora.targets=[[wqkv]]": "sft.lora.targets[0] is ['wqkv']: it must be a text",
    "sampling.stop=[[a]]": "sampling.stop[0] is ['a']: it must be a text",
    "online.without_detectors=[[a]]": "online.without_detectors[0] is ['a']: it must be a text",
    "collect.judged_as={brief:[[brief]]}": "collect.judged_as.brief[0] is ['brief']: it must be a text",
    "collect.judged_as={brief:brief}": "collect.judged_as.brief is 'brief': it must be a list",
    "ppo.rewards={math:1}": "ppo.rewards.math is 1: it must be a section, such as {conditions:…}",
    "ppo.rewards={math:{condition:{math:1}}}": "is ppo.rewards.math.conditions meant?",
    "ppo.rewards=[a]": "ppo.rewards must be a map, such as {name:value}",
    "data.domains=[a]": "data.domains must be a map, such as {name:value}",
    "data.weights=3": "data.weights is 3: it must be a map, such as {name:value}",
    "data.sft={a:b}": "data.sft must be a list, such as data.sft=[first,second]",
    "data.world=3": "data.world is 3: it must be a section, such as {sft:…}",
    "ppo.top_p=1": "is sampling.top_p meant?",
    "cluster.policy.rank=1": "is cluster.policy.ranks meant?",
    "ppo={clip:0.1}": "ppo= takes the name of a file (report): write its settings one by one, ppo.clip=0.1",
    "conditions={a:b}": "write its settings one by one, conditions.a=b",
    "conditions=[a]": "there is no choice for conditions",
    "+experiment=smoke": "experiment is chosen twice: name one alone",
    "~ppo.clip": "ppo.clip=…",
    "=3": "'=3' is not of the form key=value",
    "output_dir='/runs/one": "is output_dir='/runs/one' meant?",
    "data.weights={~/x.jsonl:2}": "a name with other marks or letters goes into a file (--config-dir)",
    "collect.pairs_per_prompt=0": "collect.pairs_per_prompt is 0: it must be 1 or more",
    "collect.samples_per_prompt=1": "collect.samples_per_prompt is 1: it must be 2 or more",
    "data.world.validation_pairs=-1": "data.world.validation_pairs is -1: it must be 0 or more",
    "reward.gamma=inf": "reward.gamma is inf: it must be a finite number",
    "data.domain_weights.math=inf": "it must be a finite number",
    "sft.adam_betas=[nan,0.9]": "sft.adam_betas",
    "reward.adam_betas=[0.9,-0.1]": "reward.adam_betas",
    "reward.batch_tokens=0": "reward.batch_tokens",
    "reward.final_learning_rate=1": "reward.learning_rate",
    "reward.gamma=-1": "reward.gamma",
    "sft.warmup_fraction=2": "sft.warmup_fraction",
    "sft.max_length=100000": "model.max_positions",
    "model.dtype=float16": "bfloat16, float32",
    "model.heads=3": "model.hidden_size",
    "model.heads=128": "even",
    "seed=1.5": "whole number",
    "seed=null": "null",
    "seed=1,2": "several",
    "data.sft=one.jsonl": "data.sft=[",
    "data.sft=['']": "data.sft",
    "collect.labeller=nonsense": "module:function",
    "cluster.cpus=1.5": "cluster.cpus",  # Ray has whole ones alone
    "cluster.policy.ranks=0": "cluster.policy.ranks",
    "cluster.policy.zero_stage=4": "0, 1, 2, 3",
    "cluster.policy.gpus=2": "ranks",
    "cluster.reference.zero_stage=3": "cluster.reference.zero_stage is 3",
    "cluster.scorer.zero_stage=1": "cluster.scorer.zero_stage is 1",
    "cluster.rollout.gpu_memory_utilization=0": "cluster.rollout.gpu_memory_utilization",
    "cluster.rollout.cache_gib=0": "cluster.rollout.cache_gib",
    "logging.wandb_mode=of": "offline",
    "evaluate.samples_per_prompt=-1": "evaluate.samples_per_prompt",
    "evaluate.best_of=-1": "evaluate.best_of",
    "online.rounds=0": "online.rounds",
    "online.prompts=-1": "online.prompts",
    "online.pairs=-1": "online.pairs",
    "online.patches=19": "online.patches",
    "online.replay=-1": "online.replay",
    "online.learning_rate=0": "online.learning_rate",
    "online.least_mended=2": "online.least_mended",
    "online.most_lost=-0.1": "online.most_lost",
    "online.labeller=robot": "people, rule, judge",
    "online.labeller=judge": "annotate.judge.model",
    "annotate.overlap=0": "annotate.overlap is 0: it must be 1 or more",
    "annotate.judge.requests=0": "annotate.judge.requests",
    "annotate.judge.temperature=-1": "annotate.judge.temperature",
    "annotate.judge.url=http://127.0.0.1:80o0/v1": "annotate.judge.url",
    "annotate.judge.url=127.0.0.1/v1": "it must be http://",
    "online.policy_from=first": "clean, last, sft",
    "online.cheating=0": "online.cheating",
    "online.significance=1": "online.significance",
    "online.least_gain=20": "online.least_gain",
    "data.test_prompts=['']": "data.test_prompts",
    "output_dir=''": "output_dir",
    "ppo.rewards.brief.rules={m\\:f:1}": "one map",
    "ppo.rewards={breif:{rules:{m\\:f:1}}}": "is brief meant?",
    "ppo.rewards={brief:{conditions:{mth:1}}}": "is math meant?",
    "ppo.rewards={brief:{rules:{f:1}}}": "module:function",
    "ppo.rewards={brief:{rules:{m\\:f:nan}}}": "finite",
    "ppo.rewards={brief:{}}": "rewards nothing",
    "ppo.rewards={brief:{conditions:{math:0.0}}}": "rewards nothing",
    "ppo.rewards={brief:{rule:{m\\:f:1}}}": "rule",
    "ppo.best_metric=reward/score": "validation",
    "ppo.best_metric=validation/score/breif": "validation/score/brief",
    "ppo.best_metric=validation/instructions": "validation/",
    "ppo.best_mode=least": "max, min",
    "ppo.engine_correction=0.5": "1 or more",
    "ppo.validation_conditions=[mth]": "is math meant?",
    "ppo.validation_prompts=0": "ppo.validation_prompts",
    "data.domain_weights.mth=2": "is math meant?",
    "collect.judged_as.brief=[thorogh]": "is thorough meant?",
    "collect.judged_as.breif=[thorough]": "is brief meant?",
    "collect.judged_as.brief=[]": "gives brief no domain",
    "collect.least_gap=-1": "collect.least_gap",
    "data.domain_weights.math=-1": "data.domain_weights",
    "data.domain_weights.overall=1": "give it another name",
    "conditions.overall=Be good.": "give it another name",
    "ppo.validation_conditions=[overall]": "give it another name",
    "sampling.system_prompt=''": "sampling.system_prompt",
    "sampling.stop=[x,'']": "sampling.stop holds an empty text",
    "sampling.system_prompt='a<|im_end|>'": "<|im_end|>",
    "learning_rate=1": "learning_rate",
    "hydra.run.dir=x": "output_dir",
    "reward.bound=0.1": "reward.bound",
    "reward.lora.targets=[wqkv,nope]": "reward.lora.targets names 'nope'",
    "data.bad_rows=ignore": "refuse, drop, drop_hub",
    "data.weights={a.jsonl: 2.0}": "data.preferences",
    "data.validation_preferences=['']": "data.validation_preferences",
    "reward.too_long=shorten": "cut, drop",
    "reward.condition_dropout=1.5": "reward.condition_dropout",
    "reward.validation_share=1": "reward.validation_share",
    "conditions.brief='Be brief<|im_end|>'": "<|im_end|>",
    "model=3": "fresh",
    "model.path=${nowhere}": "nowhere",
}


def test_domains_of_sources_name_conditions_and_sources_that_are_there() -> None:
    source = ["+experiment=demo", "data.preferences=[a/b:train]"]
    with pytest.raises(UserError, match=r"data\.domains gives a/b:train the domain 'breif'.*is brief meant"):
        compose([*source, r"data.domains={a/b\:train: breif}"])
    with pytest.raises(UserError, match=r"data\.domains names a/b:test, .*write it as there, a/b:train"):
        compose([*source, r"data.domains={a/b\:test: brief}"])
    for held, named in (("/d/pairs.jsonl", "/d/pair.jsonl"), ("owner/name:train", "owner/nam:train")):
        with pytest.raises(UserError, match=rf"data\.domains names {named}, .*write it as there, {held}"):
            compose([f"data.prompts=[{held}]", f"data.domains={{{named.replace(':', chr(92) + ':')}: math}}"])
    both = r"data.domains={a/b\:train: brief, a/b\:test: brief}"
    assert compose([*source, both]), "every source has a domain: what is over was an experiment's"
    with pytest.raises(UserError, match=r"data\.domains gives a/b the domain 'breif'.*is brief meant"):
        compose([*source, "data.domains={a/b: breif}"])
    assert compose([*source, "data.domains={other/set: law}"]), "an experiment's own list was replaced"
    chats = ["+experiment=demo", "data.sft=[/d/chats.jsonl]", "data.domains={/d/chats.jsonl: creative}"]
    assert compose(chats), "SFT takes no condition"
    with pytest.raises(UserError, match=r"data\.domains gives /d/chats\.jsonl the domain 'creative', which has no"):
        compose([*chats, "data.prompts=[/d/chats.jsonl]"])
    with pytest.raises(UserError, match=r"data\.domains gives /d/chats\.jsonl the domain 'overall', .*another name"):
        compose([*chats[:-1], "data.domains={/d/chats.jsonl: overall}"])


def test_one_response_is_enough_where_no_pairs_are_sampled() -> None:
    assert compose(["+experiment=demo", "collect.prompts=0", "collect.samples_per_prompt=1"])


def test_recipes_of_rewards() -> None:
    rewards = "ppo.rewards={brief:{conditions:{brief:0.7,thorough:0.3},rules:{my.module\\:function:1.0}}}"
    recipe = compose(["+experiment=demo", rewards, "ppo.best_metric=validation/rule/brief"]).ppo.rewards["brief"]
    assert (recipe.conditions, recipe.rules) == ({"brief": 0.7, "thorough": 0.3}, {"my.module:function": 1.0})


def test_an_unfinished_response_pays_the_whole_range_of_scores_at_most_unless_rules_pay() -> None:
    def refused(penalty: float, recipe: str = "conditions:{brief:1}") -> bool:
        try:
            compose(["+experiment=demo", f"ppo.unfinished_penalty={penalty}", f"ppo.rewards={{brief:{{{recipe}}}}}"])
        except UserError as error:
            return "ppo.unfinished_penalty" in str(error)
        return False

    assert refused(10.1)
    assert not refused(10.0)
    assert refused(20.1, "conditions:{brief:1,thorough:-1}")
    assert not refused(20.0, "conditions:{brief:1,thorough:-1}")
    assert not refused(99.0, "rules:{my.module\\:function:1}")
    watched = "rules:{my.module\\:function:0}"
    assert refused(10.1, f"conditions:{{brief:1}},{watched}"), "a rule of weight 0 pays nothing"
    assert not refused(10.0, f"conditions:{{brief:1}},{watched}")


@pytest.mark.parametrize("override", BAD_VALUES)
def test_bad_value_is_refused_with_its_key(override: str) -> None:
    with pytest.raises(UserError) as caught:
        compose(["+experiment=demo", override])
    assert BAD_VALUES[override] in str(caught.value)
    assert "\n" not in str(caught.value)


def test_score_and_gold_cannot_part_where_gold_is_not_known() -> None:
    assert compose(["+experiment=demo", "ppo.stop_when_parted=true"]).ppo.stop_when_parted
    with pytest.raises(UserError, match=r"ppo\.stop_when_parted .* ppo\.rewards"):
        compose(["+experiment=demo", "ppo.stop_when_parted=true", "data.prompts=[own.jsonl]"])
    ruled = "ppo.rewards={math:{conditions:{math:1.0},rules:{cool_rlhf.rules.maths\\:exact_answer:0.0}}}"
    own = compose(["+experiment=demo", "ppo.stop_when_parted=true", "data.prompts=[own.jsonl]", ruled])
    assert [name for name in validation_metrics(own) if "gold" in name] == ["validation/gold", "validation/gold/math"]


def test_too_few_validations_show_no_parting() -> None:
    short = ["+experiment=demo", "ppo.stop_when_parted=true", "ppo.iterations=20", "ppo.validate_every=10"]
    with pytest.raises(UserError, match=r"ppo\.iterations=20 with ppo\.validate_every=10 gives 3: validate more often"):
        compose(short)
    assert compose([*short, "ppo.validate_every=8"])
    assert compose([short[0], *short[2:]]), "the warning alone may be out of reach"


@pytest.mark.parametrize("source", ["a.jsonl", "/data/pairs-*.jsonl", "owner/name", "owner/name@all"])
def test_weights_go_by_the_names_of_the_sources(source: str) -> None:
    named = f"data.preferences=['{source}']"
    assert compose([named, f"data.weights={{{source}: 2}}"]).data.weights == {source: 2.0}
    for weight in (-1, "nan"):
        with pytest.raises(UserError, match=r"data\.weights gives"):
            compose([named, f"data.weights={{{source}: {weight}}}"])
    with pytest.raises(UserError, match="is other/name meant"):
        compose(["data.preferences=[other/name]", "data.weights={othr/name: 2}"])


def test_world_that_is_not_there_has_no_sizes() -> None:
    with pytest.raises(UserError, match="data=world"):
        compose(["data.world.sft=3"])


TOGETHER = {
    ("ppo.kl_target=6", "ppo.kl_coefficient=0"): "start it above 0",
    ("ppo.kl_target=6", "ppo.prompts_per_iteration=64", "ppo.kl_horizon=63"): "ppo.kl_horizon is 63 responses",
    ("ppo.old_logprobs=engine", "ppo.engine_correction=2"): "ppo.old_logprobs=engine",
    ("ppo.old_logprobs=engine", "sampling.temperature=0.7"): "sampling.temperature",
    ("ppo.old_logprobs=engine", "ppo.stop_kl=0.1"): "ppo.stop_kl is 0.1 with ppo.old_logprobs=engine",
    ("ppo.engine_correction=2", "sampling.temperature=0.7"): "sampling.temperature",
    ("ppo.keep_passes=true", "ppo.minibatches=2"): "ppo.minibatches is 2",
    ("ppo.keep_passes=true", "cluster.policy.zero_stage=3"): "cluster.policy.zero_stage is 3",
    ("ppo.keep_passes=true", "cluster.critic.zero_stage=3"): "cluster.critic.zero_stage is 3",
}


@pytest.mark.parametrize("overrides", TOGETHER)
def test_values_that_do_not_go_together_are_refused_in_a_sentence(overrides: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as caught:
        compose(["+experiment=demo", *overrides])
    assert TOGETHER[overrides] in str(caught.value)
    for override in overrides:
        compose(["+experiment=demo", override])


def test_sampling_ahead_takes_a_correction() -> None:
    with pytest.raises(UserError, match="generate_ahead"):
        compose(["+experiment=demo", "ppo.generate_ahead=true"])
    for correction in ("ppo.old_logprobs=engine", "ppo.engine_correction=2"):
        assert compose(["+experiment=demo", "ppo.generate_ahead=true", correction]).ppo.generate_ahead


def test_k2_and_k3_may_stand_in_the_loss() -> None:
    for kind in ("k2", "k3"):
        assert compose(["+experiment=demo", "ppo.kl_in=loss", f"ppo.kl_estimator={kind}"]).ppo.kl_in == "loss"


WITHOUT_EFFECT: dict[tuple[str, ...], list[str]] = {
    (): [],
    ("ppo.stop_kl=0.1", "ppo.value_clip=0.2"): ["ppo.stop_kl=0.1", "ppo.value_clip=0.2"],
    ("ppo.stop_kl=0.1", "ppo.value_clip=0.2", "ppo.epochs=2"): [],
    ("ppo.dual_clip=3", "ppo.minibatches=2"): [],
    ("ppo.dual_clip=3",): ["ppo.dual_clip=3.0"],
    ("ppo.dual_clip=3", "ppo.old_logprobs=engine"): [],
    ("ppo.kl_gradient=k3",): ["ppo.kl_gradient=k3"],
    ("ppo.kl_gradient=k3", "ppo.kl_in=loss", "ppo.kl_estimator=k3"): [],
    ("ppo.learning_rate_warmup=0.06", "ppo.iterations=16", "ppo.critic_warmup=4"): ["ppo.learning_rate_warmup=0.06"],
    ("ppo.learning_rate_warmup=0.07", "ppo.iterations=16", "ppo.critic_warmup=4"): [],
}


@pytest.mark.parametrize("overrides", WITHOUT_EFFECT)
def test_what_a_ppo_of_single_steps_cannot_feel_is_told(overrides: tuple[str, ...]) -> None:
    told = without_effect(compose(["+experiment=demo", *overrides]).ppo)
    assert [sentence.partition(" ")[0] for sentence in told] == WITHOUT_EFFECT[overrides]
