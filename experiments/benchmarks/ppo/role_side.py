"""The rollout role with nothing beside it: prints a line of JSON with the seconds that each batch took.

Run by run.py as ``python role_side.py BATCHES PROMPTS KEY=VALUE ...``, with the settings of the project's runs.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from cool_rlhf.compose import compose
from cool_rlhf.protocols import Prompt
from cool_rlhf.roles.cluster import cluster
from cool_rlhf.roles.sampler import RolloutGroup, create_engines


def main(batches: int, prompts: int, names: list[str]) -> None:
    config = compose(names)
    rows = [json.loads(line) for line in Path(config.data.prompts[0]).read_text(encoding="utf-8").splitlines()]
    asked = [Prompt(row["id"], row["prompt"], "default", None) for row in rows]
    seconds, tokens = [], []
    with cluster(config.cluster, cpus=2, gpus=0):
        group = RolloutGroup(create_engines(config), config, str(config.sft.path), version=0)
        for batch in range(batches):
            start = batch * prompts % len(asked)
            group.load(str(config.sft.path), version=batch)  # what came before is forgotten, as new weights have it
            began = time.perf_counter()
            rollouts = group.sampler.sample(asked[start : start + prompts], seed=batch, version=batch).result()
            seconds.append(time.perf_counter() - began)
            tokens.append(sum(len(rollout.response_tokens) for rollout in rollouts))
    print(json.dumps({"seconds": seconds, "tokens": tokens}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
