"""`pcl-loss options --to DIR`: copies out the option files that come with the package.

They are made by `scripts/make_options.py`, and lie beside the package in the repository and inside it when installed.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ._images import write_file


def option_files() -> dict[str, str]:
    """All option files: their path below `basicsr_options/`, and their text."""
    package = Path(__file__).parents[1]
    inside, beside = package / "basicsr_options", package.with_name("basicsr_options")
    folder = inside if inside.is_dir() else beside
    paths = sorted(path for path in (*folder.glob("*/*.yml"), *folder.glob("README.md")))
    if not paths:
        raise FileNotFoundError(f"neither {inside} nor {beside} holds the option files; install pcl_loss anew")
    return {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def write_options(folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write all option files below `folder`, which is made if it is missing; returns their paths.

    Writes nothing and raises FileExistsError if a file is there with another text, unless `overwrite` is given.
    """
    targets = {folder / path: text for path, text in option_files().items()}
    for path, text in {} if overwrite else targets.items():
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise FileExistsError(f"{path} is there with another text; choose another folder, or pass --overwrite")
    for path, text in targets.items():
        write_file(path, text.encode())
    return list(targets)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of `pcl-loss options`."""
    parser.add_argument("--to", type=Path, required=True, metavar="DIR", help="folder to write the option files to")
    parser.add_argument("--overwrite", action="store_true", help="replace files that you have changed")


def run(args: argparse.Namespace) -> int:
    """`pcl-loss options`; returns the exit status."""
    paths = write_options(args.to, overwrite=args.overwrite)
    print(f"wrote {len(paths)} files below {args.to}; {args.to / 'README.md'} says what they are")
    return 0
