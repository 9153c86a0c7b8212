"""What a run shows of itself: metrics.jsonl, W&B, the progress bar, report.html, the run log."""

from cool_rlhf.tracking.estimate import PlannedStage
from cool_rlhf.tracking.metrics import MetricsLog, NonFiniteMetricError, read_metrics
from cool_rlhf.tracking.plan import run_plan
from cool_rlhf.tracking.report import write_report
from cool_rlhf.tracking.runlog import setup_logging
from cool_rlhf.tracking.tracker import Sample, StageTracker, Tracker

__all__ = [
    "MetricsLog",
    "NonFiniteMetricError",
    "PlannedStage",
    "Sample",
    "StageTracker",
    "Tracker",
    "read_metrics",
    "run_plan",
    "setup_logging",
    "write_report",
]
