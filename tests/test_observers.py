import torch

from cool_rlhf.observers import few_of_each_domain
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
