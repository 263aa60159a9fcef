"""Packaging of pcl_loss."""

import re
from pathlib import Path

from setuptools import find_packages, setup

HERE = Path(__file__).parent
VERSION = re.search(r'^__version__ = "(.+)"$', (HERE / "pcl_loss" / "__init__.py").read_text(), re.MULTILINE)[1]

setup(
    name="pcl_loss",
    version=VERSION,
    description="The contrastive loss of PCL-SISR for BasicSR, EDSR-PyTorch, RCAN, HAN and any training loop",
    long_description=(HERE / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    python_requires=">=3.11",
    packages=[*find_packages(include=["pcl_loss", "pcl_loss.*"]), "pcl_loss.basicsr_options", "pcl_loss.patches"],
    package_dir={"pcl_loss.basicsr_options": "basicsr_options", "pcl_loss.patches": "patches"},
    package_data={
        "pcl_loss": ["py.typed"],
        "pcl_loss.tools.demo": ["l1_template.yml"],
        "pcl_loss.tools.report": ["paper_table_*.txt"],
        "pcl_loss.basicsr_options": ["README.md", "*/*.yml"],
        "pcl_loss.patches": ["*.patch"],
    },
    install_requires=[
        "torch>=2.4",
        "torchvision",
        "numpy",
        "kornia>=0.9",
        "opencv-python",
        "PyYAML",
        "tqdm",
        # HAT and DRCT pin 1.3.4.9. BasicSR cannot be installed on Python 3.13.
        'basicsr>=1.3.4.9; python_version < "3.13"',
        # BasicSR imports distutils, which setuptools brings back on Python 3.12.
        'setuptools; python_version >= "3.12"',
    ],
    extras_require={
        "metrics": ["lpips"],
        "plots": ["matplotlib"],
        "test": [
            "accelerate",
            "hypothesis",
            "matplotlib",
            "mypy",
            "pytest",
            "PyWavelets",
            "ruff",
            "types-PyYAML",
            "types-tqdm",
        ],
    },
    entry_points={"console_scripts": ["pcl-loss = pcl_loss.cli:main"]},
)
