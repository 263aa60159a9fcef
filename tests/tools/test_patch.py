"""`pcl-loss patch` on stand-ins of the codebases: their call conventions in our words, with other names."""

import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from pcl_loss import PCLCriterion, cli
from pcl_loss.edsr_plugin import PCL

ROOT = Path(__file__).parents[2]

LOSS = """\
# The terms of --loss
from importlib import import_module

import torch
from torch import nn


class Criteria(nn.Module):
    def __init__(self, options):
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
TRAINNER = {"traiNNer/losses/__init__.py": ""}
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


def ours(file: Path) -> list[str]:
    return [
        line for line in file.read_bytes().decode().splitlines(keepends=True) if line.rstrip().endswith("# pcl_loss")
    ]


@pytest.mark.parametrize(("bom", "indent", "end"), [("", "    ", "\n"), ("\ufeff", "\t", "\r\n")])
def test_inserted_lines_have_the_files_ends_and_indentation_and_revert(
    codebase: Path, end: str, indent: str, bom: str
) -> None:
    for name, text in EDSR.items():
        changed = re.sub("^(    )+", lambda m: indent * (len(m[0]) // 4), text, flags=re.MULTILINE)
        (codebase / name).write_bytes(f"{bom}{changed}# naïve\n".replace("\n", end).encode())
    before = tree(codebase)
    run(codebase, "--lr-negative")
    after = tree(codebase)

    def line(depth: int, code: str) -> str:
        return f"{indent * depth}{code}  # pcl_loss{end}"

    assert ours(codebase / "src/loss/__init__.py") == [
        line(3, "elif kind.upper() == 'PCL':"),
        line(4, "built = import_module('pcl_loss.edsr_plugin').PCL(options)"),
        line(3, "if kind.upper() == 'PCL':"),
        line(4, "self.terms.append(dict(type='DIS', weight=1, function=None))"),
    ]
    assert ours(codebase / "src/trainer.py") == [
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
    loss = scope["Criteria"](SimpleNamespace(loss=f"1*L1+1*{name}", rgb_range=255, n_colors=3, scale=[2, 4], lr=1e-4))
    assert isinstance(loss.kept[1], PCL)
    assert capsys.readouterr().out.count("[pcl_loss]") == 1

    model = torch.nn.Upsample(scale_factor=4, mode="bicubic")
    weight = torch.ones((), requires_grad=True)
    batch = torch.rand(2, 3, 16, 16) * 255, torch.rand(2, 3, 64, 64) * 255
    # With several scales, LR could not have been made of HR.
    scope["Training"]([batch], lambda x, scale: model(x) * weight, loss).train()
    assert loss.columns.keys() == {"L1", name, "DIS"}
    assert min(loss.columns.values()) > 0
    assert weight.grad is not None


@pytest.mark.parametrize("files", [EDSR, TRAINNER])
def test_a_dry_run_prints_the_diff_for_git_and_changes_nothing(
    tmp_path: Path, files: dict[str, str], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    folder = write(tmp_path / "codebase", files)
    trees, diffs = [tree(folder)], []
    for flags in ((), ("--revert",)):
        capfdbinary.readouterr()
        assert run(folder, "--dry-run", *flags) == 0
        diffs.append(capfdbinary.readouterr().out)
        assert tree(folder) == trees[-1]
        assert run(folder, *flags) == 0
        trees.append(tree(folder))
    assert trees[0] == trees[2] != trees[1]
    env = os.environ | {"GIT_CEILING_DIRECTORIES": str(tmp_path)}
    for diff, wanted in zip(diffs, trees[1:], strict=True):
        subprocess.run(["git", "apply", "--unidiff-zero"], input=diff, cwd=folder, env=env, check=True)
        assert tree(folder) == wanted


def test_without_import_module_or_a_column_for_a_discriminator_the_branch_alone_is_inserted(codebase: Path) -> None:
    text = LOSS.replace("from importlib import import_module\n", "").replace("'DIS'", "'other'")
    write(codebase, {"src/loss/__init__.py": text})
    run(codebase)
    _, build = ours(codebase / "src/loss/__init__.py")
    assert "built = __import__('importlib').import_module('pcl_loss.edsr_plugin').PCL(options)" in build


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"src/loss/__init__.py": LOSS + "print 'done'\n"}, "Missing parentheses"),
        # It would be taken for PCL.
        ({"src/loss/__init__.py": LOSS.replace("kind == 'L2'", "'l' in kind.lower()")}, "0 if/elif chains"),
        ({"src/loss/__init__.py": LOSS.replace("'L2'", "'PCL'")}, "already knows another loss of the name PCL"),
        ({"src/loss/__init__.py": LOSS.replace("{}, 0", "{}, isinstance(out, list)")}, "a list of SR images"),
        (EDSR | {"src/trainer.py": TRAINER.replace("(out, large)", "(large)")}, "0 lines of the shape"),
        (WITH_REGISTRY | {"basicsr/test.py": "import logging\n"}, "no import of basicsr"),
        (TRAINNER | {"traiNNer/losses/pcl_loss.py": "a = 1\n"}, "another file of that name"),
        ({"basicsr/train.py": BASICSR}, "no codebase that can be patched"),  # an old BasicSR
    ],
)
def test_what_is_not_recognised_is_refused_with_the_reason_and_left_alone(
    tmp_path: Path, files: dict[str, str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    message = refused(write(tmp_path, files), capsys, "--lr-negative")
    assert reason in message
    assert "othing was changed" in message


@pytest.mark.parametrize(
    ("script", "text"), [("train.py", BASICSR), ("own/train.py", "from basicsr.train import train_pipeline\n")]
)
def test_where_nothing_has_to_be_inserted_it_says_how_to_train(
    tmp_path: Path, script: str, text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = tree(write(tmp_path, WITH_REGISTRY | {script: text}))
    assert run(tmp_path) == 0
    assert f"pcl-loss run {script} -opt FILE.yml" in capsys.readouterr().out
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


def test_basicsr_knows_us_before_its_own_imports_but_only_when_run(tmp_path: Path) -> None:
    assert run(write(tmp_path, WITH_REGISTRY | {"basicsr/test.py": BASICSR})) == 0
    for name in ("train", "test"):
        text = (tmp_path / f"basicsr/{name}.py").read_text()
        assert text.index("import logging") < text.index("basicsr_plugin.register()") < text.index("from basicsr.data")
        (guard,) = re.findall(r"^if (.+):  # pcl_loss$", text, re.MULTILINE)
        assert eval(guard, {"__name__": "__main__"})
        assert not eval(guard, {"__name__": "basicsr.train"})


def printed(name: str) -> str:
    """The code block of docs/codebases.md behind `<!-- test: name -->`."""
    page = (ROOT / "docs/codebases.md").read_text()
    (block,) = re.findall(rf"<!-- test: {name} -->\n```python\n(.*?)```", page, re.DOTALL)
    return block


@pytest.mark.parametrize(
    ("files", "file", "block", "patches"),
    [
        (EDSR, "src/loss/__init__.py", "edsr", ["EDSR-PyTorch", "HAN", "RCAN"]),
        (EDSR, "src/trainer.py", "edsr_lr", []),
        (WITH_REGISTRY, "basicsr/train.py", "basicsr_top", ["BasicSR"]),
        (TRAINNER, "traiNNer/losses/pcl_loss.py", "trainner_file", []),
    ],
)
def test_the_docs_and_the_patches_have_the_lines_that_are_inserted(
    tmp_path: Path, files: dict[str, str], file: str, block: str, patches: list[str]
) -> None:
    names = {"kind": "loss_type", "built": "loss_function", "options": "args", "small": "lr", "terms": "loss"}
    write(tmp_path, {path: re.sub(r"\w+", lambda m: names.get(m[0], m[0]), text) for path, text in files.items()})
    run(tmp_path, *(["--lr-negative"] if files is EDSR else []))
    inserted = [line.rstrip() for line in ours(tmp_path / file)]
    lines = [line.strip() for line in printed(block).replace('"', "'").splitlines() if line]
    assert lines == [line.removesuffix("  # pcl_loss").strip() for line in inserted[: len(lines)]]
    for name in patches:
        head, _, body = (ROOT / f"patches/{name}.patch").read_text().partition("\n\n---")
        assert re.search(r"commit [0-9a-f]{40}\n", head)
        hunks = [line for line in body.splitlines()[1:] if not line.startswith(("--- a/", "+++ b/"))]
        assert [line[1:] for line in hunks if line[0] == "+"] == inserted * (2 if name == "BasicSR" else 1)
        assert all(re.match(r"@@ -\d+,0 \+\d+,\d+ @@$", line) for line in hunks if line[0] != "+")


@pytest.fixture(autouse=True)
def few_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcl_loss.PCLCriterion", partial(PCLCriterion, num_feat=2))


def num_updates(pcl: Any) -> int:
    """How often E_D was trained."""
    return int(pcl.embedding.blocks[0].norm.num_batches_tracked)


class RestorationModel:
    """The least that the docs' class for an old BasicSR stands on."""

    device = "cpu"

    def __init__(self, opt: dict[str, Any]) -> None:
        self.opt, self.sr = opt, torch.rand(2, 3, 32, 32, requires_grad=True)
        self.init_training_settings()

    def init_training_settings(self) -> None:
        self.cri_pix: Any = torch.nn.L1Loss()

    def save(self, epoch: int, current_iter: int) -> None: ...

    def resume_training(self, resume_state: dict[str, Any]) -> None: ...


def test_the_docs_model_for_an_old_basicsr_trains_saves_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module: Any = ModuleType("basicsr.models.image_restoration_model")
    module.ImageRestorationModel = RestorationModel
    for name in (ModuleType("basicsr"), ModuleType("basicsr.models"), module):
        monkeypatch.setitem(sys.modules, name.__name__, name)
    scope: dict[str, Any] = {}
    exec(printed("old_basicsr"), scope)
    model, resumed = (scope["PCLRestorationModel"]({"rank": 0, "path": {"models": str(tmp_path)}}) for _ in range(2))
    model.cri_pix(model.sr, torch.rand(2, 3, 32, 32)).backward()
    assert model.sr.grad.abs().max() > 0
    model.save(epoch=1, current_iter=4)
    resumed.resume_training({"iter": 4})
    assert num_updates(model.cri_pcl) == num_updates(resumed.cri_pcl) == 1


def test_the_docs_lines_for_kair_train_save_and_resume(tmp_path: Path) -> None:
    def built(file: str | None) -> Any:
        opt = {"netG": {"out_nc": 3}, "path": {"pretrained_netG": file}}
        model = SimpleNamespace(opt=opt, device="cpu", save_dir=str(tmp_path), H=torch.rand(2, 3, 32, 32))
        exec(printed("kair_loss"), {"self": model, "torch": torch})
        return model

    model, scope = built(None), {"G_loss": 0, "iter_label": 5, "torch": torch}
    model.E = torch.rand(2, 3, 32, 32, requires_grad=True)
    exec(printed("kair_step") + "G_loss.backward()", scope | {"self": model})
    assert model.E.grad.abs().max() > 0
    exec(printed("kair_save"), scope | {"self": model})
    assert num_updates(model.pcl) == num_updates(built(f"{tmp_path}/5_G.pth").pcl) == 1


def test_the_docs_lines_for_drn_train() -> None:
    trainer, options = SimpleNamespace(), SimpleNamespace(rgb_range=255, n_colors=3, cpu=True)
    hr = torch.rand(2, 3, 32, 32) * 255
    sr = [hr[:, :, ::2, ::2], (hr / 2).requires_grad_()]
    exec(printed("drn_loss"), {"self": trainer, "opt": options})
    exec(printed("drn_step") + "loss_primary.backward()", {"self": trainer, "sr": sr, "hr": hr, "loss_primary": 0})
    assert sr[1].grad.abs().max() > 0
    assert num_updates(trainer.pcl) == 1
