"""`pcl-loss patch` on stand-ins of the codebases: their call conventions in our words, with other names."""

import argparse
import errno
import itertools
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pcl_loss.edsr_plugin import PCL
from pcl_loss.tools import patch

PATCHES = Path(__file__).parents[2] / "patches"

LOSS = """\
# The terms of --loss
from importlib import import_module

import torch
from torch import nn


class Criteria(nn.Module):
    def __init__(self, options, folder):
        super().__init__()
        self.terms = []
        self.kept = nn.ModuleList()
        for term in options.loss.split('+'):
            factor, kind = term.split('*')
            if kind == 'L2':
                built = nn.MSELoss()
            elif kind == 'L1':
                built = nn.L1Loss()
            # whatever has a delta in its name
            elif kind.startswith('Huber'):
                delta = float(kind[5:])
                built = nn.HuberLoss(delta=delta)
            elif 'GAN' in kind:
                built = import_module('loss.gan').Gan(options)

            self.terms.append({
                'type': kind,
                'weight': float(factor),
                'function': built,
            })
            if 'GAN' in kind:
                self.terms.append({'function': None, 'type': 'DIS', 'weight': 1})
        for entry in self.terms:
            if entry['function'] is not None:
                self.kept.append(entry['function'])

    def forward(self, out, target):
        self.columns, total = {}, 0
        for number, entry in enumerate(self.terms):
            if entry['type'] == 'DIS':
                self.columns['DIS'] = self.terms[number - 1]['function'].loss
            else:
                value = entry['weight'] * entry['function'](out, target)
                self.columns[entry['type']] = value.item()
                total = total + value
        return total
"""

TRAINER = """\
import torch


class Training:
    def __init__(self, loader, model, loss):
        self.loader = loader
        self.model, self.loss = model, loss

    def train(self):
        for small, large in self.loader:
            if small is not None:
                out = self.model(small, 0)
                # the loss
                value = self.loss(out, large)
                value.backward()
"""

BASICSR = '''\
"""Training."""
import logging
from os import path as osp

from basicsr.data import build_dataset
from basicsr.utils.options import parse_options


def train_pipeline(root_path):
    opt, args = parse_options(root_path, is_train=True)
'''

FLAGS = argparse.ArgumentParser()
patch.add_arguments(FLAGS)


def run(folder: Path, *flags: str) -> int:
    return patch.run(FLAGS.parse_args([str(folder), *flags]))


def write(folder: Path, files: dict[str, str | bytes]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def codebase(tmp_path: Path) -> Path:
    return write(tmp_path / "codebase", {"src/loss/__init__.py": LOSS, "src/trainer.py": TRAINER})


def inserted(before: bytes, after: bytes) -> list[bytes]:
    """The lines that came in; everything else must be there in its order."""
    rest, lines = before.splitlines(keepends=True), []
    for line in after.splitlines(keepends=True):
        if rest and line == rest[0]:
            rest.pop(0)
        else:
            lines.append(line)
    assert not rest
    return lines


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("indent", ["    ", "\t", "  "])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_inserted_lines_have_the_files_ends_and_indentation_and_revert(
    tmp_path: Path, end: str, indent: str, bom: bytes
) -> None:
    files = {
        name: bom + re.sub("^(    )+", lambda m: indent * (len(m[0]) // 4), text, flags=re.MULTILINE)
        .replace("\n", end)
        .encode()
        for name, text in (("loss/__init__.py", LOSS), ("trainer.py", TRAINER))
    }  # fmt: skip
    before = tree(write(tmp_path, dict(files)))
    run(tmp_path, "--lr-negative")
    after = tree(tmp_path)

    def line(depth: int, code: str) -> bytes:
        return f"{indent * depth}{code}  # pcl_loss{end}".encode()

    assert inserted(before["loss/__init__.py"], after["loss/__init__.py"]) == [
        line(3, "elif kind.upper() == 'PCL':"),
        line(4, "built = import_module('pcl_loss.edsr_plugin').PCL(options)"),
        line(3, "if kind.upper() == 'PCL':"),
        line(4, "self.terms.append(dict(type='DIS', weight=1, function=None))"),
    ]
    assert inserted(before["trainer.py"], after["trainer.py"]) == [
        line(4, "from pcl_loss.edsr_plugin import set_lr"),
        line(4, "set_lr(self.loss, small)"),
    ]
    run(tmp_path, "--revert")
    assert tree(tmp_path) == before


def test_the_branch_comes_before_those_that_look_for_a_part_of_the_name(codebase: Path) -> None:
    run(codebase)
    text = (codebase / "src/loss/__init__.py").read_text()
    assert text.index("'L1'") < text.index("'PCL'") < text.index("# whatever") < text.index("'Huber'")


def test_the_patched_codebase_trains_with_pcl_and_logs_the_discriminator(
    codebase: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (codebase / "pcl.yml").write_text("num_feat: 2\nnegatives: [lq]\n")
    monkeypatch.chdir(codebase)
    run(codebase, "--lr-negative")
    scopes: dict[str, dict[str, Any]] = {"loss/__init__.py": {}, "trainer.py": {}}
    for name, scope in scopes.items():
        exec((codebase / "src" / name).read_bytes(), scope)
    options = SimpleNamespace(loss="1*L1+1*PCL", rgb_range=255, n_colors=3, scale=[2, 4], lr=1e-4)
    capsys.readouterr()
    loss = scopes["loss/__init__.py"]["Criteria"](options, None)
    assert capsys.readouterr().out.count("[pcl_loss]") == 1

    model = torch.nn.Upsample(scale_factor=4, mode="bicubic")
    weight = torch.ones((), requires_grad=True)
    small, large = torch.rand(2, 3, 16, 16) * 255, torch.rand(2, 3, 64, 64) * 255
    training = scopes["trainer.py"]["Training"]([(small, large)], lambda x, scale: model(x) * weight, loss)
    training.train()  # with several scales, LR could not have been made of HR
    assert loss.columns.keys() == {"L1", "PCL", "DIS"}
    assert loss.columns["PCL"] > 0
    assert loss.columns["DIS"] > 0
    assert weight.grad is not None


def test_a_second_time_nothing_changes(codebase: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(codebase)
    after = tree(codebase)
    capsys.readouterr()
    assert run(codebase) == 0
    assert tree(codebase) == after
    assert "already there" in capsys.readouterr().out


def test_lr_can_be_asked_for_later(codebase: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "other", {"src/loss/__init__.py": LOSS, "src/trainer.py": TRAINER})
    run(codebase)
    run(codebase, "--lr-negative")
    run(other, "--lr-negative")
    assert tree(codebase) == tree(other)


def test_it_says_what_it_inserted_where(codebase: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(codebase, "--lr-negative")
    out = capsys.readouterr().out
    lines = LOSS.splitlines()
    assert f"src/loss/__init__.py, after line {lines.index('                built = nn.L1Loss()') + 1}: " in out
    assert "src/trainer.py, after line 13: LR is handed to the loss" in out
    assert '--loss "1*L1+1*PCL"' in out


def test_a_dry_run_prints_a_diff_that_git_applies_and_changes_nothing(
    codebase: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    before = tree(codebase)
    run(codebase, "--lr-negative", "--dry-run")
    diff = capfdbinary.readouterr().out
    assert tree(codebase) == before
    assert not [line for line in diff.splitlines() if line[:1] in (b"-", b" ") and not line.startswith(b"---")]

    run(codebase, "--lr-negative")
    after = tree(codebase)
    run(codebase, "--revert")
    (tmp_path / "x.patch").write_bytes(diff)
    env = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path)}
    subprocess.run(["git", "apply", "--unidiff-zero", tmp_path / "x.patch"], cwd=codebase, env=env, check=True)
    assert tree(codebase) == after


def test_a_dry_run_of_a_revert_changes_nothing(codebase: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    run(codebase)
    after = tree(codebase)
    capfdbinary.readouterr()
    run(codebase, "--revert", "--dry-run")
    assert tree(codebase) == after
    assert capfdbinary.readouterr().out.count(b"\n-  ") == 4


def test_where_nothing_imports_import_module_the_branch_does(tmp_path: Path) -> None:
    text = LOSS.replace("from importlib import import_module\n", "").replace("import_module('loss.gan')", "gan")
    write(tmp_path, {"loss/__init__.py": text})
    run(tmp_path)
    assert (
        "built = __import__('importlib').import_module('pcl_loss.edsr_plugin')"
        in (tmp_path / "loss/__init__.py").read_text()
    )


def test_without_a_column_for_a_discriminator_only_the_branch_is_inserted(tmp_path: Path) -> None:
    text = LOSS.replace("'DIS'", "'other'")
    write(tmp_path, {"loss/__init__.py": text})
    run(tmp_path)
    assert len(inserted(text.encode(), (tmp_path / "loss/__init__.py").read_bytes())) == 2


def test_one_line_branches_are_understood(tmp_path: Path) -> None:
    text = """
    class Loss:
        def __init__(self, args):
            for kind in args.loss.split('+'):
                if kind == 'L1': f = make('L1')
                elif kind == 'L2': f = make('L2')
                else: f = make('MSE')
    """
    write(tmp_path, {"loss/__init__.py": textwrap.dedent(text)})
    run(tmp_path)
    assert (
        "            elif kind.upper() == 'PCL':  # pcl_loss\n"
        "                f = __import__('importlib').import_module('pcl_loss.edsr_plugin').PCL(args)  # pcl_loss\n"
        "            else:"
    ) in (tmp_path / "loss/__init__.py").read_text()


def refused(folder: Path, *flags: str) -> str:
    """The message of a refusal that changed nothing."""
    before = tree(folder)
    with pytest.raises((ValueError, OSError)) as error:
        run(folder, *flags)
    assert tree(folder) == before
    return str(error.value)


CHAIN = LOSS[LOSS.index("            if kind == 'L2'") : LOSS.index("            self.terms")]


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (LOSS + "print 'done'\n", "does not parse as Python 3"),
        (LOSS.replace("    def forward", "\tdef forward"), "does not parse as Python 3"),
        (LOSS.replace("def", "def\0", 1), "null bytes"),
        (LOSS.replace(CHAIN, "            built = known[kind]\n"), "no if/elif chain"),
        (LOSS.replace(CHAIN, CHAIN + CHAIN), "more than one if/elif chain"),
        (LOSS.replace("'L2'", "'PCL'"), "already knows another loss of the name PCL"),
        ("", "no if/elif chain"),
    ],
)
def test_an_unknown_skeleton_is_refused_with_the_reason_and_the_lines(tmp_path: Path, loss: str, reason: str) -> None:
    write(tmp_path, {"loss/__init__.py": loss, "trainer.py": TRAINER})
    message = refused(tmp_path, "--lr-negative")
    assert reason in message
    assert "elif loss_type.upper() == 'PCL':" in message
    assert "Nothing was changed" in message
    assert message.startswith(str(tmp_path / "loss/__init__.py"))


@pytest.mark.parametrize(
    ("trainer", "reason"),
    [
        (TRAINER.replace("self.loss(out, large)", "self.loss(large)"), "no calls of the shape"),
        (TRAINER + TRAINER, "2 calls of the shape"),
        (TRAINER.replace("self.model(small, 0)", "self.upscale(small)"), "no line of the shape `sr = self.model(lr"),
        (
            TRAINER.replace("                # the loss\n                value", "                pass; value"),
            "more than",
        ),
        (TRAINER.replace("import torch", "import torch as"), "does not parse"),
        (None, "the file is missing"),
    ],
)
def test_an_unknown_trainer_is_refused_and_the_loss_is_left_alone(
    codebase: Path, trainer: str | None, reason: str
) -> None:
    if trainer is None:
        (codebase / "src/trainer.py").unlink()
    else:
        (codebase / "src/trainer.py").write_text(trainer)
    message = refused(codebase, "--lr-negative")
    assert reason in message
    assert "set_lr(self.loss, lr)" in message
    assert run(codebase) == 0  # the loss alone is known


@pytest.mark.parametrize(
    ("first", "is_fine"),
    [
        ("kind.find('C') >= 0", False),
        ("'l' in kind.lower()", False),
        ("options.any", False),
        ("kind.find('VGG') >= 0", True),
        ("kind.lower() == 'l2'", True),
    ],
)
def test_where_another_branch_would_be_taken_for_pcl_ours_is_not_put_behind_it(
    codebase: Path, first: str, is_fine: bool
) -> None:
    test = f"{first} and kind != ''"
    (codebase / "src/loss/__init__.py").write_text(LOSS.replace("if kind == 'L2'", f"if {test}", 1))
    if is_fine:
        assert run(codebase) == 0
        return
    message = refused(codebase)
    assert "may be taken for PCL too" in message
    assert "if kind.upper() == 'PCL':" in message
    assert f"elif {test}:" in message


@pytest.mark.parametrize("name", ["PCL", "pcl", "Pcl"])
def test_the_branch_takes_the_name_in_any_case(codebase: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (codebase / "pcl.yml").write_text("num_feat: 2\n")
    monkeypatch.chdir(codebase)
    run(codebase)
    scope: dict[str, Any] = {}
    exec((codebase / "src/loss/__init__.py").read_bytes(), scope)
    loss = scope["Criteria"](SimpleNamespace(loss=f"1*L1+1*{name}", rgb_range=255, n_colors=3, scale=4, lr=1e-4), None)
    assert isinstance(loss.kept[1], PCL)
    assert [entry["type"] for entry in loss.terms] == ["L1", name, "DIS"]


def test_a_last_line_without_an_end_is_refused(tmp_path: Path) -> None:
    text = LOSS[: LOSS.index("            # whatever")].rstrip("\n")
    write(tmp_path, {"loss/__init__.py": text})
    assert "no line end" in refused(tmp_path)


def test_a_folder_that_is_no_codebase_is_refused_with_what_works_in_any_loop(tmp_path: Path) -> None:
    write(tmp_path, {"losses/__init__.py": LOSS})
    message = refused(tmp_path)
    assert "no codebase that can be patched" in message
    assert "PCLCriterion().to(device)" in message
    assert "loss_type" not in message


PLUGIN = "import some.archs\nfrom basicsr.train import train_pipeline\n"


@pytest.mark.parametrize(
    ("files", "fits"),
    [
        ({"some/train.py": PLUGIN}, "pcl-loss run some/train.py -opt"),
        ({"train.py": PLUGIN}, "pcl-loss run train.py -opt"),
        ({"models/model_plain.py": "class ModelPlain(Base):\n    pass\n"}, "in optimize_parameters, before G_loss"),
        ({"loss.py": LOSS, "trainer.py": TRAINER}, "behind `loss_primary = self.loss(sr[-1], hr)`"),
    ],
)
def test_a_refusal_says_what_fits_the_codebase(tmp_path: Path, files: dict[str, str | bytes], fits: str) -> None:
    message = refused(write(tmp_path, files))
    assert fits in message
    assert "elif" not in message


def test_losses_of_lists_of_images_are_refused_with_lines_that_hand_over_one(codebase: Path) -> None:
    forward = "    def forward(self, out, target):\n"
    lists = LOSS.replace(forward, forward + "        assert isinstance(out, list)\n")
    (codebase / "src/loss/__init__.py").write_text(lists)
    message = refused(codebase)
    assert "a list of SR images" in message
    assert "sr[0] if l['type'] == 'PCL' else sr" in message
    other = LOSS.replace("        self.terms = []\n", "        self.terms, a = [], isinstance(folder, list)\n")
    (codebase / "src/loss/__init__.py").write_text(other)
    assert run(codebase) == 0


def test_a_missing_folder_and_a_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path, {"a.txt": "a"})
    with pytest.raises(FileNotFoundError, match="no folder"):
        run(tmp_path / "nothing")
    with pytest.raises(NotADirectoryError, match="is a file"):
        run(tmp_path / "a.txt")


@pytest.mark.parametrize("part", ["src/loss", "src", "."])
def test_any_folder_on_the_way_to_the_loss_may_be_named(
    codebase: Path, part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write(tmp_path / "expected", {"src/loss/__init__.py": LOSS, "src/trainer.py": TRAINER})
    run(expected)
    monkeypatch.chdir(codebase / part)
    run(Path("."))
    assert tree(codebase) == tree(expected)


def test_a_codebase_that_holds_another_one_can_be_named_and_so_can_the_other(basicsr: Path) -> None:
    other = write(basicsr / "restorer", {"loss/__init__.py": LOSS})
    before = tree(other)
    run(basicsr)
    assert b"pcl_loss" in (basicsr / "basicsr/train.py").read_bytes()
    assert tree(other) == before
    run(other)
    assert tree(other) != before


def test_of_several_codebases_one_must_be_named(codebase: Path) -> None:
    write(codebase, {"older/loss/__init__.py": LOSS})
    message = refused(codebase)
    assert str(codebase / "older") in message
    assert str(codebase / "src") in message


@pytest.mark.parametrize("name", ["TestCode/code", "RCAN_TestCode/code", "test"])
def test_a_copy_for_testing_is_left_alone(codebase: Path, name: str) -> None:
    write(codebase, {f"{name}/loss/__init__.py": LOSS})
    run(codebase)
    assert (codebase / name / "loss/__init__.py").read_text() == LOSS
    assert b"PCL" in (codebase / "src/loss/__init__.py").read_bytes()


def test_lines_inserted_by_hand_are_seen_and_left_to_the_hand(
    codebase: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = codebase / "src/loss/__init__.py"
    by_hand = (
        "            elif kind == 'PCL':\n                built = import_module('pcl_loss.edsr_plugin').PCL(options)\n"
    )
    file.write_text(LOSS.replace("            # whatever", by_hand + "            # whatever"))
    before = tree(codebase)
    run(codebase)
    assert "already there" in capsys.readouterr().out
    run(codebase, "--revert")
    assert "by hand" in capsys.readouterr().out
    assert tree(codebase) == before


@pytest.mark.parametrize("comment", ["# TODO: try pcl_loss here", '"""How about pcl_loss.edsr_plugin?"""'])
def test_a_word_about_us_is_no_branch(codebase: Path, comment: str) -> None:
    file = codebase / "src/loss/__init__.py"
    file.write_text(f"{comment}\n{LOSS}")
    run(codebase)
    assert "elif kind.upper() == 'PCL'" in file.read_text()


def test_a_word_about_us_in_the_trainer_hands_no_lr_over(codebase: Path) -> None:
    file = codebase / "src/trainer.py"
    file.write_text(f"import pcl_loss  # for later\n{TRAINER}")
    run(codebase, "--lr-negative")
    assert "set_lr(self.loss, small)" in file.read_text()


def test_reverting_what_was_never_patched_says_so(codebase: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(codebase)
    assert run(codebase, "--revert") == 0
    assert "nothing of ours" in capsys.readouterr().out
    assert tree(codebase) == before


def test_a_revert_that_would_leave_a_broken_file_is_refused(codebase: Path) -> None:
    run(codebase)
    file = codebase / "src/loss/__init__.py"
    file.write_text(file.read_text() + "def broken(:\n")
    assert f"{file}: without our lines it does not parse" in refused(codebase, "--revert")


def test_if_one_file_cannot_be_replaced_none_is(codebase: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, calls = os.replace, itertools.count(1)

    def fail_at_the_second(source: Any, target: Any) -> None:
        if next(calls) == 2:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(source))
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_at_the_second)
    message = refused(codebase, "--lr-negative")
    assert message.startswith(f"{codebase / 'src/trainer.py'} cannot be replaced: Permission denied; is its folder")
    assert ".tmp-" not in message


def test_a_read_only_file_is_left_alone(codebase: Path) -> None:
    file = codebase / "src/trainer.py"
    file.chmod(0o444)
    assert f"{file} is read-only (mode 0444)" in refused(codebase, "--lr-negative")
    run(codebase, "--lr-negative", "--dry-run")


def test_modes_and_links_are_kept(codebase: Path) -> None:
    file, real = codebase / "src/loss/__init__.py", codebase / "real.py"
    file.rename(real)
    file.symlink_to(real)
    real.chmod(0o750)
    run(codebase)
    assert file.is_symlink()
    assert real.stat().st_mode & 0o777 == 0o750
    assert b"'PCL'" in real.read_bytes()


@pytest.fixture
def basicsr(tmp_path: Path) -> Path:
    package = dict.fromkeys(("basicsr/__init__.py", "basicsr/utils/registry.py"), "")
    return write(tmp_path / "BasicSR", {"basicsr/train.py": BASICSR, "basicsr/test.py": BASICSR} | package)


def test_basicsr_knows_us_before_its_own_imports_but_only_when_run(basicsr: Path) -> None:
    before = tree(basicsr)
    run(basicsr)
    for name in ("train", "test"):
        text = (basicsr / f"basicsr/{name}.py").read_text()
        assert text.index("pcl_loss.basicsr_plugin.register()") < text.index("from basicsr.data")
        assert text.index("import logging") < text.index("import pcl_loss.basicsr_plugin")
        (guard,) = re.findall(r"^if (.+):  # pcl_loss$", text, re.MULTILINE)
        assert eval(guard, {"__name__": "__main__"})
        assert not eval(guard, {"__name__": "basicsr.train"})
    run(basicsr, "--revert")
    assert tree(basicsr) == before


def test_basicsr_hands_lr_over_by_itself(basicsr: Path) -> None:
    assert "leave out --lr-negative" in refused(basicsr, "--lr-negative")


def test_a_fresh_clone_of_basicsr_is_told_how_to_make_its_version_file(
    basicsr: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = "python setup.py --version"
    run(basicsr)
    assert command not in capsys.readouterr().out
    run(basicsr, "--revert")
    write(basicsr, {"setup.py": ""})
    run(basicsr)
    assert command in capsys.readouterr().out
    run(basicsr, "--revert")
    write(basicsr, {"basicsr/version.py": ""})
    run(basicsr)
    assert command not in capsys.readouterr().out


def test_a_basicsr_without_a_test_script_is_patched(basicsr: Path) -> None:
    (basicsr / "basicsr/test.py").unlink()
    assert run(basicsr) == 0
    assert b"pcl_loss" in (basicsr / "basicsr/train.py").read_bytes()


@pytest.mark.parametrize(
    ("lacks", "is_shadowed"),
    [(["__init__.py"], True), (["utils/registry.py"], False), (["__init__.py", "utils/registry.py"], True)],
)
def test_a_basicsr_that_nothing_can_be_registered_in_is_refused_with_what_works(
    basicsr: Path, lacks: list[str], is_shadowed: bool
) -> None:
    for file in lacks:
        (basicsr / "basicsr" / file).unlink()
    message = refused(basicsr)
    assert f"has no {' and no '.join(lacks)}" in message
    assert ("pip uninstall basicsr" in message) == is_shadowed
    assert "self.cri_pcl = PCLCriterion().to(self.device)" in message


def test_basicsr_without_its_imports_is_refused_with_the_lines(basicsr: Path) -> None:
    (basicsr / "basicsr/test.py").write_text("import logging\n")
    message = refused(basicsr)
    assert "no import of basicsr" in message
    assert "pcl_loss.basicsr_plugin.register()" in message


def test_revert_wants_no_other_flag(codebase: Path) -> None:
    assert "leave out --lr-negative" in refused(codebase, "--revert", "--lr-negative")


@pytest.mark.parametrize("name", ["BasicSR", "EDSR-PyTorch", "HAN", "RCAN"])
def test_the_patches_hold_nothing_but_our_lines(name: str) -> None:
    head, _, body = (PATCHES / f"{name}.patch").read_bytes().partition(b"\n\n---")
    assert re.search(rb"commit [0-9a-f]{40}\n", head)
    hunks = 0
    for line in (b"---" + body).splitlines():
        if line.startswith(b"@@"):
            assert re.fullmatch(rb"@@ -\d+,0 \+\d+,\d+ @@", line)
            hunks += 1
        elif not line.startswith((b"--- a/", b"+++ b/")):
            assert line.startswith(b"+")
            assert line.endswith(b"  # pcl_loss")
    assert hunks == 2


@pytest.mark.parametrize("flag", ["--dry-run", "--revert"])
def test_a_reader_that_has_seen_enough_is_no_error(codebase: Path, flag: str) -> None:
    read, written = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "pcl_loss", "patch", str(codebase), flag]
    done = subprocess.run(command, stdout=written, stderr=subprocess.PIPE, text=True, check=True)
    os.close(written)
    assert "pipe" not in done.stderr


@pytest.fixture
def trainner(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    write(folder, {"traiNNer/losses/__init__.py": "", "traiNNer/losses/pixel_loss.py": "weight = 1\n"})
    return folder


def test_trainner_gets_one_file_of_its_own_and_loses_it_again(
    trainner: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(trainner)
    assert run(trainner) == 0
    added = tree(trainner)
    assert added.keys() - before.keys() == {"traiNNer/losses/pcl_loss.py"}
    assert {name: added[name] for name in before} == before
    assert "- type: pclloss" in capsys.readouterr().out
    assert run(trainner) == 0
    assert "is already there" in capsys.readouterr().out
    assert tree(trainner) == added
    assert run(trainner, "--revert") == 0
    assert tree(trainner) == before
    assert run(trainner, "--revert") == 0
    assert "there is no such file" in capsys.readouterr().out


@pytest.mark.parametrize("flags", [(), ("--revert",)])
def test_a_dry_run_on_trainner_prints_a_diff_that_git_applies(
    trainner: Path, flags: tuple[str, ...], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    before = tree(trainner)
    run(trainner)
    after = tree(trainner)
    if not flags:
        run(trainner, "--revert")
        before, after = after, before
    capfdbinary.readouterr()
    start = tree(trainner)
    assert run(trainner, "--dry-run", *flags) == 0
    assert tree(trainner) == start
    diff = capfdbinary.readouterr().out
    env = os.environ | {"GIT_CEILING_DIRECTORIES": str(trainner.parent)}
    subprocess.run(["git", "apply", "--unidiff-zero"], input=diff, cwd=trainner, env=env, check=True)
    assert tree(trainner) == before


def test_another_file_of_that_name_in_trainner_is_refused_and_left_alone(trainner: Path) -> None:
    write(trainner, {"traiNNer/losses/pcl_loss.py": "class PCLLoss: pass\n"})
    before = tree(trainner)
    assert "another file of that name" in refused(trainner)
    assert run(trainner, "--revert") == 0
    assert tree(trainner) == before
