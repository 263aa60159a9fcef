"""`python -m pcl_loss.train -opt FILE.yml`: BasicSR's training, with PCL known to it. For torchrun too."""

from __future__ import annotations

import os
import sys

from . import _extras, import_repair  # noqa: F401  (at module level: the workers of a spawning data loader need it too)


def main() -> None:
    """Train as BasicSR's own train.py does, with its flags; experiments go under the caller's folder."""
    with _extras.named_in_errors():
        import basicsr.train

        from .basicsr_plugin import OptionsError, register, repairs
        from .basicsr_plugin.bad_steps import BadStepsError
        from .basicsr_plugin.iterations import exactly_total_iter
        from .basicsr_plugin.progress import progress_line

    register()
    try:
        with progress_line(), repairs.end_warmup_of_every_model(), exactly_total_iter():
            basicsr.train.train_pipeline(os.getcwd())
    except (OptionsError, BadStepsError) as error:
        sys.exit(f"pcl-loss train: {error}")


if __name__ == "__main__":
    main()
