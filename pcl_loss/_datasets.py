"""The data sets that our option files name: where they are published, and where their images are expected."""

from __future__ import annotations

from dataclasses import dataclass

LR_PATCH = 48  # section 3.5 of the paper


@dataclass(frozen=True)
class Dataset:
    """A benchmark or training set: where it is published."""

    name: str
    published: str


BENCHMARKS = (
    Dataset("Set5", "https://cv.snu.ac.kr/research/EDSR/benchmark.tar"),
    Dataset("Set14", "https://cv.snu.ac.kr/research/EDSR/benchmark.tar"),
    Dataset("B100", "https://cv.snu.ac.kr/research/EDSR/benchmark.tar"),
    Dataset("Urban100", "https://cv.snu.ac.kr/research/EDSR/benchmark.tar"),
    Dataset("Manga109", "http://www.manga109.org/en/ (on request)"),
)
DIV2K = Dataset("DIV2K", "https://data.vision.ee.ethz.ch/cvl/DIV2K/")
DATASETS = tuple(dataset.name for dataset in (DIV2K, *BENCHMARKS))


def expected_layout(dataset: str) -> str:
    """Where a data set that our options name is published, and which folders are expected, as one sentence each.

    Args:
        dataset: its name: DIV2K, Set5, Set14, B100, Urban100 or Manga109.

    Raises:
        ValueError: our options name no such set.
    """
    if dataset == DIV2K.name:
        return (
            f"DIV2K is published at {DIV2K.published}. Expected are datasets/DIV2K/DIV2K_train_HR/0001.png ... and "
            "datasets/DIV2K/DIV2K_train_LR_bicubic/X4/0001x4.png ..."
        )
    for benchmark in BENCHMARKS:
        if benchmark.name == dataset:
            return (
                f"{dataset} is published at {benchmark.published}. Expected are "
                f"datasets/benchmark/{dataset}/HR/NAME.png and datasets/benchmark/{dataset}/LR_bicubic/X4/NAMEx4.png; "
                "if you have HR only, `pcl-loss prepare --hr HRDIR --out DIR --scale 4` makes the LR images and "
                "prints the lines to paste"
            )
    raise ValueError(f"unknown data set {dataset!r}; known are {', '.join(DATASETS)}")
