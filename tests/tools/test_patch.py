"""`pcl-loss patch` on stand-ins of the codebases: their call conventions in our words, with other names."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from pcl_loss import cli
from pcl_loss.edsr_plugin import PCL

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/codebases.md").read_text()

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
            elif kind == 'L1':  # the default
                one = 1

                built = nn.L1Loss()
            # whatever has a delta in its name
            elif kind.startswith('Huber'):
                delta = float(kind[5:])
                built = nn.HuberLoss(delta=delta)

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
CHAIN = LOSS[LOSS.index("            if kind == 'L2'") : LOSS.index("            # whatever")]
TRAINER = """\
class Training:
    def __init__(self, loader, model, loss):
        self.loader = loader
        self.model, self.loss = model, loss

    def train(self):
        for small, large in self.loader:
            out, extra = self.model(small, 0), None
            # the loss
            value = self.loss(out, large)
            value.backward()
"""
BASICSR = '''\
"""Training."""
import logging

from basicsr.data import build_dataset


def train_pipeline(root_path):
    pass
'''
PLUGIN = "import some.archs\nfrom basicsr.train import train_pipeline\n"
EDSR = {"src/loss/__init__.py": LOSS, "src/trainer.py": TRAINER}
WITH_REGISTRY = {"basicsr/__init__.py": "", "basicsr/utils/registry.py": "", "basicsr/train.py": BASICSR}


def write(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(text.encode())
    return folder


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(folder: Path, *flags: str) -> int:
    return cli.main(["patch", str(folder), *flags])


def refused(folder: Path, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    """What a refusal that changes nothing says."""
    before = tree(folder)
    assert run(folder, *flags) == 1
    assert tree(folder) == before
    return capsys.readouterr().err


@pytest.fixture
def codebase(tmp_path: Path) -> Path:
    return write(tmp_path / "codebase", EDSR)


def inserted(before: bytes, after: bytes) -> list[str]:
    """The lines that came in; everything else must be there in its order."""
    rest, lines = before.splitlines(keepends=True), []
    for line in after.splitlines(keepends=True):
        if rest and line == rest[0]:
            rest.pop(0)
        else:
            lines.append(line.decode())
    assert not rest
    return lines


@pytest.mark.parametrize("bom", ["", "\ufeff"])
@pytest.mark.parametrize("indent", ["    ", "\t", "  "])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_inserted_lines_have_the_files_ends_and_indentation_and_revert(
    codebase: Path, end: str, indent: str, bom: str
) -> None:
    def indented(match: re.Match[str]) -> str:
        return indent * (len(match[0]) // 4)

    for name, text in EDSR.items():
        changed = re.sub("^(    )+", indented, text, flags=re.MULTILINE).replace("\n", end)
        (codebase / name).write_bytes(f"{bom}{changed}# naïve{end}".encode())
    before = tree(codebase)
    run(codebase, "--lr-negative")
    after = tree(codebase)

    def line(depth: int, code: str) -> str:
        return f"{indent * depth}{code}  # pcl_loss{end}"

    assert inserted(before["src/loss/__init__.py"], after["src/loss/__init__.py"]) == [
        line(3, "elif kind.upper() == 'PCL':"),
        line(4, "built = import_module('pcl_loss.edsr_plugin').PCL(options)"),
        line(3, "if kind.upper() == 'PCL':"),
        line(4, "self.terms.append(dict(type='DIS', weight=1, function=None))"),
    ]
    assert inserted(before["src/trainer.py"], after["src/trainer.py"]) == [
        line(3, "from pcl_loss.edsr_plugin import set_lr"),
        line(3, "set_lr(self.loss, small)"),
    ]
    text = after["src/loss/__init__.py"].decode()
    # Before those that look for a part of the name, and behind the whole body of the one before.
    assert text.index("nn.L1Loss") < text.index("'PCL'") < text.index("# whatever") < text.index("'Huber'")
    run(codebase, "--lr-negative")
    assert tree(codebase) == after
    run(codebase, "--revert")
    assert tree(codebase) == before


@pytest.mark.parametrize("name", ["PCL", "pcl"])
def test_the_patched_codebase_trains_with_pcl_and_logs_the_discriminator(
    codebase: Path, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write(codebase, {"pcl.yml": "num_feat: 2\nnegatives: [lq]\n"})
    monkeypatch.chdir(codebase)
    run(codebase, "--lr-negative")
    assert '--loss "1*L1+1*PCL"' in capsys.readouterr().out
    scope: dict[str, Any] = {}
    for file in EDSR:
        exec((codebase / file).read_bytes(), scope)
    options = SimpleNamespace(loss=f"1*L1+1*{name}", rgb_range=255, n_colors=3, scale=[2, 4], lr=1e-4)
    loss = scope["Criteria"](options, None)
    assert isinstance(loss.kept[1], PCL)
    assert capsys.readouterr().out.count("[pcl_loss]") == 1

    model = torch.nn.Upsample(scale_factor=4, mode="bicubic")
    weight = torch.ones((), requires_grad=True)
    small, large = torch.rand(2, 3, 16, 16) * 255, torch.rand(2, 3, 64, 64) * 255
    training = scope["Training"]([(small, large)], lambda x, scale: model(x) * weight, loss)
    training.train()  # with several scales, LR could not have been made of HR
    assert loss.columns.keys() == {"L1", name, "DIS"}
    assert min(loss.columns.values()) > 0
    assert weight.grad is not None


@pytest.mark.parametrize("flags", [(), ("--revert",)])
@pytest.mark.parametrize("files", [EDSR, {"traiNNer/losses/__init__.py": ""}, WITH_REGISTRY])
def test_a_dry_run_prints_a_diff_that_git_applies_and_changes_nothing(
    tmp_path: Path, files: dict[str, str], flags: tuple[str, ...], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    before, after = (write(tmp_path / name, files) for name in ("before", "after"))
    run(after)
    folder, wanted = (after, before) if flags else (before, after)
    start, wanted_tree = tree(folder), tree(wanted)
    assert start != wanted_tree
    capfdbinary.readouterr()
    assert run(folder, "--dry-run", *flags) == 0
    assert tree(folder) == start
    diff = capfdbinary.readouterr().out
    env = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path)}
    subprocess.run(["git", "apply", "--unidiff-zero"], input=diff, cwd=folder, env=env, check=True)
    assert tree(folder) == wanted_tree


def test_without_import_module_or_a_column_for_a_discriminator_the_branch_alone_is_inserted(codebase: Path) -> None:
    text = LOSS.replace("from importlib import import_module\n", "").replace("'DIS'", "'other'")
    write(codebase, {"src/loss/__init__.py": text})
    run(codebase)
    _, build = inserted(text.encode(), (codebase / "src/loss/__init__.py").read_bytes())
    assert "built = __import__('importlib').import_module('pcl_loss.edsr_plugin').PCL(options)" in build


@pytest.mark.parametrize(
    ("loss", "reason"),
    [
        (LOSS + "print 'done'\n", "no Python that this one takes"),
        (LOSS.replace("def", "def\0", 1), "no Python that this one takes"),
        (LOSS.replace(CHAIN, CHAIN.replace("one = 1\n", "one = (\n  1)\n")), "no Python that this one takes"),
        (LOSS.replace(CHAIN, "            built = known[kind]\n"), "no if/elif chain"),
        (LOSS.replace(CHAIN, CHAIN + CHAIN), "more than one if/elif chain"),
        (LOSS.replace("kind == 'L2'", "'l' in kind.lower()"), "no if/elif chain"),  # it would be taken for PCL
        (LOSS.replace("'L2'", "'PCL'"), "already knows another loss of the name PCL"),
        (LOSS.replace("total = {}, 0", "total = {}, isinstance(out, (list, tuple))"), "a list of SR images"),
        ("", "no if/elif chain"),
    ],
)
def test_losses_that_are_not_recognised_are_refused_with_the_reason(
    codebase: Path, loss: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(codebase, {"src/loss/__init__.py": loss})
    message = refused(codebase, capsys, "--lr-negative")
    assert reason in message
    assert f"{codebase / 'src/loss/__init__.py'}: " in message
    assert "Nothing was changed; docs/codebases.md has the lines" in message


@pytest.mark.parametrize(
    ("trainer", "reason"),
    [
        (TRAINER.replace("self.loss(out, large)", "self.loss(large)"), "0 lines of the shape"),
        (TRAINER + TRAINER, "2 lines of the shape"),
        (TRAINER.replace("self.model(small, 0)", "self.upscale(small)"), "no line of the shape `sr = self.model(lr"),
        ("", "0 lines of the shape"),
    ],
)
def test_a_trainer_that_is_not_recognised_is_refused_and_the_loss_left_alone(
    codebase: Path, trainer: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(codebase, {"src/trainer.py": trainer})
    assert reason in refused(codebase, capsys, "--lr-negative")
    assert run(codebase) == 0


@pytest.mark.parametrize(
    ("files", "status", "says"),
    [
        ({"some/train.py": PLUGIN}, 0, "pcl-loss run some/train.py -opt FILE.yml"),
        ({"train.py": PLUGIN}, 0, "pcl-loss run train.py -opt FILE.yml"),
        ({"own/train.py": BASICSR}, 0, "pcl-loss run own/train.py -opt FILE.yml"),
        (WITH_REGISTRY | {"own/train.py": PLUGIN}, 0, "pcl-loss run own/train.py -opt FILE.yml"),
        ({"models/model_plain.py": "class ModelPlain(ModelBase):\n"}, 1, '"KAIR"'),
        ({"loss.py": LOSS, "trainer.py": TRAINER}, 1, '"DRN"'),
        ({"basicsr/train.py": BASICSR}, 1, '"Restormer, NAFNet and other copies of an old BasicSR"'),
        ({"basicsr/archs/a.py": "from basicsr.utils.registry import X\n"}, 1, "over the files of another BasicSR"),
        ({"losses/__init__.py": LOSS}, 1, '"A loop of your own"'),
    ],
)
def test_where_nothing_can_be_inserted_it_says_what_works_and_whether_that_is_all(
    tmp_path: Path, files: dict[str, str], status: int, says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(write(tmp_path, files))
    assert run(tmp_path) == status
    captured = capsys.readouterr()
    assert says in (captured.err if status else captured.out)
    section = re.search(r'section "(.+)"', captured.err)
    assert section is None or re.search(rf"^#+ {section[1]}$", PAGE, re.MULTILINE)
    assert tree(tmp_path) == before


def test_of_several_codebases_the_nearest_is_taken_and_of_two_as_near_one_must_be_named(
    codebase: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(codebase, {f"{name}/loss/__init__.py": LOSS for name in ("src/inner", "RCAN_TestCode", "test")})
    assert run(codebase) == 0
    assert {name for name, text in tree(codebase).items() if b"PCL" in text} == {"src/loss/__init__.py"}
    write(codebase, {"older/loss/__init__.py": LOSS})
    assert f"{codebase / 'older'}, {codebase / 'src'}" in refused(codebase, capsys)
    assert run(codebase / "src/inner") == 0
    assert run(codebase / "nothing") == 1


def test_lines_without_the_marker_are_seen_and_left_to_the_hand(
    codebase: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(codebase)
    file = codebase / "src/loss/__init__.py"
    write(codebase, {"src/loss/__init__.py": file.read_text().replace("  # pcl_loss", "")})
    before = tree(codebase)
    capsys.readouterr()
    for flags in ((), ("--revert",)):
        assert run(codebase, *flags) == 0
        assert "nothing to do" in capsys.readouterr().out
    assert tree(codebase) == before


def test_a_comment_about_us_is_no_branch(codebase: Path) -> None:
    write(codebase, {"src/loss/__init__.py": f"# TODO: from pcl_loss.edsr_plugin import PCL\n{LOSS}"})
    run(codebase)
    assert "elif kind.upper() == 'PCL'" in (codebase / "src/loss/__init__.py").read_text()


def test_if_one_file_is_read_only_none_is_replaced(codebase: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (codebase / "src/trainer.py").chmod(0o444)
    assert "trainer.py is read-only" in refused(codebase, capsys, "--lr-negative")
    assert run(codebase, "--lr-negative", "--dry-run") == 0


def test_basicsr_knows_us_before_its_own_imports_but_only_when_run(tmp_path: Path) -> None:
    before = tree(write(tmp_path, WITH_REGISTRY | {"basicsr/test.py": BASICSR}))
    assert run(tmp_path) == 0
    for name in ("train", "test"):
        text = (tmp_path / f"basicsr/{name}.py").read_text()
        assert text.index("import logging") < text.index("basicsr_plugin.register()") < text.index("from basicsr.data")
        (guard,) = re.findall(r"^if (.+):  # pcl_loss$", text, re.MULTILINE)
        assert eval(guard, {"__name__": "__main__"})
        assert not eval(guard, {"__name__": "basicsr.train"})
    run(tmp_path, "--revert")
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("files", "flags", "says"),
    [
        (EDSR, ("--revert", "--lr-negative"), "leave out --lr-negative"),
        (WITH_REGISTRY, ("--lr-negative",), "leave out --lr-negative"),
        (WITH_REGISTRY | {"basicsr/test.py": "import logging\n"}, (), "no import of basicsr"),
        (
            {"traiNNer/losses/__init__.py": "", "traiNNer/losses/pcl_loss.py": "a = 1\n"},
            (),
            "another file of that name",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(
    tmp_path: Path, files: dict[str, str], flags: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(write(tmp_path, files), capsys, *flags)


def test_trainner_gets_one_file_of_its_own_and_loses_it_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(write(tmp_path, {"traiNNer/losses/__init__.py": "", "traiNNer/losses/pixel_loss.py": "weight = 1\n"}))
    for _ in range(2):
        assert run(tmp_path) == 0
        added = tree(tmp_path)
        assert added.keys() - before.keys() == {"traiNNer/losses/pcl_loss.py"}
        assert {name: added[name] for name in before} == before
    assert "- type: pclloss" in capsys.readouterr().out
    for _ in range(2):
        assert run(tmp_path, "--revert") == 0
        assert tree(tmp_path) == before


@pytest.mark.parametrize("name", ["BasicSR", "EDSR-PyTorch", "HAN", "RCAN"])
def test_the_patches_hold_nothing_but_our_lines(name: str) -> None:
    head, _, body = (ROOT / f"patches/{name}.patch").read_bytes().partition(b"\n\n---")
    assert re.search(rb"commit [0-9a-f]{40}\n", head)
    lines = (b"---" + body).splitlines()
    hunks = [line for line in lines if line.startswith(b"@@")]
    assert [bool(re.fullmatch(rb"@@ -\d+,0 \+\d+,\d+ @@", hunk)) for hunk in hunks] == [True, True]
    ours = [line for line in lines if not line.startswith((b"@@", b"--- a/", b"+++ b/"))]
    assert all(line.startswith(b"+") and line.endswith(b"  # pcl_loss") for line in ours)


def printed(name: str) -> str:
    """The code block of docs/codebases.md behind `<!-- test: name -->`."""
    (block,) = re.findall(rf"<!-- test: {name} -->\n```python\n(.*?)```", PAGE, re.DOTALL)
    return block


@pytest.mark.parametrize(
    ("block", "files", "file"),
    [
        ("edsr", EDSR, "src/loss/__init__.py"),
        ("edsr_lr", EDSR, "src/trainer.py"),
        ("basicsr_top", WITH_REGISTRY, "basicsr/train.py"),
        ("trainner_file", {"traiNNer/losses/__init__.py": ""}, "traiNNer/losses/pcl_loss.py"),
    ],
)
def test_the_docs_have_the_lines_that_are_inserted(
    tmp_path: Path, block: str, files: dict[str, str], file: str
) -> None:
    names = {"kind": "loss_type", "built": "loss_function", "options": "args", "small": "lr"}
    write(tmp_path, {path: re.sub(r"\w+", lambda m: names.get(m[0], m[0]), text) for path, text in files.items()})
    run(tmp_path, *(["--lr-negative"] if files is EDSR else []))
    ours = [line for line in (tmp_path / file).read_text().splitlines() if line.endswith("  # pcl_loss")]
    lines = [line.strip() for line in printed(block).replace('"', "'").splitlines() if line]
    assert lines == [line.removesuffix("  # pcl_loss").strip() for line in ours[: len(lines)]]


class Restoration:
    """A model of an old BasicSR, as the training script calls it."""

    device = "cpu"

    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt = opt
        torch.manual_seed(0)
        self.net_g = torch.nn.Conv2d(3, 3, 3, padding=1)
        self.gt = torch.rand(2, 3, 32, 32)
        self.init_training_settings()

    def init_training_settings(self) -> None:
        self.cri_pix: Any = torch.nn.L1Loss()

    def optimize_parameters(self) -> None:
        l_total, l_pix = 0.0, 0.0
        for pred in [self.net_g(self.gt)]:
            l_pix += self.cri_pix(pred, self.gt)
        l_total += l_pix
        l_total.backward()

    def save(self, epoch: int, current_iter: int) -> None:
        self.saved = epoch, current_iter

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        self.resumed = resume_state


def test_the_docs_model_for_an_old_basicsr_trains_saves_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = ModuleType("basicsr.models.image_restoration_model")
    module.ImageRestorationModel = Restoration
    for name in (ModuleType("basicsr"), ModuleType("basicsr.models"), module):
        monkeypatch.setitem(sys.modules, name.__name__, name)
    scope: dict[str, Any] = {}
    exec(printed("old_basicsr"), scope)
    opt = {"rank": 0, "path": {"models": str(tmp_path)}}
    model, l1 = scope["PCLRestorationModel"](opt), Restoration(opt)
    for trained in (model, l1):
        trained.optimize_parameters()
    assert not torch.equal(model.net_g.weight.grad, l1.net_g.weight.grad)
    assert model.cri_pcl.embedding.blocks[0].norm.num_batches_tracked == 1
    model.save(epoch=1, current_iter=4)
    resumed = scope["PCLRestorationModel"](opt)
    resumed.resume_training({"iter": 4})
    assert (model.saved, resumed.resumed) == ((1, 4), {"iter": 4})
    states = (one.cri_pcl.embedding.state_dict() for one in (model, resumed))
    assert all(torch.equal(*pair) for pair in zip(*(state.values() for state in states), strict=True))


KAIR = """
class ModelPlain:
    device = 'cpu'

    def __init__(self, opt):
        self.opt, self.save_dir = opt, opt['path']['models']
        self.netG = torch.nn.Conv2d(3, 3, 3, padding=1)
        # kair_loss

    def optimize_parameters(self, hr):
        self.H, self.E = hr, self.netG(hr)
        G_loss = 0 * self.E.sum()
        # kair_step
        G_loss.backward()

    def save(self, iter_label):
        # kair_save
"""
DRN = """
class Trainer:
    def __init__(self, opt):
        self.netG = torch.nn.Conv2d(3, 3, 3, padding=1)
        # drn_loss

    def train(self, hr):
        sr = [hr[:, :, ::2, ::2], self.netG(hr)]
        loss_primary = 0 * sr[-1].sum()
        # drn_step
        loss_primary.backward()
"""


def with_printed_lines(text: str) -> dict[str, Any]:
    """A stand-in with the blocks of the docs in the places that the docs name."""

    def block(match: re.Match[str]) -> str:
        return textwrap.indent(printed(match[2]), match[1])

    scope: dict[str, Any] = {"torch": torch}
    exec(re.sub(r"^( +)# (\w+)$", block, text, flags=re.MULTILINE), scope)
    return scope


def test_the_docs_lines_for_kair_and_drn_train_and_those_for_kair_save_and_resume(tmp_path: Path) -> None:
    opt = {"netG": {"out_nc": 3}, "path": {"models": str(tmp_path), "pretrained_netG": None}}
    kair = with_printed_lines(KAIR)["ModelPlain"]
    drn = with_printed_lines(DRN)["Trainer"]
    model, trainer = kair(opt), drn(SimpleNamespace(rgb_range=255, n_colors=3, cpu=True))
    model.optimize_parameters(torch.rand(2, 3, 32, 32))
    trainer.train(torch.rand(2, 3, 32, 32) * 255)
    for trained in (model, trainer):
        assert trained.netG.weight.grad.abs().max() > 0
        assert trained.pcl.embedding.blocks[0].norm.num_batches_tracked == 1
    model.save(5)
    opt["path"]["pretrained_netG"] = f"{tmp_path}/5_G.pth"
    assert kair(opt).pcl.embedding.blocks[0].norm.num_batches_tracked == 1
