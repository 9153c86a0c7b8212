"""What the processes of roles do without."""

import subprocess
import sys

ROLE = """
import sys
from cool_rlhf.imports import skip_unused_packages
skip_unused_packages()
import cool_rlhf.engine, cool_rlhf.models.loading, cool_rlhf.models.lora
print([name for name in ("sklearn.metrics", "scipy.optimize") if name in sys.modules])
"""


def test_a_role_imports_its_models_without_what_it_never_uses():
    done = subprocess.run([sys.executable, "-c", ROLE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
