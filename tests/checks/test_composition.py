"""Mistakes in a user's own files: each is told with its file."""

from __future__ import annotations

from pathlib import Path

import pytest

from cool_rlhf.compose import compose
from cool_rlhf.protocols import UserError

HEAD = "# @package _global_\ndefaults:\n  - demo\n"
FILES: dict[str, tuple[str, str]] = {  # name, content and what is told, but for the file
    "experiment: not closed": (
        "# @package _global_\ndata:\n  sft: [a, b\nppo: {}\n",
        "line 4 is not valid YAML: expected",
    ),
    "experiment: tab": (HEAD + "ppo:\n\tclip: 0.1\n", "line 5 is not valid YAML: found character '\\t'"),
    "experiment: twice": (HEAD + "ppo: {clip: 0.1, clip: 0.2}\n", "line 4 is not valid YAML: found duplicate key clip"),
    "conditions: colon": ("law: Judge: it\n", "line 1 is not valid YAML: mapping values are not allowed here"),
    "conditions: bell": ("law: a\ab\n", "is not valid YAML: it holds the character '\\x07'"),
    "experiment: bytes": (HEAD + "experiment: gr\udcf6\n", "is not UTF-8 text"),
    "conditions: bytes": ("law: gr\udcf6\n", "is not UTF-8 text"),
    "experiment: no head": ("ppo: {clip: 0.1}\n", "its first line must be `# @package _global_`"),
    "experiment: empty": ("", "its first line must be `# @package _global_`"),
    "experiment: bad choice": (
        HEAD + "  - override /cluster: nope\n",
        "there is no choice for cluster 'nope'; available: cpu",
    ),
    "experiment: bad base": (HEAD.replace("demo", "demmo"), "there is no experiment 'demmo' (is demo meant?)"),
    "experiment: two conditions": (HEAD + "  - /conditions: default\n", "conditions is chosen twice"),
    "experiment: key": (
        HEAD + "ppo: {iteratoins: 3}\n",
        "there is no setting ppo.iteratoins: is ppo.iterations meant?",
    ),
    "experiment: type": (HEAD + "ppo: {iterations: many}\n", "ppo.iterations is 'many': it must be a whole number"),
    "experiment: section": (HEAD + "ppo: 3\n", "ppo is 3: it must be a section, such as {iterations:…}"),
    "experiment: list for map": (HEAD + "data: {domains: [a]}\n", "data.domains is ['a']: it must be a map"),
    "experiment: map for list": (HEAD + "data: {sft: {a: b}}\n", "data.sft is {'a': 'b'}: it must be a list"),
    "experiment: list": ("# @package _global_\n- a\n", "all of it is ['a']: it must be a section"),
    "data: map for list": ("prompts: {a: b}\n", "data.prompts is {'a': 'b'}: it must be a list"),
    "conditions: yes": (
        "yes: Agree.\n",
        "conditions holds a name that YAML reads as true or false (yes, no, on and off",
    ),
    "conditions: 1": ("1: First.\n", "conditions holds a name that YAML reads as a number: put it in quotes"),
    "conditions: null": ("null: None.\n", "a map holds a name that YAML reads as nothing: put it in quotes"),
    "conditions: list": ("- a\n", "conditions is ['a']: it must be a map"),
    "conditions: text": ("just text\n", "conditions.just text is null: it must be a text"),
    "conditions: nested list": ("law: [a, b]\n", "conditions.law is ['a', 'b']: it must be a text"),
    "conditions: nested map": ("law: {x: y}\n", "conditions.law is {'x': 'y'}: it must be a text"),
    "ppo: nested list": ("adam_betas: [[0.9], 0.95]\n", "ppo.adam_betas[0] is [0.9]: it must be a number"),
}
WITHOUT_FILE = ("two conditions", "nested", "null")  # what only the whole of the settings shows


@pytest.mark.parametrize("name", FILES)
def test_a_mistake_in_a_file_is_told_with_the_file(name: str, tmp_path: Path) -> None:
    content, told = FILES[name]
    group = name.partition(":")[0]
    file = tmp_path / group / "mine.yaml"
    file.parent.mkdir()
    file.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(UserError) as caught:
        compose([f"+{group}=mine", *(["+experiment=demo"] if group != "experiment" else [])], tmp_path)
    assert told in str(caught.value)
    assert str(file) in str(caught.value) or any(kind in name for kind in WITHOUT_FILE)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_left_out_in_vain_is_answered_with_those_that_there_are() -> None:
    for name, there in {"conditions.nope": "default, brief, thorough", "data.weights.nope": "no names"}.items():
        with pytest.raises(UserError, match=rf"^~{name}: \w[.\w]+ does not hold nope; it holds {there}"):
            compose(["+experiment=demo", "~conditions.math", f"~{name}", "seed=3"])
