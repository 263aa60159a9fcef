"""Where a fork of EDSR-PyTorch makes a loss of a name: an if/elif chain in a loop of a class's __init__."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Chain:
    """The chain in which the name of a term of --loss becomes a module."""

    owner: ast.ClassDef
    init: ast.FunctionDef
    loop: ast.For
    branches: list[ast.If]  # the `if` and each `elif`
    name: str  # of the variable that holds the term's name
    target: str  # the variable that the branches assign

    def last_comparison(self) -> ast.If:
        """The last of the plain comparisons that the chain begins with; what follows may look for part of a name."""
        last = self.branches[0]
        for branch in self.branches[1:]:
            match branch.test:
                case ast.Compare(left=ast.Name(), ops=[ast.Eq(), *_]):
                    last = branch
                case _:
                    break
        return last

    def taken_before(self, last: ast.If, names: Iterable[str]) -> ast.If | None:
        """The first branch up to `last` that one of these names takes, or may take."""
        for branch in self.branches[: self.branches.index(last) + 1]:
            if any(self._may_take(branch.test, name) for name in names):
                return branch
        return None

    def _may_take(self, test: ast.expr, name: str) -> bool:
        code = compile(ast.Expression(test), "test", "eval")
        try:
            return bool(eval(code, {"__builtins__": {}}, {self.name: name}))
        except Exception:
            # It looks at more than the name.
            return True

    def options(self) -> str:
        """The parameter of `__init__` that holds the codebase's options, of which it splits `.loss` into terms."""
        parameters = [argument.arg for argument in self.init.args.args[1:]]
        for node in ast.walk(self.loop.iter):
            match node:
                case ast.Attribute(value=ast.Name(id=name)) if name in parameters:
                    return name
        if "args" in parameters:
            return "args"
        raise ValueError("the parameter of __init__ that holds the options was not found")

    def entry(self) -> tuple[ast.stmt, str] | None:
        """The statement behind the chain that appends the term as a dict, and what it appends to.

        None also where the class has no column for a discriminator's loss in its log.
        """
        if not any("DIS" in strings(node) for node in self.owner.body if node is not self.init):
            return None
        for statement in self.loop.body[self.loop.body.index(self.branches[0]) + 1 :]:
            match statement:
                case ast.Expr(ast.Call(func=ast.Attribute(terms, "append"), args=[ast.Dict() as term])):
                    if {"type", "weight", "function"} <= strings(term):
                        return statement, ast.unparse(terms)
        return None


def find_chain(tree: ast.Module) -> Chain:
    """The only such chain; raises `ValueError` if there is none or another one."""
    chains = list(_chains(tree))
    if len(chains) != 1:
        raise ValueError(
            f"{'more than one' if chains else 'no'} if/elif chain was found that turns the names of --loss into "
            "modules, in a loop of a class's __init__"
        )
    return chains[0]


def strings(node: ast.AST) -> set[str]:
    """All texts below a node."""
    return {n.value for n in ast.walk(node) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def _chains(tree: ast.Module) -> Iterator[Chain]:
    for owner in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        for init in (node for node in owner.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"):
            for loop in (node for node in ast.walk(init) if isinstance(node, ast.For)):
                for first in (node for node in loop.body if isinstance(node, ast.If)):
                    branches = list(_branches(first))
                    names = set.intersection(*(_compared(branch.test) for branch in branches))
                    targets = set.intersection(*(_assigned(branch.body) for branch in branches))
                    if len(names) == 1 and len(targets) == 1:
                        yield Chain(owner, init, loop, branches, *names, *targets)


def _branches(first: ast.If) -> Iterator[ast.If]:
    """The `if` and each `elif`; an `if` inside an `else` stands further to the right."""
    yield first
    match first.orelse:
        case [ast.If() as following] if following.col_offset == first.col_offset:
            yield from _branches(following)


def _compared(test: ast.expr) -> set[str]:
    """The variables in a test that looks at a string."""
    return {node.id for node in ast.walk(test) if isinstance(node, ast.Name)} if strings(test) else set()


def _assigned(body: list[ast.stmt]) -> set[str]:
    """The variables to which a block assigns what a call returns."""
    return {
        target.id
        for statement in body
        if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Call)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }
