"""What a user gets wrong is answered at once: one sentence on standard error, status 2, no traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

PAIR = {"prompt": "why?", "chosen": "because it is so", "rejected": "no idea", "domain": "brief"}
# Five seconds is what a user may wait; the tests' machine may be busy with several at once.
SECONDS = 15.0


def run(arguments: list[str], folder: Path) -> tuple[int, str, str, float]:
    """Status, standard output and error of the command, and the seconds it took."""
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "cool_rlhf.run", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        timeout=120,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr, time.monotonic() - begun


def write(folder: Path, name: str, *rows: object) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def data(kind: str, *rows: object) -> Callable[[Path], list[str]]:
    """Arguments that name a file with ``rows``."""
    return lambda folder: ["+experiment=demo", f"data.{kind}=[{write(folder, 'rows.jsonl', *rows)}]"]


def cut_json(folder: Path) -> list[str]:
    path = write(folder, "rows.jsonl", PAIR, PAIR)
    path.write_text(path.read_text(encoding="utf-8")[:-30], encoding="utf-8")
    return ["+experiment=demo", f"data.preferences=[{path}]"]


def output_dir_is_a_file(folder: Path) -> list[str]:
    return ["+experiment=demo", f"output_dir={write(folder, 'taken', {})}"]


def model_without_config(folder: Path) -> list[str]:
    (folder / "model").mkdir()
    return ["+experiment=demo", f"model.path={folder / 'model'}"]


def users_own_experiment(folder: Path) -> list[str]:
    (folder / "experiment").mkdir()
    text = "# @package _global_\nexperiment: mine\nppo:\n  iteratoins: 3\n"
    (folder / "experiment" / "mine.yaml").write_text(text, encoding="utf-8")
    return ["+experiment=mine", f"--config-dir={folder}"]


def users_file_is_no_yaml(folder: Path) -> list[str]:
    (folder / "conditions").mkdir()
    (folder / "conditions" / "mine.yaml").write_text("law: [a\ntax: b\n", encoding="utf-8")
    return ["+experiment=demo", "conditions=mine", f"--config-dir={folder}"]


def fixed(*arguments: str) -> Callable[[Path], list[str]]:
    return lambda folder: list(arguments)


MISTAKES: dict[str, tuple[Callable[[Path], list[str]], list[str]]] = {
    "nothing": (fixed(), ["+experiment=", "demo", "7b_ppo"]),
    "unknown experiment": (fixed("+experiment=demmo"), ["demmo", "demo", "20b_ppo"]),
    "unknown option": (fixed("--experiment", "demo"), ["--experiment", "--help"]),
    "option without its value": (fixed("+experiment=demo", "--config-dir=", "stage=plan"), ["--config-dir", "folder"]),
    "unknown key": (fixed("+experiment=demo", "ppo.iteration=3"), ["ppo.iteration", "ppo.iterations"]),
    "unknown added key": (fixed("+experiment=demo", "+ppo.clpi=3"), ["ppo.clpi", "ppo.clip"]),
    "unknown key in a file": (users_own_experiment, ["ppo.iteratoins", "ppo.iterations", "experiment/mine"]),
    "file that is no YAML": (users_file_is_no_yaml, ["conditions/mine.yaml, line 2", "YAML"]),
    "list in a list": (fixed("+experiment=demo", "data.prompts=[[a]]"), ["data.prompts[0]", "['a']", "a text"]),
    "map in a list": (fixed("+experiment=demo", "data.prompts=[{path:x}]"), ["data.prompts[0]", "path", "a text"]),
    "two experiments": (fixed("+experiment=demo", "+experiment=smoke"), ["experiment", "one alone"]),
    "domain of a source that is spelt otherwise": (
        fixed("data.prompts=[/d/pairs.jsonl]", "data.domains={/d/pair.jsonl:math}"),
        ["data.domains", "/d/pair.jsonl", "/d/pairs.jsonl"],
    ),
    "no value": (fixed("+experiment=demo", "seed"), ["seed", "key=value"]),
    "wrong type": (fixed("+experiment=demo", "ppo.iterations=many"), ["ppo.iterations", "many", "whole number"]),
    "bad stage": (fixed("+experiment=demo", "stage=rewards"), ["stage", "rewards", "reward", "pipeline"]),
    "negative count": (fixed("+experiment=demo", "ppo.iterations=-1"), ["ppo.iterations", "-1"]),
    "probability": (fixed("+experiment=demo", "sampling.top_p=1.5"), ["sampling.top_p", "1.5"]),
    "bound": (fixed("+experiment=demo", "reward.bound=0"), ["reward.bound"]),
    "heads": (fixed("+experiment=demo", "model.kv_heads=3"), ["model.heads", "model.kv_heads"]),
    "unknown conditions": (fixed("+experiment=demo", "conditions=mine"), ["mine", "default"]),
    "no data": (fixed("seed=1"), ["data.sft", "pipeline"]),
    "missing file": (fixed("+experiment=demo", "data.sft=[nowhere.jsonl]"), ["data.sft", "nowhere.jsonl"]),
    "glob without a match": (fixed("+experiment=demo", "data.prompts=['no/*.jsonl']"), ["data.prompts", "no/*.jsonl"]),
    "wrong kind of file": (
        lambda folder: ["+experiment=demo", f"data.sft=[{write(folder, 'rows.csv', {})}]"],
        ["data.sft", "rows.csv", ".jsonl"],
    ),
    "Hub set out of reach": (
        fixed("+experiment=demo", "data.pretrain=[some/set]"),
        ["some/set", "data.pretrain", "local"],
    ),
    "empty file": (data("sft"), ["data.sft", "rows.jsonl", "no rows"]),
    "cut JSON": (cut_json, ["data.preferences", "rows.jsonl", "row 2", "JSON"]),
    "wrong field type": (data("preferences", PAIR, {**PAIR, "chosen": 7}), ["row 2", "chosen", "number"]),
    "unknown domain": (data("preferences", {**PAIR, "domain": "breif"}), ["row 1", "domain", "breif", "brief"]),
    "unknown role": (data("sft", {"messages": [{"role": "bot", "content": "hi"}]}), ["messages[0].role", "bot"]),
    "prompt without a question": (
        data("prompts", {"prompt": [{"role": "assistant", "content": "hi"}]}),
        ["row 1", "prompt"],
    ),
    "one prompt, which validation takes": (
        data("prompts", {"prompt": "why?"}, {"prompt": "Why? ", "domain": "brief"}),
        ["data.prompts", "one prompt", "data.validation_prompts"],
    ),
    "nothing but held-out prompts": (
        lambda folder: [
            *data("prompts", {"prompt": "why?"})(folder),
            f"data.validation_prompts=[{write(folder, 'held.jsonl', {'prompt': 'why?'})}]",
        ],
        ["data.prompts", "nothing to learn from", "data.validation_prompts"],
    ),
    "nothing but held-out texts": (
        lambda folder: [
            *data("pretrain", {"text": "so"})(folder),
            f"data.validation_pretrain=[{write(folder, 'held.jsonl', {'text': 'so'}, {'text': 'no'})}]",
        ],
        ["data.pretrain", "nothing to learn from", "data.validation_pretrain"],
    ),
    "margin that is no number": (
        data("preferences", PAIR, {**PAIR, "margin": float("nan")}),
        ["rows.jsonl, row 2", "`margin`", "data.bad_rows=drop"],
    ),
    "hh-rlhf dialogue without a question": (
        data("preferences", {"chosen": "\n\nAssistant: hi", "rejected": "\n\nHuman: a\n\nAssistant: b"}),
        ["row 1", "`chosen`", "`Human:`"],
    ),
    "weight of a source that is not named": (
        lambda folder: [*data("preferences", PAIR)(folder), f"data.weights={{{folder / 'row.jsonl'}:2}}"],
        ["data.weights", "row.jsonl", "is", "rows.jsonl meant"],
    ),
    "output_dir is a file": (output_dir_is_a_file, ["output_dir", "taken"]),
    "model is no checkpoint": (model_without_config, ["model.path", "config.json"]),
    "evaluation of a run that is not there": (
        fixed("stage=evaluate", "output_dir=nonexist"),
        ["error: output_dir nonexist holds no SFT and no reward model; ", "data.sft is empty"],
    ),
    "evaluation of a run that this machine could not make": (
        fixed("+experiment=7b_ppo", "stage=evaluate", "output_dir=nonexist", "cluster.gpus=0"),
        ["error: output_dir nonexist holds no reward model; ", "8 GPUs"],
    ),
    "plan for a model that is not there": (
        fixed("stage=plan", "model.path=/no/such/model", "cluster.cpus=2"),
        ["model.path: there is no folder /no/such/model"],
    ),
    "name of another project": (fixed("+experiment=demo", "ppo.init_kl_coef=0.1"), ["ppo.kl_coefficient"]),
    "checked model": (
        fixed("+experiment=demo", "stage=check", "model.path=/no/such/model"),
        ["model.path: there is no folder /no/such/model"],
    ),
    "checked rows": (
        lambda folder: ["stage=check", *data("preferences", PAIR, {**PAIR, "chosen": 7})(folder)],
        ["row 2", "chosen", "number"],
    ),
    "checked rule": (
        fixed("+experiment=demo", "stage=check", "collect.labeller=no_such:rule"),
        ["collect.labeller", "no_such"],
    ),
    "checked output_dir": (lambda folder: ["stage=check", *output_dir_is_a_file(folder)], ["output_dir", "taken"]),
    "GPUs missing": (fixed("+experiment=7b_ppo", "cluster.gpus=0"), ["8 GPUs", "no GPU", "ppo"]),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_answered_with_one_sentence(name: str, tmp_path: Path) -> None:
    arguments, expected = MISTAKES[name]
    status, out, err, seconds = run(arguments(tmp_path), tmp_path)
    assert status == 2, err
    assert len(err.strip().splitlines()) == 1, err
    assert "Traceback" not in err
    assert out == ""
    for part in expected:
        assert part in err
    assert seconds < SECONDS
    assert not (tmp_path / "outputs").exists(), "a run that never began leaves nothing"


def test_answers_come_before_anything_heavy_is_imported(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from cool_rlhf.run import main\n"
        f"status = main(['+experiment=demo', 'data.preferences=[{write(tmp_path, 'a.jsonl', PAIR, {})}]'])\n"
        "heavy = {'torch', 'transformers', 'datasets', 'ray', 'vllm', 'deepspeed', 'wandb'} & set(sys.modules)\n"
        "print(status, sorted(heavy))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == "2 []\n"


def test_plan_prints_where_everything_runs_and_starts_nothing(tmp_path: Path) -> None:
    arguments = ["+experiment=7b_ppo", "stage=plan", "cluster.gpus=8", "cluster.cpus=16"]
    status, out, err, _ = run(arguments, tmp_path)
    assert (status, err) == (0, "")
    assert out.count("trainer") == 8
    assert out.count("policy") == 3
    assert "GiB" in out
    assert list(tmp_path.iterdir()) == []


def test_plan_says_where_sizes_come_from(tmp_path: Path) -> None:
    status, out, err, seconds = run(["stage=plan", "model.path=some/model", "cluster.cpus=2"], tmp_path)
    assert (status, err) == (0, "")
    assert "since the config.json of some/model is not at hand" in out
    assert seconds < SECONDS


def test_check_reads_all_that_a_pipeline_reads_whatever_the_machine_has_and_starts_nothing(tmp_path: Path) -> None:
    own = [
        f"data.{kind}=[{write(tmp_path, f'{kind}.jsonl', *rows)}]"
        for kind, rows in {
            "sft": [{"messages": [{"role": "user", "content": "why?"}, {"role": "assistant", "content": "so"}]}],
            "preferences": [{**PAIR, "domain": "default"}],
            "prompts": [{"prompt": "who?"}, {"prompt": "how?"}],
        }.items()
    ]
    files = set(tmp_path.iterdir())
    arguments = ["stage=check", *own, "ppo.pretrain_coefficient=0", "cluster=gpu_24", "cluster.gpus=0"]
    status, out, err, _ = run(arguments, tmp_path)
    assert (status, err) == (0, "")
    assert len(out.splitlines()) == 1
    assert "nothing was started" in out
    assert set(tmp_path.iterdir()) == files


def test_config_is_shown_as_the_run_would_have_it(tmp_path: Path) -> None:
    status, out, _, _ = run(["+experiment=demo", "seed=7", "--cfg", "job"], tmp_path)
    assert status == 0
    assert "seed: 7\n" in out
    assert "output_dir: outputs/demo\n" in out


def test_help_names_experiments_and_stages(tmp_path: Path) -> None:
    status, out, _, _ = run(["--help"], tmp_path)
    assert status == 0
    for name in ("demo", "7b_ppo", "pipeline", "evaluate", "output_dir"):
        assert name in out
