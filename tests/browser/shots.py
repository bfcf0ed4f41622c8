"""Pictures of the editor for README, help pages and templates.

Every run takes them; with ``LATENT_ENCODER_UPDATE_SCREENSHOTS=1`` those of the newest ComfyUI go into the repository.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from browser.editor import Editor
from comfyui.hosts import REPOSITORY, find_hosts
from comfyui.servers import Server
from PIL import Image

MARGIN = 12  # pixels around a node
LARGEST = 60_000  # bytes of a help page's picture: they are in node.zip

BOX = """id => {
    const { canvas, graph } = window.app, { scale, offset } = canvas.ds, { pos, size } = graph.getNodeById(id);
    const area = canvas.canvas.getBoundingClientRect(), bar = LiteGraph.NODE_TITLE_HEIGHT;
    return [area.left + (pos[0] + offset[0]) * scale, area.top + (pos[1] - bar + offset[1]) * scale,
            size[0] * scale, (size[1] + bar) * scale];
}"""


def are_wanted(server: Server) -> bool:
    """Whether this server's pictures shall replace those in the repository."""
    return os.environ.get("LATENT_ENCODER_UPDATE_SCREENSHOTS") == "1" and server.host == find_hosts()[0]


def take_page(editor: Editor, server: Server, name: str) -> None:
    """The whole page, as ``docs/images/<name>.jpg``."""
    _keep(editor.page.screenshot(), server, REPOSITORY / "docs" / "images" / f"{name}.jpg")


def take_node(editor: Editor, server: Server, kind: str) -> None:
    """The node that is in view, as its help page's picture, ``web/docs/<kind>.jpg``."""
    editor.page.wait_for_timeout(4000)  # 0.33 shows for a while that the run is done
    x, y, width, height = editor.page.evaluate(BOX, editor.node_id(kind))
    clip = {"x": x - MARGIN, "y": y - MARGIN, "width": width + 2 * MARGIN, "height": height + 2 * MARGIN}
    _keep(editor.page.screenshot(clip=clip), server, REPOSITORY / "web" / "docs" / f"{kind}.jpg")


def _keep(png: bytes, server: Server, path: Path) -> None:
    shot = Image.open(io.BytesIO(png)).convert("RGB")
    assert np.asarray(shot).std() > 5, "there is something to see"
    data = io.BytesIO()
    shot.save(data, "JPEG", quality=82, optimize=True, progressive=True)
    if path.parent.name == "docs":
        assert len(data.getvalue()) < LARGEST
    if are_wanted(server):
        path.write_bytes(data.getvalue())
