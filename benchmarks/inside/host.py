"""Makes this process the ComfyUI that ``main.py`` would make it, up to but not including custom nodes and the server.

Imported by the scripts beside it, which run with ComfyUI's folder as their working directory.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Callable
from typing import Any, TextIO

loop = asyncio.new_event_loop()


def serve(answer: Callable[..., Any], answers: TextIO) -> None:
    """Answer each line of stdin, a JSON object of arguments, with one line of JSON, until stdin ends."""
    for line in sys.stdin:
        answers.write(json.dumps(answer(**json.loads(line))) + "\n")
        answers.flush()


def start() -> TextIO:
    """Load ComfyUI.

    Returns:
        the stream for answers; ``sys.stdout`` goes to stderr, for ComfyUI prints there.
    """
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path[0] = os.getcwd()
    import main  # noqa: F401  parses the command line and imports all that the server needs

    asyncio.set_event_loop(loop)
    import server

    import nodes

    server.PromptServer(loop)
    loop.run_until_complete(nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False))
    return answers


def load_pack(folder: str) -> None:
    """Load a custom node pack by ComfyUI's own function."""
    import nodes

    if not loop.run_until_complete(nodes.load_custom_node(folder)):
        raise RuntimeError(f"ComfyUI cannot load {folder}")


def module_name(folder: str) -> str:
    """The name under which ComfyUI imports a pack."""
    return folder.replace(".", "_x_")
