"""Which metrics a run will have, said before it begins."""

from __future__ import annotations

from cool_rlhf.config import Config
from cool_rlhf.instructions import KINDS


def validation_metrics(config: Config) -> list[str]:
    """Every name that :func:`cool_rlhf.ppo.validation.validate` may give under ``config``. A domain's own are missing
    from its rows where no validation prompt is of that domain."""
    ppo, domains = config.ppo, sorted({*config.conditions, "default"})
    names = ["score", "kl", "response_length", "finished", *(f"score/{domain}" for domain in domains)]
    if not config.data.prompts and config.data.world is not None:
        names += ["gold", *(f"gold/{domain}" for domain in domains)]
    elif ruled := [domain for domain, recipe in ppo.rewards.items() if recipe.rules]:
        names += ["gold", *(f"gold/{domain}" for domain in ruled)]
    for domain, recipe in ppo.rewards.items():
        names += [f"model/{domain}"] if recipe.conditions else []
        names += [f"condition/{domain}/{condition}" for condition in recipe.conditions]
        names += [f"rule/{domain}"] if recipe.rules else []
        names += [f"rule/{domain}/{rule}" for rule in recipe.rules] if len(recipe.rules) > 1 else []
    for condition in ppo.validation_conditions:
        names += [f"under/{condition}", *(f"under/{condition}/{domain}" for domain in domains)]
    if ppo.validation_texts > 0:
        names += ["lm_loss"]
    if ppo.validation_instructions > 0:
        kinds = KINDS[: ppo.validation_instructions]
        names += ["instructions", *(f"instructions/{kind}" for kind in kinds)]
    return [f"validation/{name}" for name in names]
