"""`python -m pcl_loss.test -opt FILE.yml`: BasicSR's testing, with PCL known to it. For torchrun too."""

from __future__ import annotations

from . import train


def main() -> None:
    """Test as BasicSR's own test.py does, with its flags; results go under the caller's folder."""
    train.main("test")


if __name__ == "__main__":
    main()
