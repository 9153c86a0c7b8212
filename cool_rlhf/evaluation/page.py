"""evaluation.html: what evaluation.json holds, on one page that opens offline."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

from cool_rlhf.evaluation.figures import charts, to_figure
from cool_rlhf.evaluation.tables import Evaluation, tables
from cool_rlhf.files import write_atomically
from cool_rlhf.tracking.page import render_page
from cool_rlhf.tracking.text import time_text


def write_evaluation_page(output_dir: Path) -> Path:
    """Write output_dir/evaluation.html from the evaluation.json beside it. Returns its path."""
    evaluation = json.loads((output_dir / "evaluation.json").read_text(encoding="utf-8"))
    path = output_dir / "evaluation.html"
    write_atomically(path, render(evaluation).encode("utf-8"))
    return path


def render(evaluation: Evaluation) -> str:
    """The page's text."""
    title = f"Evaluation of {evaluation['experiment']}"
    parts = {
        "title": title,
        "written": time_text(datetime.now().astimezone()),
        "seconds": evaluation["seconds"],
        "models": {name: path for name, path in evaluation["models"].items() if path is not None},
        "notes": evaluation["notes"],
        "sections": charts(evaluation),
        "tables": tables(evaluation),
    }
    return render_page(title, "evaluation.html.j2", parts, to_figure)
