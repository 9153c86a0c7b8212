"""``format``: one valid JSON object with exactly the asked keys."""

from __future__ import annotations

import json
import random
import re

from cool_rlhf.demo.domain import Domain, Task, join_words, with_article
from cool_rlhf.demo.facts import ATTRIBUTES, THINGS, Thing, rivals, statement

_TEMPLATES = (
    "Give me JSON with {keys} for {x}.",
    "Write {x} as JSON with {keys}.",
    "Return a JSON object about {x} with {keys}.",
    "As JSON, please: {keys} of {x}.",
    "Please answer in JSON: {keys} of {x}.",
    "I need {keys} of {x} as JSON.",
    "Tell me {keys} of {x} in JSON.",
    "Put {keys} of {x} into JSON.",
    "Describe {x} by {keys} in JSON.",
)


def make(rng: random.Random) -> Task:
    thing = rng.choice(THINGS)
    known = _known(thing)
    keys = rng.sample(sorted(known), 2)
    question = rng.choice(_TEMPLATES).format(keys=join_words(keys), x=with_article(thing.name))
    asked = {key: known[key] for key in keys}
    good = json.dumps(asked)
    extra = rng.choice([key for key in known if key not in asked])
    sloppy = (
        json.dumps(dict(list(asked.items())[:-1])),
        json.dumps(asked | {extra: known[extra]}),
        _other_key(asked, known, rng.choice(keys), extra),
        _other_key(asked, known, rng.choice(keys), extra),
        f"Sure, here it is: {good}",
        f"{good} I hope this helps you.",
        good.replace('"', ""),
        good[:-1],
        " ".join(statement(a, thing.value(a), with_article(thing.name)) for a in ATTRIBUTES if a in asked),
        "I do not know how to write that.",
    )
    return Task(question, "|".join(f"{key}={value}" for key, value in asked.items()), (good,), sloppy)


def _known(thing: Thing) -> dict[str, str]:
    return {"name": thing.name} | dict(zip(ATTRIBUTES, thing.values, strict=True))


def _other_key(asked: dict[str, str], known: dict[str, str], key: str, other: str) -> str:
    """JSON that is true and tells ``other`` where ``key`` was asked for."""
    return json.dumps({other if k == key else k: known[other] if k == key else v for k, v in asked.items()})


def rule(response: str, answer: str) -> float:
    """0.3 for a JSON object with no text around it, 0.2 times the share of asked keys, 0.5 times the share of right
    values, 0.25 off for each key not asked for. What does not parse gets 0.05 for a brace, else 0."""
    asked = dict(field.split("=") for field in answer.split("|"))
    found = re.search(r"\{.*\}", response, re.DOTALL)
    try:
        parsed = json.loads(found.group()) if found else None
    except json.JSONDecodeError:
        parsed = None
    if found is None or not isinstance(parsed, dict):
        return 0.05 if "{" in response else 0.0
    bare = found.group() == response.strip()
    keys = sum(key in parsed for key in asked) / len(asked)
    values = sum(parsed.get(key) == value for key, value in asked.items()) / len(asked)
    extra = len(parsed.keys() - asked.keys())
    return max(0.0, 0.3 * bare + 0.2 * keys + 0.5 * values - 0.25 * extra)


def spoil(response: str, rng: random.Random) -> str:
    """A wrong value, a key lost or exchanged for another, or a mark without which it does not parse."""
    fields = json.loads(response)
    fault = rng.choice(("value", "value", "other key", "other key", "key", "mark"))
    if fault == "other key":
        known = next(_known(t) for t in THINGS if fields.items() <= _known(t).items())
        others = [key for key in known if key not in fields]
        return _other_key(fields, known, rng.choice(list(fields)), rng.choice(others))
    if fault == "value":
        key = rng.choice(list(fields))
        others = [t.name for t in THINGS if t.name != fields[key]] if key == "name" else rivals(fields[key])
        return json.dumps(fields | {key: rng.choice(others)})
    if fault == "key":
        del fields[rng.choice(list(fields))]
        return json.dumps(fields)
    at = response.rindex(rng.choice('":}'))
    return response[:at] + response[at + 1 :]


DOMAIN = Domain("format", make, rule, judged_as=("format",), weight=5, spoiled_share=0.45, spoil=spoil)
