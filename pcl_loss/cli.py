"""`pcl-loss VERB …`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import __version__, import_repair  # noqa: F401  (workers of a spawning data loader import this module)

HELP = {
    "train": "train with BasicSR: -opt FILE.yml and BasicSR's own flags",
    "test": "test with BasicSR: -opt FILE.yml and BasicSR's own flags",
    "demo": "train a small EDSR with L1 and with L1 + PCL on real images, and compare",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] in ("train", "test"):
        return _run_basicsr(arguments[0], arguments[1:])
    parser = argparse.ArgumentParser(prog="pcl-loss", description="The contrastive loss of PCL-SISR.")
    parser.add_argument("--version", action="version", version=f"pcl_loss {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for verb in ("train", "test"):
        verbs.add_parser(verb, help=HELP[verb])
    from . import demo

    demo.add_arguments(verbs.add_parser("demo", help=HELP["demo"], description=HELP["demo"]))
    args = parser.parse_args(arguments)
    try:
        return demo.run(args)
    except (ValueError, TypeError, OSError) as error:
        print(f"pcl-loss {args.verb}: {error}", file=sys.stderr)
        return 1


def _run_basicsr(verb: str, flags: list[str]) -> int:
    from . import test, train

    # BasicSR reads its flags from there.
    sys.argv = [f"pcl-loss {verb}", *flags]
    (train if verb == "train" else test).main()
    return 0


if __name__ == "__main__":
    sys.exit(main())
