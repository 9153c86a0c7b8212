from types import SimpleNamespace

import torch

from cool_rlhf.observers import few_of_each_domain, repair_metrics
from cool_rlhf.protocols import Prompt, Rollout


def rollout(number: int, domain: str) -> Rollout:
    prompt = Prompt(f"q{number}", [{"role": "user", "content": f"Question {number}?"}], domain, None)
    one = torch.ones(1, dtype=torch.int64)
    return Rollout(prompt, one, one, torch.zeros(1), number % 2 == 0, 3, f"answer {number}")


def test_the_first_two_of_each_domain_are_shown_with_what_was_said_of_them():
    rollouts = [rollout(k, "ab"[k in (1, 5, 6)]) for k in range(8)]
    shown = few_of_each_domain(rollouts, [float(k) for k in range(8)], [None, 0.25, *[0.5] * 6])
    assert [sample["response"] for sample in shown] == ["answer 0", "answer 1", "answer 2", "answer 5"]
    assert shown[1] == {
        "domain": "b",
        "messages": [{"role": "user", "content": "Question 1?"}],
        "response": "answer 1",
        "score": 1.0,
        "gold": 0.25,
        "finished": False,
    }
    assert shown[0]["gold"] is None


def test_a_repair_is_told_by_counts_and_means_over_what_was_tried():
    mended = SimpleNamespace(held_out=1.0, before=0.875, after=0.75)
    unmended = SimpleNamespace(held_out=0.5, before=0.875, after=0.5)
    repair = SimpleNamespace(kept=["a/mended"], verdicts={"a/mended": mended, "b/unmended": unmended})
    assert repair_metrics(repair) == {
        "repair/kept": 1,
        "repair/rolled_back": 1,
        "repair/held_out": 0.75,
        "repair/accuracy_before": 0.875,
        "repair/accuracy_after": 0.625,
    }
    assert repair_metrics(SimpleNamespace(kept=[], verdicts={})) == {"repair/kept": 0, "repair/rolled_back": 0}
