# SPDX-License-Identifier: Apache-2.0
"""Who may import whom (DESIGN.md), read from the source with ast: nothing is imported, so a wrong arrow cannot hide."""

import ast
from collections.abc import Iterator
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
    return {name.split(".")[0] for name in imports(parsed(path))}


@cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


SOURCES = sources()
every_file = pytest.mark.parametrize("name", [name for name, _ in SOURCES])
PATHS = dict(SOURCES)


def test_the_files_are_found() -> None:
    assert {"common/study.py", "client/app.py", "server/app.py", "simulations/cli.py", "tests/test_imports.py"} <= set(PATHS)


@every_file
def test_arrows_point_the_right_way(name: str) -> None:
    package = name.split("/")[0]
    if package != "tests":
        assert tops(PATHS[name]) & set(OURS) <= MAY_IMPORT[package]


@every_file
def test_only_the_simulation_sees_both_ends(name: str) -> None:
    if not name.startswith(SEES_BOTH_ENDS):
        assert not {"client", "server"} <= tops(PATHS[name])


@every_file
def test_only_flower_compat_touches_flower_internals(name: str) -> None:
    if name.startswith((COMPATIBILITY, f"tests/{COMPATIBILITY}")):
        return
    used = {name for name in imports(parsed(PATHS[name])) if name.split(".")[0] == "flwr"}
    assert {module for module in used if not is_public(module)} == set()


def is_public(module: str) -> bool:
    """Whether `module` is a public module of Flower or a name in one."""
    return module in PUBLIC_FLOWER or module.rpartition(".")[0] in PUBLIC_FLOWER


@every_file
def test_heavy_libraries_are_imported_where_they_are_used(name: str) -> None:
    if not name.startswith("tests/"):
        assert import_time(parsed(PATHS[name])) & ONLY_WHERE_USED == set()


@every_file
def test_every_file_names_its_licence_first(name: str) -> None:
    assert PATHS[name].read_text(encoding="utf-8").startswith("# SPDX-License-Identifier: Apache-2.0\n")


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
