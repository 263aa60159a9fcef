"""`python -m pcl_loss.test -opt FILE.yml`: BasicSR's testing, with PCL known to it. For torchrun too."""

from __future__ import annotations

import os

from . import _missing, import_repair  # noqa: F401  (at module level: the workers of a spawning data loader need it too)
from .train import end_in_one_line


def main() -> None:
    """Test as BasicSR's own test.py does; results go under the caller's folder."""
    with _missing.named_in_errors():
        import basicsr.test

        from .basicsr_plugin import register
        from .basicsr_plugin.repairs import ERRORS

    register()
    end_in_one_line("test", lambda: basicsr.test.test_pipeline(os.getcwd()), lambda: ERRORS)


if __name__ == "__main__":
    main()
