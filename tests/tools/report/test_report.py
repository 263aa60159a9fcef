"""The verb `report`, through its command line, on crops of free photographs and tiny nets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml
from report_helpers import (
    NETWORK,
    SET5,
    SET14,
    A,
    call,
    edsr,
)

from pcl_loss.tools import report


@pytest.mark.parametrize(
    ("flags", "error", "message"),
    [
        (["--net=X=gone.pth", SET5], FileNotFoundError, r"checkpoint of X, gone\.pth, does not exist"),
        (["--net=X=lone.pth", SET5], FileNotFoundError, r"architecture of X is unknown.*--opt X=FILE\.yml"),
        (["--net=X=lone.pth", SET5, "--opt=X=no_g.yml"], ValueError, r"no_g\.yml has no network_g"),
        (["--net=X=lone.pth", SET5, "--opt=wide.yml"], ValueError, r"lone\.pth does not fit .*wide\.yml; name its own"),
        (["--net=X=lone.pth", SET5, "--opt=odd.yml"], ValueError, r"odd\.yml: BasicSR knows no network_g of type Odd"),
        (["--net=X=lone.pth", SET5, "--opt=Y=a/a.yml"], FileNotFoundError, "Y=a/a.yml"),
        (["--net=X=text.pth", SET5, "--opt=a/a.yml"], ValueError, r"text\.pth is no readable checkpoint"),
        ([A, SET5, "--param-key=params_ema"], ValueError, "has no params_ema, only params; take auto"),
        ([A, SET5, "--scale=2"], ValueError, r"a\.yml, which describes EDSR-S, has scale: 4; .* --scale 2"),
        ([A, A, SET5], ValueError, "--net names EDSR-S twice"),
        ([A, "--net=edsr-s=b", SET5], ValueError, "name edsr-s is taken by EDSR-S"),
        (["--net=bicubic=b", SET5], ValueError, "name bicubic is taken by Bicubic"),
        (["--net=../x=b", SET5], ValueError, "cannot be a folder's"),
        ([A, SET5, SET5], ValueError, "--set names Set5 twice"),
        ([A, "--set=Set5"], ValueError, "expected --set NAME=HRDIR"),
        ([A, "--set=S=nowhere"], FileNotFoundError, "HR folder of the set S, nowhere, does not exist"),
        ([A, "--set=S=empty"], FileNotFoundError, "HR folder of the set S, empty, holds no image"),
        ([A, "--set=S=Set5/HR:Set14/HR"], FileNotFoundError, r"no LR image for Set5/HR/cat\.png"),
        ([A, SET5, "--crop=Set5/cat"], ValueError, "expected SET/IMAGE:TOP,LEFT,SIZE"),
        ([A, SET5, "--crop=Set5/dog:0,0,9"], ValueError, "no image Set5/dog to crop; there are Set5/cat, Set5/cup"),
        ([A, SET5, "--crop=Set5/cup:0,20,32"], ValueError, "reaches beyond the image of 48x48"),
        ([A, SET5, "--out=lone.pth"], ValueError, r"lone\.pth is a file"),
        ([A, SET5, "--opt=a/a.yml", "--opt=b/b.yml"], ValueError, "2 times without the name"),
    ],
)
def test_a_mistake_is_named_with_its_fix(place: Path, flags: list[str], error: type[Exception], message: str) -> None:
    (place / "empty").mkdir()
    (place / "text.pth").write_text("no checkpoint")
    torch.save(edsr(1).state_dict(), place / "lone.pth")
    blocks = {"no_g": {}, "wide": {"network_g": NETWORK | {"num_feat": 8}}, "odd": {"network_g": {"type": "Odd"}}}
    for name, block in blocks.items():
        (place / f"{name}.yml").write_text(yaml.safe_dump(block))
    with pytest.raises(error, match=message):
        call(*flags)
    assert not (place / "report").exists()


def test_an_unusable_device_is_named(place: Path) -> None:
    with pytest.raises(ValueError, match="device 'abacus' cannot be used"):
        report.make_report({"X": "a"}, {"Set5": "Set5/HR"}, "report", device="abacus")


def test_without_matplotlib_there_are_tables_and_a_word(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find_spec = report.importlib.util.find_spec
    monkeypatch.setattr(
        report.importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find_spec(name)
    )
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert call(A, SET14) == 0
    assert "There is no figure" in capsys.readouterr().out
    assert not (place / "report" / "figure.png").exists()
