# SPDX-License-Identifier: Apache-2.0
"""Whether tests that are named somewhere exist, by reading the source."""

import ast
from collections.abc import Iterable
from pathlib import Path


def missing_tests(node_ids: Iterable[str], root: Path) -> list[str]:
    """Those of `node_ids` (file, or file::function, parameters in brackets are ignored) that are not in the checkout `root`."""
    return [node_id for node_id in node_ids if not _exists(node_id, root)]


def _exists(node_id: str, root: Path) -> bool:
    file, _, name = node_id.partition("::")
    path = root / file
    if not path.is_file() or not path.name.startswith("test_"):
        return False
    names = {node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.FunctionDef)}
    return not name or name.split("[")[0] in names | _state_machines(path)


def _state_machines(path: Path) -> set[str]:
    """Names of `X = Machine.TestCase`, as hypothesis makes them."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {target.id for node in tree.body if isinstance(node, ast.Assign) for target in node.targets if isinstance(target, ast.Name)}
