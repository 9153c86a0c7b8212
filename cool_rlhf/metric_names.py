"""Which metrics a run will have, said before it begins."""

from __future__ import annotations

from collections.abc import Mapping

from cool_rlhf.config import Config
from cool_rlhf.instructions import KINDS


def validation_metrics(config: Config, asked: Mapping[str, bool] | None = None) -> list[str]:
    """Every name that :func:`cool_rlhf.ppo.validation.validate` may give under ``config``.

    Args:
        asked: domain of held-out prompts → whether their responses have gold. None where the prompts are not known
            yet: a domain's own names will be missing if no prompt is of that domain.
    """
    ppo, domains = config.ppo, sorted({*config.conditions, "default"} if asked is None else asked)
    recipes = {domain: recipe for domain, recipe in ppo.rewards.items() if domain in domains}
    if asked is not None:
        golden = [domain for domain in domains if asked[domain]]
    elif not config.data.prompts and config.data.world is not None:
        golden = domains
    else:
        golden = [domain for domain, recipe in recipes.items() if recipe.rules]
    names = ["score", "kl", "response_length", "finished", *(f"score/{domain}" for domain in domains)]
    if golden:
        names += ["gold", *(f"gold/{domain}" for domain in golden)]
    for domain, recipe in recipes.items():
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
