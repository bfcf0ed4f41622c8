"""What the pack's own code may not do, read from its source: it runs inside other people's ComfyUI."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from package.node_ids import node_ids

ROOT = Path(__file__).resolve().parents[2]
PACK_FILES = sorted([ROOT / "__init__.py", *ROOT.glob("nodes/*.py"), *ROOT.glob("latent_encoder/*.py")])
CORE_FILES = [path for path in PACK_FILES if path.parent.name == "latent_encoder"]

# Processes, sockets and HTTP are no business of the pack; `torch.load` has weights_only, pickle has nothing.
FORBIDDEN_MODULES = {
    "aiohttp",
    "httpx",
    "http",
    "marshal",
    "multiprocessing",
    "pickle",
    "pip",
    "requests",
    "socket",
    "subprocess",
    "urllib",
}
FORBIDDEN_NAMES = {"eval", "exec", "__import__"}
FORBIDDEN_OF_OS = {"environ", "getenv", "putenv", "system", "popen", "fork"}
COMFYUI_MODULES = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "folder_paths", "nodes", "server"}


def imported(tree: ast.AST) -> Iterator[str]:
    """The top-level names of all absolute imports."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0]


def relative_modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield node.module or ""


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", PACK_FILES, ids=name_of)
def test_it_starts_nothing_and_calls_nobody(path: Path) -> None:
    tree = parse(path)
    assert FORBIDDEN_MODULES & set(imported(tree)) == set()
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert FORBIDDEN_NAMES & names == set()
    of_os = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os"
    }
    assert FORBIDDEN_OF_OS & of_os == set()


@pytest.mark.parametrize("path", PACK_FILES, ids=name_of)
def test_it_imports_its_own_modules_relatively(path: Path) -> None:
    # ComfyUI imports the folder under a name made from its path: an absolute import finds nothing, or another pack.
    tree = parse(path)
    assert "latent_encoder" not in set(imported(tree))
    assert [module for module in relative_modules(tree) if module.partition(".")[0] == "service"] == []


@pytest.mark.parametrize("path", CORE_FILES, ids=name_of)
def test_the_core_does_not_know_comfyui(path: Path) -> None:
    assert COMFYUI_MODULES & set(imported(parse(path))) == set()


def test_the_managers_scanner_finds_every_node() -> None:
    listed = [
        [element.id for element in node.value.elts if isinstance(element, ast.Name)]
        for node in ast.walk(parse(ROOT / "nodes" / "__init__.py"))
        if isinstance(node, ast.Return) and isinstance(node.value, ast.List)
    ]
    assert len(listed) == 1
    assert node_ids() == {name: name for name in listed[0]}


def test_the_door_opens_without_comfyui() -> None:
    before = set(sys.modules)
    spec = importlib.util.spec_from_file_location("a_custom_node_pack", ROOT / "__init__.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert callable(module.comfy_entrypoint)
    # Its presence, even empty, would make ComfyUI skip comfy_entrypoint.
    assert not hasattr(module, "NODE_CLASS_MAPPINGS")
    assert set(sys.modules) == before
