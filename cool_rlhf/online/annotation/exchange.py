"""Items and labels in other tools' forms: TRL's preference JSONL, and Label Studio's JSON of its pairwise template."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cool_rlhf.data.messages import RowError, checked_text, kind_of
from cool_rlhf.data.rows import Row, RowRules, SameResponseError, checked_domain, parse_preference
from cool_rlhf.data.sources import UnreadableRow, read_rows
from cool_rlhf.files import write_atomically
from cool_rlhf.online.annotation.arrived import label_row, labelled
from cool_rlhf.online.annotation.items import PEOPLE, Item, Kind, Label, ShownResponse, Winner, parse_item
from cool_rlhf.online.annotation.store import AlreadyLabelledError, Store
from cool_rlhf.protocols import UserError

# Label Studio's pairwise template, with a choice for what it does not know. `text1` is the item's first response.
LABEL_STUDIO_CONFIG = """\
<View>
  <Header value="$guideline"/>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="pw" toName="text1,text2"/>
  <Text name="text1" value="$text1"/>
  <Text name="text2" value="$text2"/>
  <Choices name="neither" toName="text1" choice="single">
    <Choice value="tie"/>
    <Choice value="both_bad"/>
  </Choices>
  <TextArea name="comment" toName="text1"/>
</View>
"""

_LAST_ROUND = 10**6  # of runs that are not there to say how many they have
_LONGEST = 1e12  # seconds

_ADDRESS = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+")
_MACHINES: tuple[Kind, ...] = ("rule", "judge")
_ANSWERS: Mapping[str, Winner] = {"left": "first", "right": "second", "tie": "tie", "both_bad": "both_bad"}
_SIDES: Mapping[Winner, str] = {"first": "left", "second": "right"}


def export_trl(store: Store, path: Path, since_round: int = 0) -> int:
    """Write the pairs that most agree on as preference rows; returns how many."""
    entries = [(entry, entry.winner) for entry in labelled(store, since_round)]
    rows = [label_row(entry, winner) for entry, winner in entries if winner is not None]
    write_atomically(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode())
    return len(rows)


def import_trl(
    store: Store,
    path: Path,
    annotator: str,
    round: int = 0,
    domains: Collection[str] | None = None,
    guidelines: Mapping[str, str] | None = None,
) -> int:
    """Add the pairs of a preference file as items of ``round``, labelled as they are by ``annotator``, of kind import
    unless the store knows the name; where ``labelled_by`` names rules or judges alone, by those. Pairs of two equal
    responses are left out. ``guidelines``: what each domain is judged by. Returns how many labels were kept. An error
    leaves the store as it was.

    Raises UserError naming the row and field of the first bad one, and for a domain that is none of ``domains`` (None:
    any will do): a reward model has no condition for it."""
    rules = RowRules(None if domains is None else frozenset(domains), sampled=True)
    items: list[Item] = []
    labels: list[_Given] = []
    excuse = f"{path} holds no rows: fill it or leave it out"
    for place, row in read_rows(path, "annotate.import_labels"):
        if not isinstance(row, Mapping):
            said = row if isinstance(row, UnreadableRow) else f"is not a JSON object but {kind_of(row)}"
            raise UserError(f"annotate.import_labels: {place} {said}")
        try:
            pair = parse_preference(row, rules)
            item, winner = _item_of(pair, round, guidelines or {})
        except SameResponseError as error:
            excuse = f"{place}: {error}"
            continue
        except RowError as error:
            raise UserError(f"annotate.import_labels: {place}: {error}") from error
        items.append(item)
        labels.append(_Given(*(_machine(pair["labelled_by"]) or (annotator, "import")), item, winner, str(place)))
    if not items:
        raise UserError(f"annotate.import_labels: {excuse}")
    return _keep(store, items, labels)


def export_label_studio(store: Store, path: Path, since_round: int = 0) -> int:
    """Write every item of ``since_round`` and later as a task, with people's labels as annotations and those of rules
    and judges as predictions; returns how many tasks. The project's labelling interface is LABEL_STUDIO_CONFIG."""
    labels: dict[str, list[Label]] = {}
    for label in store.labels(since_round):
        labels.setdefault(label.item, []).append(label)
    tasks = [_task(item, labels.get(item.id, [])) for item in store.items(since_round)]
    write_atomically(path, f"{json.dumps(tasks, ensure_ascii=False, indent=1)}\n".encode())
    return len(tasks)


def import_label_studio(
    store: Store,
    path: Path,
    domains: Collection[str] | None = None,
    newest: int = _LAST_ROUND,
    guidelines: Mapping[str, str] | None = None,
) -> int:
    """Add the tasks of an export of Label Studio (JSON) as items, and each annotation as a label; returns how many
    labels were kept. What was exported here names its annotator, whom Label Studio may have replaced by the one who
    imported it there; another annotation is of the one who completed it, of kind import unless the store knows the
    name. Predictions count where they were exported here. A task without a guideline gets its domain's of
    ``guidelines``. An error leaves the store as it was.

    Raises UserError naming task and field of a bad one, a domain that is none of ``domains`` (None: any will do), a
    round after the ``newest``, and an annotator who has labelled a pair otherwise."""
    try:
        tasks = json.loads(path.read_text(encoding="utf-8-sig"))  # some tools begin with a mark of the encoding
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"annotate.import_labels: {path} cannot be read as Label Studio's JSON ({error})") from error
    if not isinstance(tasks, list):
        raise UserError(f"{path} is not an export of Label Studio: it must be a list of tasks, not {kind_of(tasks)}")
    rules = RowRules(None if domains is None else frozenset(domains))
    items: list[Item] = []
    labels: list[_Given] = []
    for number, task in enumerate(tasks, start=1):
        place = f"{path}, task {number}"
        try:
            items.append(_item_of_task(task, rules, newest, guidelines or {}))
            for annotation in _list(task, "annotations", "annotations"):
                winner, comment, seconds = _verdict(annotation)
                name, kind = _annotator(annotation, PEOPLE) or (_completed_by(annotation), "import")
                labels.append(_Given(name, kind, items[-1], winner, place, comment, seconds))
            for prediction in _list(task, "predictions", "predictions"):
                if (named := _annotator(prediction, _MACHINES)) is not None:
                    winner, comment, seconds = _verdict(_as_annotation(prediction))
                    labels.append(_Given(*named, items[-1], winner, place, comment, seconds))
        except RowError as error:
            raise UserError(f"{place}: {error}") from error
    return _keep(store, items, labels)


@dataclass(frozen=True)
class _Given:
    """A label as a file has it, at a ``place``; ``kind`` is of an annotator whom the store does not know, ``winner`` of
    ``item``."""

    annotator: str
    kind: Kind
    item: Item
    winner: Winner
    place: str
    comment: str = ""
    seconds: float = 0.0


def _keep(store: Store, items: Sequence[Item], labels: Sequence[_Given]) -> int:
    """Add items and labels, all or none; where a pair stands in the store the other way round, its label is turned.
    Returns how many labels are new."""
    turned: Mapping[Winner, Winner] = {"first": "second", "second": "first"}
    with store.at_once():
        before = len(store.labels())
        store.add_items(items)
        known = {item.id: item.first for item in store.items()}
        for given in labels:
            first, stored = given.item.first, known[given.item.id]
            same = (stored.text, stored.finished) == (first.text, first.finished)
            winner = given.winner if same else turned.get(given.winner, given.winner)
            try:
                who = store.called(given.annotator, given.kind)
                store.record(given.item.id, who, winner, given.comment, given.seconds)
            except UserError as error:
                raise UserError(f"{given.place}: {error}") from error
            except AlreadyLabelledError as error:
                raise UserError(
                    f"{given.place}: {given.annotator} has labelled a pair otherwise before: give one of the two labels"
                ) from error
        return len(store.labels()) - before


def _machine(labelled_by: Sequence[str]) -> tuple[str, Kind] | None:
    """The rules or judges that a row's label is of, under one name, for it is one label; None where people, or nobody,
    are named."""
    named = [entry.partition(": ") for entry in labelled_by]
    kinds = {kind for kind, _, _ in named}
    names = [name.strip() for _, _, name in named]
    if not all(names) or not kinds or not kinds <= set(_MACHINES):
        return None
    return ", ".join(names), next(kind for kind in _MACHINES if kind in kinds)


def _item_of(pair: Row, round: int, guidelines: Mapping[str, str]) -> tuple[Item, Winner]:
    """The pair as an item, its sides as a coin puts them, and which of them was chosen. Raises RowError."""
    prompt, domain = pair["chosen"][:-1], pair["domain"]
    if prompt[-1]["role"] == "assistant":
        raise RowError("chosen", "has two turns of the assistant at its end, and only one can be judged: join them")
    chosen, rejected = (
        ShownResponse(pair[side][-1]["content"], pair[f"{side}_finished"], "") for side in ("chosen", "rejected")
    )
    item = Item(prompt, chosen, rejected, domain, guidelines.get(domain, ""), None, round).in_drawn_order()
    return item, "first" if item.first is chosen else "second"


def _task(item: Item, labels: list[Label]) -> dict[str, Any]:
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
            {"model_version": label.annotator, "result": _result(label)} for label in labels if label.kind in _MACHINES
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
    if label.kind in _MACHINES:
        meta |= {"lead_time": label.seconds, "was_cancelled": label.winner == "skip"}
    return [{**part, "meta": meta} for part in result]


def _item_of_task(task: Any, rules: RowRules, newest: int, guidelines: Mapping[str, str]) -> Item:
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


def _verdict(annotation: Any) -> tuple[Winner, str, float]:
    """The winner, the comment and the seconds of an annotation."""
    if not isinstance(annotation, Mapping):
        raise RowError("annotations", f"must be a list of objects, not of {kind_of(annotation)}")
    said = [text for text in _values(annotation, "textarea", "text") if text]
    comment = "\n".join(checked_text(text, "annotations.result.value.text", may_be_empty=True) for text in said)
    seconds = annotation.get("lead_time") or 0.0
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 <= seconds < _LONGEST:
        raise RowError("annotations.lead_time", f"must be a number of seconds, not {str(seconds)[:20]}")
    if annotation.get("was_cancelled"):
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
    return checked_text(who, field) if who else "unknown annotator"


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
