"""COOL RLHF from end to end (report, section 4.2)."""

from __future__ import annotations

from contextlib import AbstractContextManager

from cool_rlhf.config import Config
from cool_rlhf.evaluation.evaluate import evaluate
from cool_rlhf.stages.run import Run, open_run


def run(config: Config, watched: AbstractContextManager[None]) -> None:
    """Run ``config.stage`` and the earlier stages that it needs and does not find finished; ``watched`` meets an error
    before anything is closed. ``evaluate`` looks at what a run has left, whatever its settings were; what it does
    not find is made by another call (:func:`cool_rlhf.preflight.with_earlier_stages`)."""
    if config.stage == "evaluate":
        evaluate(config, watched)
        return
    with open_run(config) as stages, watched:
        STAGES[config.stage](stages)


def sft(run: Run) -> None:
    run.sft()


def reward(run: Run) -> None:
    run.sft()
    run.collect()
    run.reward_model()


def ppo(run: Run) -> None:
    reward(run)
    run.ppo(0)


def pipeline(run: Run) -> None:
    """Supervised fine-tuning, a conditional reward model, and rounds of PPO. After each, what the policy learnt to
    cheat with is found, pairs for people are chosen, and the reward model trains on."""
    reward(run)
    for round in range(run.rounds):
        run.ppo(round)
        run.online(round)
        run.next_reward_model(round)
    run.export()


STAGES = {"sft": sft, "reward": reward, "ppo": ppo, "pipeline": pipeline}
