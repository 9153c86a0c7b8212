"""The command: ``python -m cool_rlhf.run +experiment=NAME [stage=STAGE] [key=value …]``.

Exit status 0 on success; 2, with one sentence on standard error, for a mistake in config, data or resources; 1
otherwise (cool_rlhf.ending).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cool_rlhf.ending import Ending


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit status."""
    with Ending() as ending:
        from cool_rlhf.command import execute  # imported here, so that an interruption while it loads is answered too

        execute(arguments, ending)
    return ending.status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
