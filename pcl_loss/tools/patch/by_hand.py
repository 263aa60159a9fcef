"""What works in codebases that are not patched, in words and lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path


class Refusal(ValueError):
    """A codebase cannot be patched; `by_hand` says what works there instead."""

    def __init__(self, reason: str, by_hand: str) -> None:
        super().__init__(reason)
        self.by_hand = by_hand


def what_works_in(root: Path) -> str:
    """For a folder in which nothing can be patched."""
    for find, text in _KNOWN:
        for file in find(root):
            return text.format(file=file.relative_to(root).as_posix())
    return _LOOP


def for_a_foreign_basicsr(*, shadowed: bool) -> str:
    """For a BasicSR without a registry; `shadowed` if an installed BasicSR is imported in its place."""
    text = _OWN_MODEL
    if shadowed:
        text += (
            "`PCLCriterion` does without BasicSR: keep the installed one out of that environment "
            "(`pip uninstall basicsr`), or nothing of this codebase is imported.\n"
        )
    return text


def for_lists_of_images(test: str, build: str) -> str:
    """For a codebase of the EDSR family whose networks return a list of SR images; `test` and `build`: our branch."""
    return f"""To insert it by hand: in loss/__init__.py, where the names of --loss become modules, as one more branch,

    {test}
        {build}

and in forward(), hand it the one batch that is compared with HR, for example the first:

    loss = l['function'](sr[0] if l['type'] == 'PCL' else sr, hr)
"""


def _with_text(pattern: str, text: str) -> Callable[[Path], Iterator[Path]]:
    """Finds the files of a folder by their path and by what stands in them."""

    def find(root: Path) -> Iterator[Path]:
        for file in sorted(root.glob(pattern)):
            if file.is_file() and re.search(text, file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE):
                yield file

    return find


_LOOP = """`PCLCriterion` works in any loop. Where the losses are built, and where they are added up:

    from pcl_loss import PCLCriterion

    pcl = PCLCriterion().to(device)  # images in [0, 1]; PCLCriterion(data_range=255.0) for 0-255
    loss = loss + pcl(sr, hr)  # this call also trains its discriminator

Save pcl.state_dict() with the network, and load it when the training is resumed.
"""

_OWN_MODEL = """`PCLCriterion` works there. In the model's class in basicsr/models/, where the losses are built, where
they are added up (behind the pixel loss), where the network is saved, and where a training is resumed:

    from pcl_loss import PCLCriterion

    self.cri_pcl = PCLCriterion().to(self.device)
    l_pix = l_pix + self.cri_pcl(self.output, self.gt)  # this call also trains its discriminator
    torch.save(self.cri_pcl.state_dict(), os.path.join(self.opt['path']['models'], f'pcl_{current_iter}.pth'))
    self.cri_pcl.load_state_dict(torch.load(FILE, map_location=self.device))

"""

_PLUGIN = """{file} is a plugin of an installed BasicSR: nothing has to be inserted. Keep the YAML's model_type, put

    perceptual_opt: {{type: PCLPerceptualLoss, loss_weight: 1.0}}

under train:, and run `pcl-loss run {file} -opt FILE.yml`. Or put these two lines at the very top of {file}:

    import pcl_loss.basicsr_plugin
    pcl_loss.basicsr_plugin.register()
"""

_KAIR = """{file} is KAIR's, and takes these lines. In define_loss, at its end:

    from pcl_loss import PCLCriterion
    self.pcl = PCLCriterion(num_in_ch=self.opt['netG']['out_nc']).to(self.device)
    path = (self.opt['path']['pretrained_netG'] or '').replace('_G.pth', '_PCL.pth')
    if os.path.isfile(path): self.pcl.load_state_dict(torch.load(path, map_location=self.device))

in optimize_parameters, before G_loss.backward():

    G_loss = G_loss + self.pcl(self.E, self.H)

in save, at its end:

    torch.save(self.pcl.state_dict(), os.path.join(self.save_dir, f'{{iter_label}}_PCL.pth'))

and `import os` at the top.
"""

_DRN = """{file} builds one loss for SR images of every scale and for LR images too: a branch there would train PCL on
all of them. Add it to the largest SR image alone. In trainer.py, at the end of __init__:

    from pcl_loss import PCLCriterion
    self.pcl = PCLCriterion(data_range=opt.rgb_range, num_in_ch=opt.n_colors)
    self.pcl.to('cpu' if opt.cpu else 'cuda')

and in train(), behind `loss_primary = self.loss(sr[-1], hr)`:

    loss_primary = loss_primary + self.pcl(sr[-1], hr)

Save self.pcl.state_dict() with the network, and load it when the training is resumed.
"""

_TRAIN_PIPELINE = r"^\s*from basicsr\.train import train_pipeline"

# The first that fits counts.
_KNOWN = (
    (_with_text("train.py", _TRAIN_PIPELINE), _PLUGIN),
    (_with_text("*/train.py", _TRAIN_PIPELINE), _PLUGIN),
    (_with_text("models/model_plain.py", r"^class ModelPlain\b"), _KAIR),
    (_with_text("loss.py", r"loss\.split\('\+'\)"), _DRN),
)
