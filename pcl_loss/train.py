"""`python -m pcl_loss.train -opt FILE.yml`: BasicSR's training, with PCL known to it. For torchrun too."""

from __future__ import annotations

import os

from . import _ending, _extras, import_repair  # noqa: F401  (at module level: the workers of a spawning data loader need it too)


def main() -> None:
    """Train as BasicSR's own train.py does, with its flags; experiments go under the caller's folder."""
    with _extras.named_in_errors():
        import basicsr.train

        from .basicsr_plugin import register
        from .basicsr_plugin.course import ERRORS, whole_course

    def train() -> None:
        with whole_course():
            basicsr.train.train_pipeline(os.getcwd())

    register()
    _ending.end_in_one_line("train", train, lambda: ERRORS)


if __name__ == "__main__":
    main()
