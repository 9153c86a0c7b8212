"""Which settings go together. Each mistake is answered with its key and what is allowed."""

from __future__ import annotations

import difflib
import math

from cool_rlhf.checks.domains import check_domain, check_domains
from cool_rlhf.checks.labelling import check_labelling
from cool_rlhf.checks.ranges import FUNCTION, TRAINING, check_number, check_numbers, check_ranges
from cool_rlhf.checks.resources import check_resources
from cool_rlhf.config import Config, ModelConfig, PPOConfig, RewardConfig, SFTConfig
from cool_rlhf.data.messages import TEMPLATE_TOKENS
from cool_rlhf.derived_settings import FEWEST_VALIDATIONS, best_by, validations
from cool_rlhf.metric_names import validation_metrics
from cool_rlhf.protocols import UserError

INTERNLM2_LINEAR = ("wqkv", "wo", "w1", "w2", "w3")


def check_config(config: Config) -> None:
    """Raises UserError for the first value that is not allowed."""
    check_ranges(config)
    _check_model(config.model)
    _check_lora(config)
    _check_world(config)
    _check_lengths(config)
    _check_ppo(config)
    _check_ratio_and_kl(config)
    _check_names(config)
    check_domains(config)
    _check_preferences(config)
    check_labelling(config)
    _check_rewards(config)
    _check_validation(config)
    _check_sampling(config)
    check_resources(config)


def _check_model(model: ModelConfig) -> None:
    for key in ("path", "tokenizer"):
        if getattr(model, key) == "":
            raise UserError(f"model.{key} is empty: give a folder or a Hub name, or null")
    if model.hidden_size % model.heads:
        raise UserError(f"model.hidden_size ({model.hidden_size}) must be a multiple of model.heads ({model.heads})")
    if model.heads % model.kv_heads:
        raise UserError(f"model.heads ({model.heads}) must be a multiple of model.kv_heads ({model.kv_heads})")
    if model.hidden_size // model.heads % 2:
        raise UserError(
            f"model.hidden_size / model.heads is {model.hidden_size // model.heads}: "
            "it must be even, rotary embeddings turn pairs of dimensions"
        )


def _check_lora(config: Config) -> None:
    for section in TRAINING:
        check_numbers(config, [f"{section}.lora.rank"], lambda value: value >= 0, "it must be 0 (off) or more")
        check_numbers(config, [f"{section}.lora.alpha"], lambda value: value > 0, "it must be above 0")
        check_numbers(config, [f"{section}.lora.dropout"], lambda value: 0 <= value < 1, "it must lie in [0, 1)")
    if config.model.path is None and config.sft.path is None:  # fresh weights are InternLM2's
        for section in TRAINING:
            targets = getattr(config, section).lora.targets
            if unknown := sorted(set(targets) - set(INTERNLM2_LINEAR)):
                raise UserError(
                    f"{section}.lora.targets names {unknown[0]!r}, but InternLM2's linear layers are called "
                    f"{', '.join(INTERNLM2_LINEAR)}"
                )


def _check_world(config: Config) -> None:
    world = config.data.world
    if world is None:
        return
    sizes = [f"data.world.{name}" for name in ("sft", "preferences", "prompts", "validation", "test", "pretrain")]
    check_numbers(config, sizes, lambda value: value >= 1, "it must be 1 or more")
    check_numbers(config, ["data.world.validation_pairs"], lambda value: value >= 0, "it must be 0 or more")
    check_numbers(config, ["data.world.label_noise"], lambda value: 0 <= value < 0.5, "it must lie in [0, 0.5)")


def _check_lengths(config: Config) -> None:
    sections: list[tuple[str, SFTConfig | RewardConfig]] = [("sft", config.sft), ("reward", config.reward)]
    for name, section in sections:
        if section.final_learning_rate > section.learning_rate:
            raise UserError(
                f"{name}.final_learning_rate ({section.final_learning_rate}) must not be above "
                f"{name}.learning_rate ({section.learning_rate})"
            )
        if config.model.path is None and section.max_length > config.model.max_positions:
            raise UserError(
                f"{name}.max_length ({section.max_length}) must not be above model.max_positions "
                f"({config.model.max_positions})"
            )
    if config.model.path is None and config.sampling.max_new_tokens >= config.model.max_positions:
        raise UserError(
            f"sampling.max_new_tokens ({config.sampling.max_new_tokens}) must be below model.max_positions "
            f"({config.model.max_positions}), which the prompt shares"
        )


def _check_ppo(config: Config) -> None:
    if config.ppo.minibatches > config.ppo.responses_per_iteration:
        raise UserError(
            f"ppo.minibatches ({config.ppo.minibatches}) must not be above the responses of an iteration, "
            f"ppo.prompts_per_iteration times ppo.samples_per_prompt ({config.ppo.responses_per_iteration})"
        )
    if config.ppo.keep_passes and config.ppo.minibatches > 1:
        raise UserError(
            f"ppo.keep_passes keeps what one update takes as a whole, but ppo.minibatches is {config.ppo.minibatches}: "
            "set that to 1, or ppo.keep_passes=false"
        )
    for role in ("policy", "critic"):
        if config.ppo.keep_passes and getattr(config.cluster, role).zero_stage == 3:
            raise UserError(
                f"ppo.keep_passes keeps several forward passes, of which ZeRO-3 can go back through one only, but "
                f"cluster.{role}.zero_stage is 3: lower it, or set ppo.keep_passes=false"
            )
    recipes = config.ppo.rewards.values()
    weight = max([1.0, *(sum(map(abs, recipe.conditions.values())) for recipe in recipes)])
    most = 2 * config.reward.bound * weight
    ruled = any(any(recipe.rules.values()) for recipe in recipes)  # what rules pay is not known here
    if not ruled and config.ppo.unfinished_penalty > most:
        raise UserError(
            f"ppo.unfinished_penalty is {config.ppo.unfinished_penalty}: it must be at most {most}, the whole range of "
            "scores (twice reward.bound, times the greatest weights of ppo.rewards)"
        )


def _check_ratio_and_kl(config: Config) -> None:
    ppo = config.ppo
    if ppo.clip_high is not None:
        check_numbers(config, ["ppo.clip_high"], lambda value: value > 0, "it must be above 0, or null for ppo.clip")
    if ppo.critic_trace_decay is not None:
        check_numbers(
            config, ["ppo.critic_trace_decay"], lambda value: 0 <= value <= 1, "it must lie in [0, 1] or be null"
        )
    correction = "it must be 1 or more, as it caps a weight that is 1 where engine and trainer agree, or 0 for none"
    check_numbers(config, ["ppo.engine_correction"], lambda value: value == 0 or value >= 1, correction)
    check_numbers(config, ["ppo.dual_clip"], lambda value: value == 0 or value > 1, "it must be above 1, or 0 for none")
    if not ppo.critic_init:
        raise UserError("ppo.critic_init is empty: it must be reward, sft, or a checkpoint's path or Hub name")
    if ppo.kl_in == "loss" and ppo.kl_estimator == "k1":
        raise UserError(
            "ppo.kl_estimator is k1 with ppo.kl_in=loss: as a loss k1 has an expected gradient of zero and pulls "
            "nowhere; use k2 or k3, or ppo.kl_in=reward"
        )
    if ppo.kl_target > 0 and ppo.kl_coefficient == 0:
        raise UserError(
            f"ppo.kl_target is {ppo.kl_target}, but ppo.kl_coefficient, which is to follow it, starts at 0 and would "
            "stay there: start it above 0"
        )
    if ppo.kl_target > 0 and ppo.kl_horizon < ppo.responses_per_iteration:
        raise UserError(
            f"ppo.kl_horizon is {ppo.kl_horizon} responses, fewer than the {ppo.responses_per_iteration} of one "
            "iteration (ppo.prompts_per_iteration times ppo.samples_per_prompt), so that one would move "
            "ppo.kl_coefficient by more than a fifth: raise it"
        )
    if ppo.old_logprobs == "engine" and ppo.engine_correction > 0:
        raise UserError(
            f"ppo.engine_correction is {ppo.engine_correction} with ppo.old_logprobs=engine, whose ratio holds that "
            "correction already: set one of the two"
        )
    if ppo.old_logprobs == "engine" and ppo.stop_kl > 0:
        raise UserError(
            f"ppo.stop_kl is {ppo.stop_kl} with ppo.old_logprobs=engine, from which the policy differs before it has "
            "moved: set it to 0 or take the trainer's, with ppo.engine_correction if you like"
        )
    if ppo.generate_ahead and ppo.old_logprobs == "trainer" and ppo.engine_correction == 0:
        raise UserError(
            "ppo.generate_ahead samples with weights that are one update behind, which nothing would correct: set "
            "ppo.old_logprobs=engine, or ppo.engine_correction above 0"
        )
    if config.sampling.temperature != 1 and (ppo.old_logprobs == "engine" or ppo.engine_correction > 0):
        key = "ppo.old_logprobs=engine" if ppo.old_logprobs == "engine" else "ppo.engine_correction"
        raise UserError(
            f"sampling.temperature is {config.sampling.temperature} with {key}: the engine reports log-probabilities "
            "at temperature 1 only; set it to 1 or take the trainer's uncorrected"
        )


def without_effect(ppo: PPOConfig) -> list[str]:
    """Of settings of the ratio, the KL penalty and the warm-up that are on, those that change nothing, each in a
    sentence."""
    told = []
    if ppo.epochs * ppo.minibatches == 1:
        # From the engine's log-probabilities a ratio may be off 1 before any step.
        bounds = ["stop_kl", "value_clip", *(["dual_clip"] if ppo.old_logprobs == "trainer" else [])]
        told += [
            f"ppo.{name}={getattr(ppo, name)} changes nothing: it bounds how far later steps of an iteration move, and "
            "there is one (ppo.epochs=1, ppo.minibatches=1)"
            for name in bounds
            if getattr(ppo, name) > 0
        ]
    if ppo.kl_gradient == "k3" and (ppo.kl_in, ppo.kl_estimator) != ("loss", "k3"):
        told.append("ppo.kl_gradient=k3 changes nothing: it is of ppo.kl_estimator=k3 with ppo.kl_in=loss")
    share, steps = ppo.learning_rate_warmup, {"policy": ppo.iterations, "critic": ppo.critic_warmup + ppo.iterations}
    told += [
        f"ppo.learning_rate_warmup={share} changes nothing for the {role}: it is less than one of its {count} steps"
        for role, count in steps.items()
        if share > 0 and math.floor(share * count) == 0
    ]
    return told


def schedules_that_end(ppo: PPOConfig) -> list[str]:
    """What depends on how many iterations there are in all, so that a finished round given more of them jumps."""
    ends = ["learning rates"] * (ppo.learning_rate_schedule != "constant" or ppo.learning_rate_warmup > 0)
    ends += ["the weight of entropy"] * (ppo.entropy_schedule != "constant" and ppo.entropy_coefficient > 0)
    return ends


def _check_names(config: Config) -> None:
    if not config.output_dir.strip():
        raise UserError("output_dir is empty: name the folder that the run leaves its results in")
    for kind in (
        "sft",
        "preferences",
        "validation_preferences",
        "prompts",
        "validation_prompts",
        "pretrain",
        "validation_pretrain",
        "test_preferences",
        "test_prompts",
    ):
        if "" in getattr(config.data, kind):
            raise UserError(f"data.{kind} holds an empty name: give JSONL or Parquet files, globs or Hub names")


def _check_rewards(config: Config) -> None:
    for domain, recipe in config.ppo.rewards.items():
        key = f"ppo.rewards.{domain}"
        check_domain(config, domain, "ppo.rewards names the domain")
        for condition in recipe.conditions:
            check_domain(config, condition, f"{key}.conditions names")
        for rule in recipe.rules:
            if not FUNCTION.fullmatch(rule):
                raise UserError(f"{key}.rules names {rule!r}: it must be of the form module:function")
        weights = {**recipe.conditions, **recipe.rules}
        for name, weight in weights.items():
            check_number(f"{key} gives {name} the weight", weight)
        if not any(weights.values()):
            raise UserError(f"{key} rewards nothing: give it conditions or rules with a weight other than 0")


def _check_validation(config: Config) -> None:
    if config.stage == "evaluate":
        return
    for condition in config.ppo.validation_conditions:
        check_domain(config, condition, "ppo.validation_conditions names")
    known = validation_metrics(config)
    if config.ppo.stop_when_parted and "validation/gold" not in known:
        raise UserError(
            "ppo.stop_when_parted compares the score with gold, which prompts of your own have in domains with a rule "
            "alone: name one in ppo.rewards, or leave it off"
        )
    metric, _ = best_by(config.ppo)
    if metric not in known:
        near = difflib.get_close_matches(metric, known, n=1)
        hint = f"is {near[0]} meant?" if near else f"it gives {', '.join(known)}"
        raise UserError(f"ppo.best_metric is {metric!r}, which validation does not give: {hint}")
    if config.ppo.stop_when_parted:
        _check_parting(config.ppo)


def _check_parting(ppo: PPOConfig) -> None:
    metric, mode = best_by(ppo)
    if (metric, mode) != ("validation/gold", "max"):
        raise UserError(
            f"ppo.best_metric is {metric} ({mode}) with ppo.stop_when_parted, which keeps the policy "
            "with the most validation/gold: leave one of the two out"
        )
    if validations(ppo) < FEWEST_VALIDATIONS:
        raise UserError(
            f"ppo.stop_when_parted reads trends off {FEWEST_VALIDATIONS} validations or more, but ppo.iterations="
            f"{ppo.iterations} with ppo.validate_every={ppo.validate_every} gives {validations(ppo)}: validate more "
            "often, or leave it off"
        )


def _check_sampling(config: Config) -> None:
    sampling = config.sampling
    if "" in sampling.stop:
        raise UserError("sampling.stop holds an empty text, which would end every response at once: leave it out")
    if sampling.system_prompt is None:
        return
    if not sampling.system_prompt.strip():
        raise UserError("sampling.system_prompt is empty: write one, or null for none")
    token = next((token for token in TEMPLATE_TOKENS if token in sampling.system_prompt), None)
    if token:
        raise UserError(f"sampling.system_prompt holds the special token {token}: it would break the chat template")


def _check_preferences(config: Config) -> None:
    data = config.data
    for source, weight in data.weights.items():
        if source not in data.preferences:
            near = difflib.get_close_matches(source, data.preferences, n=1)
            hint = f"is {near[0]} meant?" if near else "name it there too, as it is written here"
            raise UserError(f"data.weights names {source}, which data.preferences does not hold: {hint}")
        said = f"data.weights gives {source} the weight"
        check_number(said, weight, lambda value: value >= 0, "it must be 0 or more")
    for domain, prompt in config.conditions.items():
        token = next((token for token in TEMPLATE_TOKENS if token in prompt), None)
        if token:
            raise UserError(f"conditions.{domain} holds the special token {token}: it would break the chat template")
