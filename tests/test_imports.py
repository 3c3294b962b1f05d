# SPDX-License-Identifier: Apache-2.0
"""Who may import whom (DESIGN.md), read from the source with ast: nothing is imported, so a wrong arrow cannot hide."""

import ast
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest

import common

ROOT = Path(common.__file__).resolve().parents[1]
TESTS = Path(__file__).resolve().parent
OURS = ("common", "client", "server", "simulations", "tests")
MAY_IMPORT = {
    "common": {"common"},
    "client": {"common", "client"},
    "server": {"common", "server"},
    "simulations": {"common", "client", "server", "simulations"},
}
PUBLIC_FLOWER = {"flwr.app", "flwr.serverapp", "flwr.serverapp.strategy", "flwr.clientapp", "flwr.clientapp.mod"}
COMPATIBILITY = "common/flower_compat/"
ONLY_WHERE_USED = {"torchvision", "sklearn", "matplotlib", "ray", "pydicom", "PIL"}
SEES_BOTH_ENDS = (
    "simulations/",
    "tests/simulations/",
    "tests/e2e/",
    "tests/bench/",
    "tests/support/",
    "tests/deploy/",
    "tests/test_docs.py",
)


def sources() -> list[tuple[str, Path]]:
    """Every source file with its name relative to the project."""
    found = [(path.relative_to(ROOT).as_posix(), path) for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py")]
    return sorted(found + [(f"tests/{path.relative_to(TESTS).as_posix()}", path) for path in TESTS.rglob("*.py")])


def imports(tree: ast.AST) -> Iterator[str]:
    """Modules that are imported anywhere in `tree`; `from a import b` gives both `a` and `a.b`, of which one is the module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the arrows"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def module_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Statements that run when the module is imported, without what only a type checker sees."""
    for node in tree.body:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from node.orelse
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def import_time(tree: ast.Module) -> set[str]:
    """Top packages that importing the module imports (the bodies of functions and methods do not count)."""
    names: set[str] = set()
    pending: list[ast.AST] = list(module_level(tree))
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            names.update(name.split(".")[0] for name in imports(ast.Module([node], [])))
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            pending.extend(ast.iter_child_nodes(node))
    return names


def tops(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported(path)}


@cache
def imported(path: Path) -> frozenset[str]:
    """All modules that a file imports somewhere."""
    return frozenset(imports(ast.parse(path.read_text(encoding="utf-8"))))


SOURCES = dict(sources())
PRODUCT = {name: path for name, path in SOURCES.items() if not name.startswith("tests/")}


def broken(names: Iterable[str], rule: Callable[[str], set[str]]) -> dict[str, set[str]]:
    """The files that break a rule, each with what it should not have."""
    return {name: found for name in names if (found := rule(name))}


def test_the_files_are_found() -> None:
    assert {"common/study.py", "client/app.py", "server/app.py", "simulations/cli.py", "tests/test_imports.py"} <= set(SOURCES)


def test_arrows_point_the_right_way() -> None:
    assert broken(PRODUCT, lambda name: tops(SOURCES[name]) & set(OURS) - MAY_IMPORT[name.split("/")[0]]) == {}


def test_only_the_simulation_sees_both_ends() -> None:
    others = [name for name in SOURCES if not name.startswith(SEES_BOTH_ENDS)]
    both = {"client", "server"}
    assert broken(others, lambda name: both if both <= tops(SOURCES[name]) else set()) == {}


def test_only_flower_compat_touches_flower_internals() -> None:
    others = [name for name in SOURCES if not name.startswith((COMPATIBILITY, f"tests/{COMPATIBILITY}"))]
    assert broken(others, internals) == {}


def internals(name: str) -> set[str]:
    """What a file imports of Flower that is not public."""
    return {module for module in imported(SOURCES[name]) if module.split(".")[0] == "flwr" and not is_public(module)}


def is_public(module: str) -> bool:
    """Whether `module` is a public module of Flower or a name in one."""
    return module in PUBLIC_FLOWER or module.rpartition(".")[0] in PUBLIC_FLOWER


def test_heavy_libraries_are_imported_where_they_are_used() -> None:
    assert broken(PRODUCT, lambda name: import_time(ast.parse(SOURCES[name].read_text(encoding="utf-8"))) & ONLY_WHERE_USED) == {}


def test_every_file_names_its_licence_first() -> None:
    licence = "# SPDX-License-Identifier: Apache-2.0\n"
    assert [name for name, path in SOURCES.items() if not path.read_text(encoding="utf-8").startswith(licence)] == []


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import ray", {"ray"}),
        ("def f():\n    import ray", set()),
        ("class A:\n    import ray", {"ray"}),
        ("class A:\n    def f(self):\n        import ray", set()),
        ("try:\n    import ray.train\nexcept ImportError:\n    pass", {"ray"}),
        ("if TYPE_CHECKING:\n    from ray import x", set()),
        ("if ready:\n    from ray.train import x", {"ray"}),
    ],
)
def test_the_reader_of_imports_itself(source: str, found: set[str]) -> None:
    assert import_time(ast.parse(source)) == found


@pytest.mark.parametrize(
    ("module", "public"),
    [
        ("flwr.app", True),
        ("flwr.app.Message", True),
        ("flwr.serverapp.strategy.FedAvg", True),
        ("flwr", False),
        ("flwr.common", False),
        ("flwr.server.Grid", False),
        ("flwr.app.message.Message", False),
        ("flwr.supercore.run", False),
    ],
)
def test_what_counts_as_public_flower(module: str, public: bool) -> None:
    assert is_public(module) == public
