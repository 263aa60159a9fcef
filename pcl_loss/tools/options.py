"""`pcl-loss options --to DIR`: writes out the option files that come with the package.

They lie beside the package in the repository and inside it when installed. Those for fine-tuning differ from those for
training in a few lines, and are made of them here.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from ._images import write_file

# Lines of a `train_NET_xS.yml`, and of `finetune_NET_xS.yml`.
_FINETUNE = {
    "name: train_": "name: finetune_",
    "pretrain_network_g: ~": "pretrain_network_g: experiments/pretrained_models/{net}.pth",
    "lr: 1.0e-4": "lr: 5.0e-5",
    "periods: [200000]": "periods: [50000]",
    "total_iter: 200000": "total_iter: 50000",
}


def option_files() -> dict[str, str]:
    """All option files: their path below the folder that they are written to, and their text."""
    package = Path(__file__).parents[1]
    inside, beside = package / "basicsr_options", package.with_name("basicsr_options")
    folder = inside if inside.is_dir() else beside
    paths = [*folder.glob("*/*.yml"), *folder.glob("README.md")]
    if not paths:
        raise FileNotFoundError(f"neither {inside} nor {beside} holds the option files; install pcl_loss anew")
    files = {path.relative_to(folder).as_posix(): path.read_text(encoding="utf-8") for path in paths}
    for path in [path for path in files if path.startswith("train/train_") and not path.endswith("_light.yml")]:
        name = path.replace("train_", "finetune_")
        text = files[path]
        for old, new in _FINETUNE.items():
            text = text.replace(old, new.format(net=Path(name).stem.removeprefix("finetune_").removesuffix("_PCL")))
        files[name] = text
    return dict(sorted(files.items()))


def write_options(folder: Path, *, overwrite: bool = False) -> list[Path]:
    """Write all option files below `folder`, which is made if it is missing; returns their paths.

    Writes nothing and raises FileExistsError if a file is there with another text, unless `overwrite` is given.
    """
    targets = {folder / path: text for path, text in option_files().items()}
    for path, text in {} if overwrite else targets.items():
        if path.exists() and path.read_text(encoding="utf-8") != text:
            raise FileExistsError(f"{path} is there with another text; choose another folder, or pass --overwrite")
    for path, text in targets.items():
        write_file(path, text.encode(), sync=False)  # they can be made again
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
