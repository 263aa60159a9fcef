"""Packaging of pcl_loss."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "pcl_loss" / "__init__.py").read_text(), re.MULTILINE)[1]

REPOSITORY = ""
"""`https://github.com/OWNER/NAME`, as soon as there is one."""

BASICSR = [
    # HAT and DRCT pin 1.3.4.9. BasicSR's setup.py fails on Python 3.13.
    'basicsr>=1.3.4.9; python_version < "3.13"',
    # BasicSR imports distutils, which setuptools brings back on Python 3.12.
    'setuptools; python_version >= "3.12"',
    "opencv-python",
    "pydantic>=2",
    "torchvision",
    "tqdm",
]
METRICS = ["lpips", "piq"]
PLOTS = ["matplotlib"]


def readme_for_index(readme: str, repository: str) -> str:
    """README.md as a package index shows it, which has none of the files that relative links lead to.

    Such links and pictures lead to the version's tag in the repository; without a repository only their text stays.
    """
    relative = r"(!?)\[([^]]*)\]\((?!https?://|#)([^)]+)\)"
    if repository:
        # `raw` serves a picture, `blob` the page of a file or folder.
        views = {"!": "raw", "": "blob"}
        return re.sub(relative, lambda m: f"{m[1]}[{m[2]}]({repository}/{views[m[1]]}/v{VERSION}/{m[3]})", readme)
    return re.sub(relative, lambda m: "" if m[1] else m[2], readme)


def urls(repository: str) -> dict[str, str]:
    """The links beside the description."""
    paper = {"Paper": "https://arxiv.org/abs/2111.13924"}
    if not repository:
        return paper
    changelog = f"{repository}/blob/v{VERSION}/CHANGELOG.md"
    return {"Source": repository, "Issues": f"{repository}/issues", "Changelog": changelog, **paper}


if __name__ == "__main__":  # tests import the functions
    setup(
        name="pcl_loss",
        version=VERSION,
        description="The contrastive loss of PCL-SISR for BasicSR, EDSR-PyTorch, RCAN, HAN and any training loop",
        long_description=readme_for_index((HERE / "README.md").read_text(encoding="utf-8"), REPOSITORY),
        long_description_content_type="text/markdown",
        author="The pcl_loss authors",
        license_expression="Apache-2.0",
        license_files=["LICENSE"],
        project_urls=urls(REPOSITORY),
        keywords=["super-resolution", "contrastive learning", "perceptual loss", "BasicSR", "PyTorch"],
        classifiers=[
            "Development Status :: 4 - Beta",
            "Intended Audience :: Science/Research",
            "Operating System :: OS Independent",
            "Programming Language :: Python :: 3",
            "Programming Language :: Python :: 3.11",
            "Programming Language :: Python :: 3.12",
            "Programming Language :: Python :: 3.13",
            "Topic :: Scientific/Engineering :: Artificial Intelligence",
            "Topic :: Scientific/Engineering :: Image Processing",
            "Typing :: Typed",
        ],
        python_requires=">=3.11",
        packages=[*find_packages(include=["pcl_loss", "pcl_loss.*"]), "pcl_loss.basicsr_options", "pcl_loss.patches"],
        package_dir={"pcl_loss.basicsr_options": "basicsr_options", "pcl_loss.patches": "patches"},
        package_data={
            "pcl_loss": ["py.typed"],
            "pcl_loss.tools": ["dataset_template.yml"],
            "pcl_loss.tools.demo": ["l1_template.yml", "demo_net.pth", "README.md"],
            "pcl_loss.basicsr_options": ["README.md", "*/*.yml"],
            "pcl_loss.patches": ["*.patch"],
        },
        # The oldest PyTorch that `make test-versions` runs on. PyYAML reads the pcl.yml of the EDSR family.
        install_requires=["torch>=2.5.1", "numpy", "kornia>=0.9", "PyYAML"],
        extras_require={
            "basicsr": BASICSR,
            "metrics": METRICS,
            "plots": PLOTS,
            "all": [*BASICSR, *METRICS, *PLOTS],
            "test": [
                *METRICS,
                *PLOTS,
                "accelerate",
                "hypothesis",
                "mypy",
                "opencv-python",
                "pytest",
                "PyWavelets",
                "ruff",
                "scikit-image",
                "scipy",
                "torchvision",
                "tqdm",
                "types-PyYAML",
                "types-tqdm",
            ],
        },
        entry_points={"console_scripts": ["pcl-loss = pcl_loss.cli:main"]},
    )
