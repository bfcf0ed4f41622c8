"""The nodes that ComfyUI-Manager's scanner finds in the pack's source, by which it knows what a workflow lacks."""

from __future__ import annotations

import ast

from package.tools import ROOT


def node_ids() -> dict[str, str]:
    """Class name to node id, by the scanner's rule: direct base ComfyNode, literal ``node_id``; "" for none."""
    found = {}
    for path in sorted(ROOT.glob("nodes/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith("ComfyNode") for base in node.bases):
                words = [word for call in ast.walk(node) if isinstance(call, ast.Call) for word in call.keywords]
                ids = [
                    word.value.value for word in words if word.arg == "node_id" and isinstance(word.value, ast.Constant)
                ]
                found[node.name] = ids[0] if ids else ""
    return found
