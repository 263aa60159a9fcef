"""`pcl-loss VERB …`."""

from __future__ import annotations

import argparse
import importlib
import io
import sys
from collections.abc import Sequence

from . import __version__, _missing, import_repair  # noqa: F401  (workers of a spawning data loader import this module)

# They read their flags from sys.argv.
ENTRY_POINTS = ("train", "test", "run")

VERBS = {
    "train": "train with BasicSR: -opt FILE.yml, and BasicSR's own flags",
    "test": "test with BasicSR: -opt FILE.yml, and BasicSR's own flags",
    "run": "run a training script of another codebase: SCRIPT, and the script's own flags",
    "demo": "train a small EDSR with L1 and with L1 + PCL on real images, and compare",
    "options": "write out the option files for EDSR, RCAN, HAN and SwinIR",
    "prepare": "make LR images and sub-images of a folder of HR images",
    "preview": "draw the positives, negatives and bands of an image, and their similarity to an SR image",
    "doctor": "versions, what is replaced in BasicSR, a training step: one block of text for a bug report",
    "patch": "put PCL into a checkout of EDSR-PyTorch, RCAN, HAN, a fork, BasicSR or traiNNer-redux",
    "report": "test several networks on several sets: tables and a figure in the form of the paper",
    "convert": "turn checkpoints of the official EDSR, RCAN and HAN codes into BasicSR's, and back",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        # Not every pipe is UTF-8, on Windows above all: "?" for an arrow is better than no table.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    arguments = list(sys.argv[1:] if argv is None else argv)
    verbs = "\n".join(f"  {verb:9} {text}" for verb, text in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="pcl-loss",
        usage="pcl-loss VERB ...",
        description="The contrastive loss of PCL-SISR.",
        epilog=f"verbs:\n{verbs}\n\n`pcl-loss VERB --help` has the flags of each.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"pcl_loss {__version__}")
    parser.add_argument("verb", choices=VERBS, metavar="VERB", help="one of those below")
    if not arguments:
        parser.print_help()
        return 2
    verb = parser.parse_args(arguments[:1]).verb
    return (_run_entry_point if verb in ENTRY_POINTS else _run)(verb, arguments[1:])


def _run(verb: str, flags: list[str]) -> int:
    try:
        with _missing.named_in_errors():
            # Each verb is a module or folder of its name, and only that one is imported.
            module = importlib.import_module(f".tools.{verb}", __package__)
            parser = argparse.ArgumentParser(prog=f"pcl-loss {verb}", description=VERBS[verb])
            module.add_arguments(parser)
            status: int = module.run(parser.parse_args(flags))
    except KeyboardInterrupt:
        print(f"\npcl-loss {verb}: interrupted", file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"pcl-loss {verb}: {error}", file=sys.stderr)
        return 1
    return status


def _run_entry_point(verb: str, flags: list[str]) -> int:
    sys.argv = [f"pcl-loss {verb}", *flags]
    try:
        importlib.import_module(f".{verb}", __package__).main()
    except _missing.MissingExtraError as error:
        print(f"pcl-loss {verb}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
