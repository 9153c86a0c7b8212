"""One task of Label Studio's JSON: as it is written here, and what it says when it comes back."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from cool_rlhf.data.messages import RowError, checked_text, kind_of
from cool_rlhf.data.rows import RowRules, checked_domain
from cool_rlhf.online.annotation.items import MACHINES, PEOPLE, GivenLabel, Item, Kind, Label, Winner, parse_item

_LONGEST = 1e12  # seconds

_ADDRESS = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_ANSWERS: Mapping[str, Winner] = {"left": "first", "right": "second", "tie": "tie", "both_bad": "both_bad"}
_SIDES: Mapping[Winner, str] = {"first": "left", "second": "right"}
_UNKNOWN = "unknown annotator"


@dataclass(frozen=True)
class TaskLabels:
    """``empty``: how many of ``labels`` are of annotations without an answer, and so skips; ``outdated``: how many
    annotations are left out because the same person has answered otherwise later."""

    labels: list[GivenLabel]
    empty: int
    outdated: int


def task_of(item: Item, labels: list[Label]) -> dict[str, Any]:
    spoken = "\n\n".join(f"{turn['role']}: {turn['content']}" for turn in item.prompt)
    responses = [asdict(item.first), asdict(item.second)]
    data = {
        "prompt": spoken,
        "text1": item.first.text,
        "text2": item.second.text,
        "guideline": item.guideline,
        "domain": item.domain,
        "round": item.round,
        "item": {"prompt": item.prompt, "responses": responses, "answer": item.answer},
    }
    return {
        "data": data,
        "annotations": [_annotation(label) for label in labels if label.kind in PEOPLE],
        "predictions": [
            {"model_version": label.annotator, "result": _result(label)} for label in labels if label.kind in MACHINES
        ],
    }


def _annotation(label: Label) -> dict[str, Any]:
    """Label Studio takes an address of one of its users alone for who completed it, and refuses the file otherwise."""
    by = {"completed_by": {"email": label.annotator}} if _ADDRESS.fullmatch(label.annotator) else {}
    skipped = label.winner == "skip"
    return {**by, "was_cancelled": skipped, "lead_time": label.seconds, "result": _result(label)}


def _result(label: Label) -> list[dict[str, Any]]:
    """``meta`` says whose label it is, and what a prediction has no other place for: of all that is said of an
    annotation, Label Studio leaves this as it is."""
    result: list[dict[str, Any]] = []
    if label.winner in _SIDES:
        value = {"selected": _SIDES[label.winner]}
        result.append({"from_name": "pw", "to_name": "text1,text2", "type": "pairwise", "value": value})
    elif label.winner != "skip":
        choice = {"choices": [label.winner]}
        result.append({"from_name": "neither", "to_name": "text1", "type": "choices", "value": choice})
    if label.comment or not result:
        text = {"text": [label.comment] if label.comment else []}
        result.append({"from_name": "comment", "to_name": "text1", "type": "textarea", "value": text})
    meta: dict[str, Any] = {"annotator": label.annotator, "kind": label.kind}
    if label.kind in MACHINES:
        meta |= {"lead_time": label.seconds, "was_cancelled": label.winner == "skip"}
    return [{**part, "meta": meta} for part in result]


def item_of_task(task: Any, rules: RowRules, newest: int, guidelines: Mapping[str, str]) -> Item:
    """Of a task that was exported here, or of one with ``prompt``, ``text1`` and ``text2`` alone."""
    data = task.get("data") if isinstance(task, Mapping) else None
    if not isinstance(data, Mapping):
        raise RowError("data", "is missing")
    given = data.get("item")
    if isinstance(given, Mapping):
        row = dict(given)
    else:
        said, texts = data.get("prompt"), [data.get("text1"), data.get("text2")]
        row = {"prompt": [{"role": "user", "content": said}], "responses": [{"text": text} for text in texts]}
    round = data.get("round", 0)
    if isinstance(round, bool) or not isinstance(round, int):
        raise RowError("data.round", f"must be a whole number, not {kind_of(round)}")
    if not 0 <= round <= newest:
        raise RowError("data.round", f"is {str(round)[:20]}: it must be a round of the run, 0 to {newest}")
    domain = checked_domain(data, rules, "data.domain")
    guideline = None if data.get("guideline") == "" else data.get("guideline")
    return parse_item({**row, "domain": domain, "guideline": guideline}, round, guidelines)


def labels_of_task(task: Mapping[str, Any], item: Item, place: str) -> TaskLabels:
    """People's annotations of a task, of several by one person the newest, and the predictions that were exported here.
    Raises RowError."""
    newest: dict[object, tuple[Mapping[str, Any], GivenLabel]] = {}
    outdated = 0
    for number, annotation in enumerate(_list(task, "annotations", "annotations")):
        winner, comment, seconds = _verdict(annotation)
        name, kind = _annotator(annotation, PEOPLE) or (_completed_by(annotation), "import")
        given = GivenLabel(name, kind, item, winner, place, comment, seconds)
        key = number if name == _UNKNOWN else name  # two that nobody is named for may be two people's
        other, before = newest.get(key, (annotation, given))
        outdated += before.winner != winner
        if not _is_older(annotation, other):
            newest[key] = annotation, given
    empty = sum(given.winner == "skip" and not annotation.get("was_cancelled") for annotation, given in newest.values())
    labels = [given for _, given in newest.values()]
    for prediction in _list(task, "predictions", "predictions"):
        if (named := _annotator(prediction, MACHINES)) is not None:
            winner, comment, seconds = _verdict(_as_annotation(prediction))
            labels.append(GivenLabel(*named, item, winner, place, comment, seconds))
    return TaskLabels(labels, empty, outdated)


def _is_older(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """By when they were last changed; False where either does not say so."""
    times = _changed(one), _changed(other)
    return times[0] is not None and times[1] is not None and times[0] < times[1]


def _changed(annotation: Mapping[str, Any]) -> datetime | None:
    said = annotation.get("updated_at") or annotation.get("created_at")
    try:
        time = datetime.fromisoformat(said) if isinstance(said, str) else None
    except ValueError:
        return None
    return time.replace(tzinfo=time.tzinfo or UTC) if time else None


def _verdict(annotation: Any) -> tuple[Winner, str, float]:
    """The winner, the comment and the seconds of an annotation."""
    if not isinstance(annotation, Mapping):
        raise RowError("annotations", f"must be a list of objects, not of {kind_of(annotation)}")
    said = [text for text in _values(annotation, "textarea", "text") if text]
    comment = "\n".join(checked_text(text, "annotations.result.value.text", may_be_empty=True) for text in said)
    seconds = annotation.get("lead_time") or 0.0
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < _LONGEST:
        raise RowError("annotations.lead_time", f"must be a number of seconds, not {str(seconds)[:20]}")
    results = _list(annotation, "result", "annotations.result")
    is_empty = all(isinstance(result, Mapping) and result.get("type") == "textarea" for result in results)
    if is_empty or annotation.get("was_cancelled"):  # what is submitted empty, or with a comment alone, is no answer
        return "skip", comment, float(seconds)
    given = [*_values(annotation, "pairwise", "selected"), *_values(annotation, "choices", "choices")]
    answers = list(dict.fromkeys(answer for answer in given if isinstance(answer, str) and answer in _ANSWERS))
    if not answers:
        raise RowError(
            "annotations.result", "holds neither a pairwise selection nor one of the choices tie and both_bad"
        )
    if len(answers) > 1:
        raise RowError("annotations.result", f"holds answers that exclude each other ({', '.join(answers)}): keep one")
    return _ANSWERS[answers[0]], comment, float(seconds)


def _as_annotation(prediction: Mapping[str, Any]) -> Mapping[str, Any]:
    """A prediction with what its ``meta`` says of the label, where an annotation says it."""
    meta = next(iter(_metas(prediction)), {})
    return {**prediction, **{key: meta[key] for key in ("lead_time", "was_cancelled") if key in meta}}


def _values(given: Mapping[str, Any], kind: str, name: str) -> list[Any]:
    """What the results of one kind hold under ``name``, by itself or in a list."""
    values: list[Any] = []
    for result in _list(given, "result", "annotations.result"):
        value = result.get("value") if isinstance(result, Mapping) and result.get("type") == kind else None
        content = value.get(name) if isinstance(value, Mapping) else None
        values += content if isinstance(content, list) else [content]
    return values


def _list(given: Mapping[str, Any], name: str, field: str) -> list[Any]:
    value = given.get(name)
    if value is not None and not isinstance(value, list):
        raise RowError(field, f"must be a list of objects, not {kind_of(value)}")
    return value or []


def _completed_by(annotation: Mapping[str, Any]) -> str:
    """Label Studio gives a number, or an object with an address, as the export was made."""
    field = "annotations.completed_by"
    who = annotation.get("completed_by")
    if isinstance(who, Mapping):
        who = who.get("email") or who.get("id")
    if isinstance(who, int) and not isinstance(who, bool):
        return f"annotator {who}"
    return checked_text(who, field) if who else _UNKNOWN


def _annotator(given: Any, kinds: Collection[Kind]) -> tuple[str, Kind] | None:
    """Name and kind of whose label it was when it was exported here; None where it was not, and where they are none of
    ``kinds``: a person who takes over a rule's prediction takes its ``meta`` over too, but has judged."""
    for meta in _metas(given):
        name, said = meta.get("annotator"), meta.get("kind")
        kind = next((known for known in kinds if known == said), None)
        if isinstance(name, str) and name.strip() and kind is not None:
            return checked_text(name, "result.meta.annotator"), kind
    return None


def _metas(given: Any) -> list[Mapping[str, Any]]:
    """What the results say of the label beside its value."""
    results = _list(given, "result", "result") if isinstance(given, Mapping) else []
    metas = [result.get("meta") for result in results if isinstance(result, Mapping)]
    return [meta for meta in metas if isinstance(meta, Mapping)]
