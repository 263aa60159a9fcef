"""The test suite on every Python that pcl_loss supports, and on the oldest PyTorch: `make test-versions`.

Each version gets an environment of its own (several GB; removed afterwards), made and tested by the Makefile. A Python
that is not on PATH is left out, and said.
"""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = ROOT / ".venv-versions"
# The oldest PyTorch stands first: where a lower bound is wrong, it is seen soon. 3.13 has no BasicSR.
VERSIONS = {"3.11 oldest": "TORCH=$(OLDEST_TORCH)", "3.11": "", "3.12": "", "3.13": ""}


def main() -> int:
    """Returns 0 if every version that was found passes, and there were at least two."""
    results = {}
    for version, torch in VERSIONS.items():
        python = shutil.which(f"python{version.partition(' ')[0]}")
        if python is None or subprocess.run([python, "--version"], check=False).returncode:
            continue
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        command = ["make", "pytest", f"PYTHON={python}", f"VENV={ENVIRONMENT}", *filter(None, [torch])]
        results[version] = subprocess.run(command, cwd=ROOT, check=False).returncode
    shutil.rmtree(ENVIRONMENT, ignore_errors=True)
    for version in VERSIONS:
        print(version, {None: "not found", 0: "passed"}.get(results.get(version), "FAILED"), sep=": ")
    return int(len(results) < 2 or any(results.values()))


if __name__ == "__main__":
    sys.exit(main())
