"""The run's own log, output_dir/logs/run.log."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from tqdm import tqdm

_HANDLER_NAME = "cool_rlhf run log"


def setup_logging(output_dir: Path | str, level: int = logging.INFO) -> Path:
    """Append what every logger says from ``level`` up, and Python's warnings, to output_dir/logs/run.log; warnings and
    errors of this project's own packages go to standard error too, above the progress bar. Returns the log's path.

    Calling it again moves the log, so a process that runs several jobs has each in its own place.
    """
    path = Path(output_dir) / "logs" / "run.log"
    path.parent.mkdir(parents=True, exist_ok=True)
    root = logging.getLogger()
    for handler in [h for h in root.handlers if h.get_name() == _HANDLER_NAME]:
        root.removeHandler(handler)
        handler.close()

    file = logging.FileHandler(path, encoding="utf-8", errors="backslashreplace")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    file.setLevel(level)
    terminal = _AboveTheBar(level=logging.WARNING)
    terminal.setFormatter(logging.Formatter("%(levelname)s %(name)s: %(message)s"))
    terminal.addFilter(lambda record: record.name.split(".")[0] in ("cool_rlhf", "reward", "rollout"))
    for handler in (file, terminal):
        handler.set_name(_HANDLER_NAME)
        root.addHandler(handler)
    root.setLevel(min(root.level or level, level))
    logging.captureWarnings(True)
    return path


class _AboveTheBar(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        # Sampled text in a message may hold lone surrogates.
        text = self.format(record).encode("utf-8", errors="backslashreplace").decode("utf-8")
        tqdm.write(text, file=sys.stderr)
