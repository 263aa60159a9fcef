"""A stand-in for the loss of EDSR-PyTorch and its family: its call conventions, not its code."""

import textwrap
from importlib import import_module
from types import SimpleNamespace

import torch
from torch import Tensor, nn

CHAIN = """
if loss_type == 'L1':
    loss_function = nn.L1Loss()
elif loss_type == 'MSE':
    loss_function = nn.MSELoss()
"""


class Loss(nn.Module):
    """Builds the terms of `args.loss`, such as `1*L1+1*PCL`, with `branch` at the end of the if/elif chain.

    As there, a name that no branch knows silently takes the term before it.
    """

    def __init__(self, args: SimpleNamespace, branch: str) -> None:
        super().__init__()
        self.loss_module = nn.ModuleList()
        self.weighted: list[tuple[float, str, nn.Module]] = []
        chain = compile(CHAIN.strip() + "\n" + textwrap.dedent(branch).strip() + "\n", "chain", "exec")
        scope = {"args": args, "nn": nn, "import_module": import_module}
        for term in args.loss.split("+"):
            weight, scope["loss_type"] = term.split("*")
            exec(chain, scope)
            self.weighted.append((float(weight), scope["loss_type"], scope["loss_function"]))
            self.loss_module.append(scope["loss_function"])

    @property
    def terms(self) -> dict[str, nn.Module]:
        return {name: function for _, name, function in self.weighted}

    def forward(self, sr: Tensor, hr: Tensor) -> Tensor:
        return torch.stack([weight * function(sr, hr) for weight, _, function in self.weighted]).sum()
