# SPDX-License-Identifier: GPL-2.0-or-later
"""Small faults put into the code by mutmut, to see which of them no test notices: docs/mutation.md.

Run as a program it chooses mutants, has mutmut try them and prints a table. mutmut loads it into pytest as a
plugin as well (pyproject.toml), where it has the tests run first that name the invariant which was changed.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import Phase, settings

MUTANTS = Path("mutants")
FIRST = "mockdev.multifd.budget.*"  # a few, quickly done: mutmut makes the mutants of all files on the way
KILLED = {1, 3, 24, 36, 152, 255}  # exit codes of tests that failed or ran out of time; below 0: by a signal
LEFT_OUT = 9
VARIANTS = {"flips", "laws"}  # tests, by file
AGAIN = {"feed", "orders", "check_inputs", "check_traces", "check_verdict"}
OF_ONE = {  # tests of one module's invariants
    "arcs": "states",
    "liveness": "liveness",
    "outcome": "outcome",
    "passports": "passport",
    "statuses": "statuses",
}
OF_REPORTS = {"feed", "judge", "reporting", "traces"}  # modules for which these count as well
_VARIANT = re.compile(r"(?P<of>x.*)__mutmut_(?P<number>\d+|orig)$")
_ID = re.compile(r"[A-Z]{2}-\d+")
_TEXTS = re.compile(r"(Finding|Error|_fail)$")  # calls whose first argument is a message


class Mutant(NamedTuple):
    """One of mutmut's. text: whether only a message differs."""

    module: str
    name: str
    text: bool


# -- which tests, in which order ---------------------------------------------------------------------


def pytest_configure() -> None:
    """The examples of `ci`; one that fails is enough, nobody reads how small it can be made."""
    phases = [phase for phase in Phase if phase not in (Phase.shrink, Phase.explain)]
    settings.register_profile("mutation", settings.get_profile("ci"), phases=phases, print_blob=False)
    settings.load_profile("mutation")


def pytest_collection_modifyitems(items: list[Any], config: Any) -> None:
    """Under mutmut: tests of the changed invariant first; those that seldom or never notice it are left out.

    A canary looks at the violations of its own severity and at nothing else; the tests of the feed, of orders
    and of inputs judge the same migrations once more, those of laws and flips thousands of variants.
    """
    module, _, rest = os.environ.get("MUTANT_UNDER_TEST", "").partition(".x")
    if not module.startswith("verifier.invariants."):
        return
    from verifier.invariants import INVARIANTS

    theirs = [i for i in INVARIANTS if i.__module__ == module]
    own = [i for i in theirs if i.__name__ == rest.strip("ǁ").partition("ǁ")[0]] or theirs or INVARIANTS
    ids = {i.passport.id for i in own}
    severities = {i.passport.severity for i in own}
    alike = {i.passport.id for i in INVARIANTS if i.passport.severity in severities}
    known = {i.passport.id for i in INVARIANTS}

    here = module.rpartition(".")[2]

    def rank(item: Any) -> int:
        named = set(_ID.findall(item.callspec.id)) & known if hasattr(item, "callspec") else set()
        if named & ids and theirs:
            return 0
        file = item.path.stem.removeprefix("test_").removeprefix("invariants_")
        if file == "canaries":
            return 1 if not named else 2 if named & alike else LEFT_OUT
        if (
            file in VARIANTS
            or (file in AGAIN and here not in OF_REPORTS)
            or (file in OF_ONE and OF_ONE[file] != here)
        ):
            return LEFT_OUT
        return 1 if file in ("edges", "journals", "judge") else 3

    ranks = {item.nodeid: rank(item) for item in items}
    config.hook.pytest_deselected(items=[item for item in items if ranks[item.nodeid] == LEFT_OUT])
    items[:] = sorted((i for i in items if ranks[i.nodeid] < LEFT_OUT), key=lambda item: ranks[item.nodeid])


# -- which mutants -----------------------------------------------------------------------------------


class _Silent(ast.NodeTransformer):
    """Takes the messages out of a function."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        name = ast.unparse(node.func)
        if name == "DeviceError":
            del node.args[1:]
        elif node.args and _TEXTS.search(name):
            node.args[0] = ast.Constant("")
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        self.generic_visit(node)
        if ast.unparse(node.targets[0]) == "self.unknown" and not _is_none(node.value):
            node.value = ast.Constant("")
        return node


class _Unread(ast.NodeTransformer):
    """Takes out the names that only a message had use for."""

    def __init__(self, read: set[str]) -> None:
        self.read = read

    def visit_Assign(self, node: ast.Assign) -> ast.AST | None:
        target = node.targets[0]
        return node if not isinstance(target, ast.Name) or target.id in self.read else ast.Pass()


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None


def _silent(function: ast.AST) -> str:
    silent = _Silent().visit(function)
    names = [node for node in ast.walk(silent) if isinstance(node, ast.Name)]
    return ast.dump(_Unread({name.id for name in names if isinstance(name.ctx, ast.Load)}).visit(silent))


def mutants_of(file: Path) -> Iterator[Mutant]:
    """The mutants that mutmut wrote into one file."""
    module = ".".join(file.relative_to(MUTANTS).with_suffix("").parts).removesuffix(".__init__")
    functions: dict[str, ast.AST] = {
        node.name: node
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef) and _VARIANT.match(node.name)
    }
    originals: dict[str, str] = {}
    for name, function in functions.items():
        found = _VARIANT.match(name)
        assert found is not None
        of = found["of"]
        function.name = of  # type: ignore[attr-defined]
        if found["number"] == "orig":
            originals[of] = _silent(function)
    for name, function in functions.items():
        of = name.rpartition("__mutmut_")[0]
        if not name.endswith("_orig"):
            yield Mutant(module, f"{module}.{name}", _silent(function) == originals[of])


def results_of(file: Path) -> dict[str, int | None]:
    """pytest's exit code by mutant."""
    codes: dict[str, int | None] = json.loads(Path(f"{file}.meta").read_text("utf-8"))["exit_code_by_key"]
    return codes


def mutmut(names: list[str]) -> None:
    """Have these tried."""
    subprocess.run([sys.executable, "-m", "mutmut", "run", "--max-children", "1", *names], check=True)


def main() -> None:
    """Choose, try, and say how it came out."""
    parser = argparse.ArgumentParser(prog="python -m tests.mutation", description=__doc__)
    parser.add_argument("modules", nargs="*", default=["*"], help="whose mutants, as mockdev.multifd.*")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="at most N of each file")
    parser.add_argument("--seed", type=int, default=1, help="which N")
    parser.add_argument("--survivors", action="store_true", help="only those that survived the last time")
    parser.add_argument("--new", action="store_true", help="only those that were not tried yet")
    parser.add_argument("--report", action="store_true", help="try none, say what is known")
    args = parser.parse_args()
    if not args.report:
        mutmut([FIRST])
    made: dict[Path, list[Mutant]] = {}
    for meta in sorted(MUTANTS.rglob("*.py.meta")):
        mutants = list(mutants_of(meta.with_suffix("")))
        if mutants and any(fnmatch(mutants[0].module, pattern) for pattern in args.modules):
            made[meta.with_suffix("")] = mutants
    chosen: dict[Path, list[str]] = {}
    for file, mutants in made.items():
        names = sorted(one.name for one in mutants if not one.text)
        if args.sample:
            names = random.Random(args.seed).sample(names, min(args.sample, len(names)))
        chosen[file] = names
    if not args.report:
        codes = {name: code for file in chosen for name, code in results_of(file).items()}
        names = [name for names in chosen.values() for name in names]
        if args.survivors:
            names = [name for name in names if codes[name] == 0]
        if args.new:
            names = [name for name in names if codes[name] is None]
        if names:
            mutmut(names)
    print("| file | made | text only | tried | killed | survived |\n|---|---|---|---|---|---|")
    alive = []
    for file, names in chosen.items():
        codes = {name: code for name, code in results_of(file).items() if name in names and code is not None}
        lost = sorted(name for name, code in codes.items() if code not in KILLED and (code or 0) >= 0)
        text = sum(one.text for one in made[file])
        row = (len(made[file]), text, len(codes), len(codes) - len(lost), len(lost))
        print(f"| {file.relative_to(MUTANTS)} | " + " | ".join(map(str, row)) + " |")
        alive += lost
    print("\nsurvived (mutmut show NAME):", *alive, sep="\n", file=sys.stderr)


if __name__ == "__main__":
    main()
