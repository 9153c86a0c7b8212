"""Items and labels in other tools' forms: TRL's preference JSONL, and Label Studio's JSON of its pairwise template."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from cool_rlhf.data.messages import RowError, kind_of
from cool_rlhf.data.rows import Row, RowRules, SameResponseError, parse_preference
from cool_rlhf.data.sources import UnreadableRow, read_rows
from cool_rlhf.files import write_atomically
from cool_rlhf.online.annotation.arrived import label_row, labelled
from cool_rlhf.online.annotation.items import MACHINES, PEOPLE, GivenLabel, Item, Kind, Label, ShownResponse, Winner
from cool_rlhf.online.annotation.label_studio import item_of_task, labels_of_task, task_of
from cool_rlhf.online.annotation.store import AlreadyLabelledError, Store
from cool_rlhf.protocols import UserError

logger = logging.getLogger(__name__)

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
    domains: Collection[str] | None = None,
    guidelines: Mapping[str, str] | None = None,
) -> int:
    """Add the pairs of a preference file as items of round 0, labelled as they are by ``annotator``, of kind import
    unless the store knows the name; where ``labelled_by`` names one person, or rules or judges alone, by those. A row
    whose named votes stand in the store adds none to them. Pairs of two equal responses are left out. ``guidelines``:
    what each domain is judged by. Returns how many labels were kept. An error leaves the store as it was.

    Raises UserError naming the row and field of the first bad one, and for a domain that is none of ``domains`` (None:
    any will do): a reward model has no condition for it."""
    rules = RowRules(None if domains is None else frozenset(domains), sampled=True)
    items: list[Item] = []
    labels: list[GivenLabel] = []
    excuse = f"{path} holds no rows: fill it or leave it out"
    for place, row in read_rows(path, "annotate.import_labels"):
        if not isinstance(row, Mapping):
            said = row if isinstance(row, UnreadableRow) else f"is not a JSON object but {kind_of(row)}"
            raise UserError(f"annotate.import_labels: {place} {said}")
        try:
            pair = parse_preference(row, rules)
            item, winner = _item_of(pair, 0, guidelines or {})
        except SameResponseError as error:
            excuse = f"{place}: {error}"
            continue
        except RowError as error:
            raise UserError(f"annotate.import_labels: {place}: {error}") from error
        items.append(item)
        named = _named(pair["labelled_by"])
        name, kind = _one_of(named) or (annotator, "import")
        labels.append(GivenLabel(name, kind, item, winner, str(place), said_by=tuple(name for name, _ in named)))
    if not items:
        raise UserError(f"annotate.import_labels: {excuse}")
    return _keep(store, items, labels)


def export_label_studio(store: Store, path: Path, since_round: int = 0) -> int:
    """Write every item of ``since_round`` and later as a task, with people's labels as annotations and those of rules
    and judges as predictions; returns how many tasks. The project's labelling interface is LABEL_STUDIO_CONFIG."""
    labels: dict[str, list[Label]] = {}
    for label in store.labels(since_round):
        labels.setdefault(label.item, []).append(label)
    tasks = [task_of(item, labels.get(item.id, [])) for item in store.items(since_round)]
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
    name. One without an answer is a skip, and of several by one person the newest counts; a warning says how many that
    are. Predictions count where they were exported here. A task without a guideline gets its domain's of
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
    labels: list[GivenLabel] = []
    empty = outdated = 0
    for number, task in enumerate(tasks, start=1):
        place = f"{path}, task {number}"
        try:
            items.append(item_of_task(task, rules, newest, guidelines or {}))
            found = labels_of_task(task, items[-1], place)
        except RowError as error:
            raise UserError(f"{place}: {error}") from error
        labels += found.labels
        empty, outdated = empty + found.empty, outdated + found.outdated
    count = _keep(store, items, labels)
    if empty or outdated:
        logger.warning(
            "%s: annotations without an answer, taken as skips: %d; left out, because the same person has answered "
            "otherwise later: %d",
            *(path, empty, outdated),
        )
    return count


def _keep(store: Store, items: Sequence[Item], labels: Sequence[GivenLabel]) -> int:
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
            said = [store.said(given.item.id, name) for name in given.said_by]
            if None not in said and 2 * said.count(winner) > len(said):
                continue  # the votes that the row counts stand in the store
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


def _named(labelled_by: Sequence[str]) -> list[tuple[str, Kind]]:
    """Whose votes a row of ours counts; empty where the column is somebody else's."""
    entries = [entry.partition(": ") for entry in labelled_by]
    named = [(name.strip(), kind) for said, _, name in entries for kind in (*PEOPLE, *MACHINES) if said == kind]
    return named if len(named) == len(entries) and all(name for name, _ in named) else []


def _one_of(named: Sequence[tuple[str, Kind]]) -> tuple[str, Kind] | None:
    """Whom a row's one label is of: who alone is named, or all rules and judges under one name; None where it is of
    several people, or of nobody that is named."""
    kinds = {kind for _, kind in named}
    if len(named) == 1:
        return named[0]
    if not kinds or not kinds <= set(MACHINES):
        return None
    return ", ".join(name for name, _ in named), next(kind for kind in MACHINES if kind in kinds)


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
