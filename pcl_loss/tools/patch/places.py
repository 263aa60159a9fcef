"""Where our lines go in a file, found in its text: each function takes a file's text and returns it with our lines.

What they do not recognise they refuse with a ValueError that has the reason.
"""

from __future__ import annotations

import re

MARKER = "# pcl_loss"  # ends each line of ours; `--revert` goes by it
OURS = r"^[^#\n]*(?:import |from |import_module\(['\"])pcl_loss\."  # code that imports a module of ours

# `for loss in args.loss.split('+'):` and `weight, loss_type = loss.split('*')`
_TERMS = re.compile(
    r"""^[ \t]+for\ \w+\ in\ (?P<options>\w+)\.loss\.split\(['"]\+['"]\):\s+
        \w+,\ *(?P<name>\w+)\ =\ \w+\.split\(['"]\*['"]\)""",
    re.MULTILINE | re.VERBOSE,
)
# The plain comparisons that the if/elif chain begins with, so that no branch before ours takes its name; the first one
# assigns the variable that all assign. {name} is the variable with a term's name.
_CHAIN = r"""
    ^(?P<indent>[ \t]+) if\ {name}\ ==\ ['"]\w+['"]:[ \t]*(?:\#.*)?\r?\n
     (?P<inner>(?P=indent)[ \t]+) (?P<target>\w+)\ =\ .*\n
    (?: (?P=indent) elif\ {name}\ ==\ ['"]\w+['"]:[ \t]*(?:\#.*)?\r?\n
        (?: (?:[ \t]*\r?\n)* (?P=indent)[ \t]+\S.*\n )+
    )*
    (?! (?:[ \t]*(?:\#.*)?\r?\n)* (?P=indent)[ \t]+[^\s\#] )  # here ends the last body
"""
# `self.loss.append({'type': loss_type, ...})`, behind the chain
_ENTRY = r"""^{indent}(?P<terms>self\.\w+)\.append\(\s*\{{[^{{}}]*['"]type['"]: {name}\b[^{{}}]*\}}\s*\)[ \t]*\r?\n"""


def into_the_losses(text: str) -> str:
    """EDSR-PyTorch's `loss/__init__.py`: the branch and, where the log has a column DIS, the entry that fills it."""
    if re.search(r"\bisinstance\(\w+, *\(?(?:list|tuple)\b", text):
        raise ValueError("its losses are called with a list of SR images, PCL takes one batch")
    if re.search(r"['\"]pcl['\"]", text, re.IGNORECASE):
        raise ValueError("it already knows another loss of the name PCL")
    terms = _TERMS.search(text)
    name = terms["name"] if terms else ""
    chains = list(re.finditer(_CHAIN.replace("{name}", name), text, re.MULTILINE | re.VERBOSE))
    if terms is None or len(chains) != 1:
        raise ValueError(
            f"{len(chains)} if/elif chains were found that turn the names of --loss into modules, and begin with "
            "comparisons such as `loss_type == 'L1'`; one is needed"
        )
    (chain,) = chains
    indent, step = chain["indent"], chain["inner"].removeprefix(chain["indent"])
    importer = "import_module"
    if not re.search(rf"^from importlib import .*\b{importer}\b", text, re.MULTILINE):
        importer = f"__import__('importlib').{importer}"
    # In any case: for a name that no branch knows, such as `pcl`, those codebases take the term before it again.
    test = f"if {name}.upper() == 'PCL':"
    build = f"    {chain['target']} = {importer}('pcl_loss.edsr_plugin').PCL({terms['options']})"
    entry = re.compile(_ENTRY.format(indent=indent, name=name), re.MULTILINE).search(text, chain.end())
    if entry and "'DIS'" in text:
        append = f"    {entry['terms']}.append(dict(type='DIS', weight=1, function=None))"
        text = _insert(text, entry.end(), (test, append), indent, step)
    return _insert(text, chain.end(), (f"el{test}", build), indent, step)


def into_the_trainer(text: str) -> str:
    """EDSR-PyTorch's `trainer.py`: the lines that hand LR to the loss, before the loss is called."""
    calls = list(re.finditer(r"^(?P<indent>[ \t]+)\w+ = self\.loss\((?P<sr>\w+), *\w+\)", text, re.MULTILINE))
    if len(calls) != 1:
        raise ValueError(f"{len(calls)} lines of the shape `loss = self.loss(sr, hr)` were found, one is needed")
    (call,) = calls
    model = rf"^{call['indent']}{call['sr']}\b.* = self\.model\((\w+)"
    made_of = re.findall(model, text[: call.start()], re.MULTILINE)
    if not made_of:
        raise ValueError("before the call of the loss no line of the shape `sr = self.model(lr, ...)` was found")
    lines = ("from pcl_loss.edsr_plugin import set_lr", f"set_lr(self.loss, {made_of[-1]})")
    return _insert(text, call.start(), lines, call["indent"])


def into_basicsr(text: str) -> str:
    """BasicSR's `train.py` or `test.py`: what registers us, before the first import of basicsr takes parse_options."""
    if not text:
        return text  # some copies have no test.py
    first = re.search(r"^(?:import|from) basicsr\b", text, re.MULTILINE)
    if first is None:
        raise ValueError("no import of basicsr was found in it")
    lines = (
        "if __name__ in ('__main__', '__mp_main__'):",  # importing basicsr imports this file, and must not come back
        "    import pcl_loss.basicsr_plugin",
        "    pcl_loss.basicsr_plugin.register()",
    )
    return _insert(text, first.start(), lines)


def into_trainner(text: str) -> str:
    """traiNNer-redux's `losses/pcl_loss.py`, which is ours alone."""
    lines = (
        "from pcl_loss.trainner_plugin import PCLLoss",
        "from traiNNer.utils.registry import LOSS_REGISTRY",
        "LOSS_REGISTRY.register(PCLLoss)",
    )
    if text:
        raise ValueError("it is another file of that name")
    return _insert(text, 0, lines)


def _insert(text: str, at: int, lines: tuple[str, ...], indent: str = "", step: str = "    ") -> str:
    """Whole lines at `at`, the start of a line, with the ends of the text's lines; `step` stands for four spaces."""
    end = "\r\n" if "\r\n" in text else "\n"
    ours = "".join(f"{indent}{line.replace('    ', step)}  {MARKER}{end}" for line in lines)
    return text[:at] + ours + text[at:]
