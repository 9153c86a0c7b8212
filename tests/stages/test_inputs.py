"""What the policy is asked, and what is kept from it."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from cool_rlhf.compose import compose
from cool_rlhf.data.chat import encode_prompt, reward_text
from cool_rlhf.data.identity import judges_repairs, prompt_key
from cool_rlhf.data.splitting import hold_out_texts, spread
from cool_rlhf.data.streams import ShuffledStream, WeightedStream
from cool_rlhf.demo.tokenizer import train_tokenizer
from cool_rlhf.ppo.experience import to_score
from cool_rlhf.preflight import check_data
from cool_rlhf.protocols import Prompt, Rollout, UserError
from cool_rlhf.stages.inputs import Inputs

SMALL = ["+experiment=demo", *(f"data.world.{part}=20" for part in ("sft", "preferences", "prompts", "pretrain"))]
SYSTEM = {"role": "system", "content": "You speak like a pirate."}
DIALOGUE = [
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Ahoy!"},
    {"role": "user", "content": "1 + 1?"},
]
HELD = [{"role": "user", "content": "2 + 2?"}]


@pytest.fixture
def own(tmp_path: Path):
    """The inputs of a run on a multi-turn prompt, with and without a system turn of its own."""
    file = tmp_path / "prompts.jsonl"
    rows = [{"prompt": DIALOGUE, "domain": "math"}, {"prompt": [SYSTEM, *DIALOGUE], "domain": "math"}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = tmp_path / "held.jsonl"
    held.write_text(json.dumps({"prompt": HELD, "domain": "math"}) + "\n")
    return lambda *overrides: Inputs(
        compose([*SMALL, f"data.prompts=[{file}]", f"data.validation_prompts=[{held}]", *overrides])
    )


def test_a_default_system_prompt_stands_before_prompts_that_have_none(own):
    inputs = own("sampling.system_prompt='Be kind.'", "ppo.validation_instructions=3")
    kind = {"role": "system", "content": "Be kind."}
    expected = [[kind, *DIALOGUE], [SYSTEM, *DIALOGUE]]
    assert [prompt.messages for prompt in inputs.prompts] == expected
    assert [prompt.messages for prompt in inputs.validation] == [[kind, *HELD]]
    assert [prompt.id for prompt in inputs.prompts] == [prompt.id for prompt in own().prompts]
    assert all(instruction.prompt.messages[0] == kind for instruction in inputs.instructions)
    world = Inputs(compose([*SMALL, "sampling.system_prompt='Be kind.'"]))
    assert all(prompt.messages[0] == kind for prompt in [*world.prompts, *world.validation])
    assert [prompt.messages for prompt in own().prompts] == [DIALOGUE, [SYSTEM, *DIALOGUE]]


def test_the_policy_never_sees_a_condition_and_the_scorer_sees_it_in_front(own):
    inputs = own()
    conditions = inputs.config.conditions
    tokenizer = train_tokenizer(inputs.texts(), 640)
    for prompt in inputs.prompts:
        shown = tokenizer.decode(encode_prompt(tokenizer, prompt.messages))
        assert not [text for text in conditions.values() if text and text in shown]
        assert "Ahoy!" in shown
        nothing = torch.zeros(0, dtype=torch.long)
        asked = to_score(Rollout(prompt, nothing, nothing, torch.zeros(0), True, 0, response=""))
        judged = reward_text(asked.messages, conditions[asked.condition or ""], asked.finished)
        assert judged.startswith(f"<s><|im_start|>system\n{conditions['math']}<|im_end|>\n")
        assert ("pirate" in judged) == ("pirate" in shown)


def test_weights_of_domains_choose_the_stream():
    assert isinstance(Inputs(compose(SMALL)).prompt_stream(1), ShuffledStream)
    inputs = Inputs(compose([*SMALL, "data.domain_weights={math:3,brief:0}"]))
    stream = inputs.prompt_stream(1)
    assert isinstance(stream, WeightedStream)
    domains = [prompt.domain for prompt in stream.take(0, 240)]
    assert "brief" not in domains
    assert domains.count("math") == 3 * domains.count("format") > 0


def test_a_few_texts_are_held_out_of_files(tmp_path: Path):
    def texts(name: str, count: int) -> Path:
        file = tmp_path / name
        file.write_text("".join(json.dumps({"text": f"{name} {k % 90}"}) + "\n" for k in range(count)))
        return file

    file = texts("a.jsonl", 100)  # ten of them twice
    inputs = Inputs(compose([*SMALL, f"data.pretrain=[{file}]"]))
    assert len(inputs.held_out_texts) == 5
    assert not set(inputs.pretrain) & set(inputs.held_out_texts)
    assert len(set(inputs.pretrain) | set(inputs.held_out_texts)) == 90
    few = Inputs(compose([*SMALL, f"data.pretrain=[{texts('b.jsonl', 10)}]"]))
    assert (len(few.pretrain), len(few.held_out_texts)) == (10, 0)
    named = Inputs(compose([*SMALL, f"data.pretrain=[{file}]", f"data.validation_pretrain=[{texts('c.jsonl', 3)}]"]))
    assert (len(named.pretrain), len(named.held_out_texts)) == (100, 3)
    world = Inputs(compose(SMALL))
    assert (len(world.pretrain), len(world.held_out_texts)) == (20, 2)


def test_held_out_texts_are_of_all_sources_in_their_order():
    texts = [f"{source} {number}" for source in "zyxw" for number in range(25)]
    kept, held = hold_out_texts(texts, 0.05, 100)
    assert held == ["z 0", "z 20", "y 15", "x 10", "w 5"]
    assert [text for text in texts if text not in held] == kept
    assert hold_out_texts(texts, 0.5, 33)[1][-1] == "w 21", "a remainder is spread too"
    assert spread(held, 2) == ["z 0", "y 15"]
    assert spread(held, 9) == held
    assert spread(held, 0) == []


def test_the_first_and_the_last_held_out_prompts_have_all_domains(tmp_path: Path):
    file = tmp_path / "prompts.jsonl"
    domains = ["math"] * 1200 + ["brief"] * 600 + ["format"] * 600  # in the order of their files
    rows = [{"prompt": f"question {k}", "domain": domain} for k, domain in enumerate(domains)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))

    other = tmp_path / "others.jsonl"
    other.write_text(json.dumps({"prompt": "another question", "domain": "math"}) + "\n")

    def held_out(prompts: Path, *overrides: str):
        return list(Inputs(compose([*SMALL, f"data.prompts=[{prompts}]", *overrides])).validation)

    named = held_out(other, f"data.validation_prompts=[{file}]")
    for some in (named[:40], named[-40:], named[1000:1040]):
        assert Counter(prompt.domain for prompt in some) == {"math": 20, "brief": 10, "format": 10}
    assert len({prompt.id for prompt in named}) == 2400
    assert held_out(other, f"data.validation_prompts=[{file}]") == named
    assert held_out(other, f"data.validation_prompts=[{file}]", "seed=2") != named
    split = held_out(file)
    assert len(split) == 120
    for some in (split[:20], split[-20:]):
        assert set(Counter(prompt.domain for prompt in some)) == {"math", "brief", "format"}
    world = Inputs(compose(SMALL))
    assert world.validation == world.world.validation


def test_fewer_prompts_than_the_rounds_ask_for_are_told_of(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"question {k}", "domain": "math"}) + "\n" for k in range(400)))
    few = Inputs(compose([*SMALL, f"data.prompts=[{file}]", "online.prompts=30"]))
    assert few.round_prompts == few.validation
    assert "only 20 prompts are held out of the 30 that online.prompts asks" in caplog.text
    caplog.clear()
    enough = Inputs(compose([*SMALL, f"data.prompts=[{file}]", "online.prompts=15"]))
    assert enough.round_prompts == enough.validation[-15:]
    assert Inputs(compose([*SMALL, "online.prompts=0"])).round_prompts == []
    assert caplog.text == ""


def test_prompts_of_test_rows_are_not_asked_in_ppo(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def write(name: str, *rows: dict) -> Path:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    asked = write("prompts.jsonl", *({"prompt": f"Question {k}?"} for k in range(40)))
    pairs = write("pairs.jsonl", {"prompt": "question 3?", "chosen": "a", "rejected": "b", "domain": "law"})
    prompts = write("tested.jsonl", {"prompt": "question 4?", "domain": "law"})
    tests = [f"data.test_preferences=[{pairs}]", f"data.test_prompts=[{prompts}]"]
    caplog.set_level("INFO")
    own = [*SMALL, f"data.prompts=[{asked}]", *tests]
    for more in ([], ["sampling.system_prompt=Short."]):
        config = compose([*own, *more])
        check_data(config)
        inputs = Inputs(config)
        texts = {prompt.messages[-1]["content"] for prompt in [*inputs.prompts, *inputs.validation]}
        assert texts == {f"Question {k}?" for k in range(40) if k not in (3, 4)}
    assert "data.prompts: 2 of 40 rows are left out" in caplog.text
    with pytest.raises(UserError, match=r"data\.prompts leaves nothing .* stands in data\.test_prompts too"):
        check_data(compose([*SMALL, f"data.prompts=[{asked}]", f"data.test_prompts=[{asked}]"]))
    missing = ["data.test_preferences=[nowhere.jsonl]", "stage=reward"]
    with pytest.raises(UserError, match=r"data\.test_preferences: there is no file"):
        check_data(compose([*SMALL, *missing]))


def test_chats_that_answer_prompts_of_test_rows_are_not_learnt_from(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def write(name: str, *rows: dict) -> Path:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    def chat(*said: str) -> dict:
        """The user speaks first, and both in turn."""
        turns = [{"role": ("user", "assistant")[place % 2], "content": text} for place, text in enumerate(said)]
        return {"messages": turns}

    kept = [
        chat("Question 1?", "a"),
        chat("Hello", "Hi.", "Question 2?", "a"),
        chat("Hello", "Ahoy!", "Question 1?", "a"),
        {"messages": [SYSTEM, *chat("Question 2?", "a")["messages"]]},
    ]
    tested = [
        chat("question  2?", "a"),
        chat("Question 2?", "b"),
        chat("Question 2?", "a", "And now?", "b"),
        chat(*(turn["content"] for turn in DIALOGUE), "2"),
        chat("Question 3?", "a"),
    ]
    pairs = write("pairs.jsonl", {"prompt": "Question 2?", "chosen": "a", "rejected": "b", "domain": "law"})
    prompts = write("tested.jsonl", {"prompt": DIALOGUE, "domain": "law"}, {"prompt": "Question 3?"})
    tests = [f"data.test_preferences=[{pairs}]", f"data.test_prompts=[{prompts}]"]
    caplog.set_level("INFO")
    own = [*SMALL, f"data.sft=[{write('chats.jsonl', *tested, *kept)}]"]

    def learnt(*overrides: str) -> list[dict]:
        config = compose([*own, *overrides])
        check_data(config)
        return [{"messages": chat["messages"]} for chat in Inputs(config).chats]

    assert learnt(*tests) == kept
    assert caplog.messages == ["data.sft: 5 of 9 rows are left out, since they are held out"]
    pirate = f"sampling.system_prompt='{SYSTEM['content']}'"
    assert learnt(*tests, pirate) == kept[:-1], "which only the system turn told apart"
    assert learnt() == [*tested, *kept]
    own[-1] = f"data.sft=[{write('all.jsonl', *tested)}]"
    with pytest.raises(UserError, match=r"data\.sft leaves nothing to learn from, .* data\.test_prompts: name other"):
        check_data(compose([*own, *tests, "stage=sft"]))
    with pytest.raises(UserError, match=r"data\.test_preferences: there is no file"):
        check_data(compose([*SMALL, "data.test_preferences=[nowhere.jsonl]", "stage=sft"]))


def test_the_embedded_world_has_no_chat_that_answers_its_test_prompts(tmp_path: Path):
    sizes = [*SMALL, "data.world.sft=2000"]
    world = Inputs(compose(sizes)).world
    asked = [*(prompt.messages for prompt in world.test), *(pair.chosen[:-1] for pair in world.preference_test)]
    file = tmp_path / "tested.jsonl"
    file.write_text("".join(json.dumps({"prompt": messages}) + "\n" for messages in asked))
    assert len(Inputs(compose([*sizes, f"data.test_prompts=[{file}]"])).chats) == 2000


def test_prompts_of_test_rows_are_not_validated_on_either(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def write(name: str, *numbers: int) -> Path:
        rows = ({"prompt": f"Question {number}?"} for number in numbers)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    tested = write("tested.jsonl", 1, 2)
    own = [*SMALL, f"data.test_prompts=[{tested}]"]
    caplog.set_level("INFO")
    for more in ([], ["sampling.system_prompt=Short."], [f"data.prompts=[{write('prompts.jsonl', 1, 5, 6)}]"]):
        config = compose([*own, f"data.validation_prompts=[{write('held.jsonl', 1, 3)}]", *more])
        check_data(config)
        assert [prompt.messages[-1]["content"] for prompt in Inputs(config).validation] == ["Question 3?"]
    assert "data.validation_prompts: 1 of 2 rows are left out" in caplog.text
    with pytest.raises(UserError, match=r"data\.validation_prompts leaves nothing .* stands in data\.test_prompts too"):
        check_data(compose([*own, f"data.validation_prompts=[{tested}]"]))


def test_pairs_for_validation_are_not_all_of_tested_prompts(tmp_path: Path):
    def write(name: str, *numbers: int) -> Path:
        rows = ({"prompt": f"Question {n}?", "chosen": "a", "rejected": "b", "domain": "math"} for n in numbers)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    pairs, tested = write("pairs.jsonl", 5, 6), write("tested.jsonl", 1, 2)
    own = [*SMALL, f"data.preferences=[{pairs}]", f"data.test_preferences=[{tested}]"]
    some = compose([*own, f"data.validation_preferences=[{write('held.jsonl', 1, 3)}]"])
    check_data(some)
    assert [pair.chosen[0]["content"] for pair in Inputs(some).preference_split.validation] == ["Question 3?"]
    for more in ([], ["sampling.system_prompt=Short."]):
        with pytest.raises(UserError, match=r"validation_preferences leaves nothing .* in data\.test_preferences too"):
            check_data(compose([*own, f"data.validation_preferences=[{tested}]", *more]))


def test_no_repair_is_judged_on_a_prompt_that_the_rounds_teach_on(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def judges(prompt: Prompt) -> bool:
        return judges_repairs(prompt.messages)

    world = Inputs(compose(SMALL))
    asked = world.validation[-world.config.online.prompts :]
    taught = {prompt_key(prompt.messages) for prompt in asked if not judges(prompt)}
    keys = [prompt_key(pair.chosen[:-1]) for pair in world.judging_pairs]
    assert taught.isdisjoint(keys)
    assert len(keys) == 1511, "of 2,500, as docs/online.md has it"
    assert {prompt_key(prompt.messages) for prompt in asked if judges(prompt)} & set(keys), "what only judges, judges"
    assert world.kept_from_reward_models.keys() == set(keys)
    without = Inputs(compose([*SMALL, "online.prompts=0"]))
    assert len(without.judging_pairs) == 2500, "no rounds, none that they teach on"
    assert "general accuracy" not in caplog.text

    rows = [{"prompt": f"Question {k}?", "chosen": "a", "rejected": "b", "domain": "math"} for k in range(20)]
    files = {name: tmp_path / f"{name}.jsonl" for name in ("prompts", "pairs", "held")}
    files["prompts"].write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    files["held"].write_text("".join(json.dumps(row) + "\n" for row in rows))
    files["pairs"].write_text(json.dumps({**rows[0], "prompt": "Another?"}) + "\n")
    own = [f"data.validation_prompts=[{files['prompts']}]", f"data.validation_preferences=[{files['held']}]"]
    for system in ([], ["sampling.system_prompt='Be kind.'"]):
        inputs = Inputs(compose([*SMALL, f"data.preferences=[{files['pairs']}]", *own, *system]))
        expected = {prompt.messages[-1]["content"] for prompt in inputs.validation if judges(prompt)}
        assert {pair.chosen[-2]["content"] for pair in inputs.judging_pairs} == expected
        assert 0 < len(expected) < 20
        told = f"is judged by only {len(expected)} pairs, too few .* on the prompts of {20 - len(expected)} others"
        assert re.search(told, caplog.text)


def test_what_is_named_for_validation_is_not_learnt_from(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def write(name: str, rows: list[dict]) -> Path:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    asked = write("prompts.jsonl", [{"prompt": f"Question {k}?", "domain": "math"} for k in range(5)])
    held = write("held.jsonl", [{"prompt": text, "domain": "brief"} for text in ("question  3?", "question 9?")])
    texts = write("texts.jsonl", [{"text": f"text {k}"} for k in range(4)])
    held_texts = write("held_texts.jsonl", [{"text": "text 2"}, {"text": "text 7"}])
    named = [f"data.validation_prompts=[{held}]", f"data.validation_pretrain=[{held_texts}]"]
    inputs = Inputs(compose([*SMALL, f"data.prompts=[{asked}]", f"data.pretrain=[{texts}]", *named]))
    caplog.set_level("INFO")
    assert [prompt.messages[0]["content"] for prompt in inputs.prompts] == [f"Question {k}?" for k in (0, 1, 2, 4)]
    assert (list(inputs.pretrain), len(inputs.validation)) == (["text 0", "text 1", "text 3"], 2)
    assert "data.prompts: 1 of 5 rows are left out" in caplog.text
    assert "data.pretrain: 1 of 4 rows are left out" in caplog.text
    world = Inputs(compose(SMALL)).world
    held = write("held.jsonl", [{"prompt": world.prompts[3].messages}])
    held_texts = write("held_texts.jsonl", [{"text": world.pretrain[3]}])
    inputs = Inputs(compose([*SMALL, *named]))
    assert world.prompts[3].id not in [prompt.id for prompt in inputs.prompts]
    assert (len(inputs.prompts), len(inputs.pretrain)) == (19, 19)


def test_rules_are_the_gold_of_the_users_own_prompts(own):
    asked = [{"role": "user", "content": "6 * 7?"}]
    math, brief = (Prompt("p", asked, domain, "42") for domain in ("math", "brief"))
    ruled = "ppo.rewards={math:{conditions:{math:1.0},rules:{cool_rlhf.rules.maths\\:exact_answer:0.0}}}"
    inputs = own(ruled)
    golds = [inputs.gold_score(math, text, True) for text in ("It is 42.", "It is 41.")]
    assert golds == [1.0, 0.0], "a rule without weight watches"
    assert inputs.gold_score(brief, "It is 42.", True) is None
    assert own().gold_score(math, "It is 42.", True) is None
    world = Inputs(compose([*SMALL, ruled]))
    prompt = next(prompt for prompt in world.prompts if prompt.domain == "math")
    assert prompt.answer is not None
    assert world.gold_score(prompt, prompt.answer, True) != world.rule_score(prompt, prompt.answer, True)


def test_the_worlds_rule_judges_its_own_prompts_alone(tmp_path: Path) -> None:
    rows = [{"prompt": "6 * 7?", "domain": "math", "answer": "x = 42"}, {"prompt": "Why?", "domain": "brief"}]
    (tmp_path / "held.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held = f"data.validation_prompts=[{tmp_path / 'held.jsonl'}]"
    inputs = Inputs(compose([*SMALL, held]))
    assert [inputs.gold_score(prompt, "42", True) for prompt in inputs.validation] == [None, None]
    mine = next(prompt for prompt in inputs.prompts if prompt.domain == "math")
    assert mine.answer is not None
    assert inputs.gold_score(mine, mine.answer, True) == inputs.world_score(mine, mine.answer, True) is not None
    ruled = Inputs(compose([*SMALL, held, "ppo.rewards={math:{rules:{cool_rlhf.rules.maths\\:exact_answer:1.0}}}"]))
    judged = {prompt.domain: ruled.gold_score(prompt, "It is 42.", True) for prompt in ruled.validation}
    assert judged == {"math": 1.0, "brief": None}


def test_own_data_leaves_the_demos_world_out() -> None:
    assert compose(["+experiment=demo"]).data.world is not None
    assert compose(["+experiment=smoke", "data=own", "data.sft=[chats.jsonl]"]).data.world is None
