"""A node pack for the tests only: it makes odd LATENTs and compares them, and reports what a server process has used.

It is copied into a test server's ``custom_nodes/``. ``GET /probe/state`` answers without running a prompt, because a
prompt without a VAELoader would make ComfyUI forget the VAE.
"""

from __future__ import annotations

import copy
import threading
from typing import Any

import psutil
from aiohttp import web
from comfy_api.latest import ComfyExtension, io
from PIL import Image, ImageFile
from server import PromptServer

import nodes

from .latents import differences, digest, make

_vae_loads: list[str] = []


def _count_vae_loads() -> None:
    load_vae = nodes.VAELoader.load_vae

    def counted(self: object, vae_name: str, **options: object) -> object:
        _vae_loads.append(vae_name)
        return load_vae(self, vae_name, **options)

    nodes.VAELoader.load_vae = counted


@PromptServer.instance.routes.get("/probe/state")
async def _state(request: web.Request) -> web.Response:
    process = psutil.Process()
    handles = process.num_fds() if hasattr(process, "num_fds") else process.num_handles()
    state = {
        "vae_loads": list(_vae_loads),
        "rss": process.memory_info().rss,
        "handles": handles,
        "threads": threading.active_count(),
    }
    return web.json_response(state)


class ProbeLatent(io.ComfyNode):
    """Makes the LATENT of a kind that ``latents.KINDS`` names."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeLatent",
            display_name="Probe Latent",
            category="probe",
            inputs=[io.String.Input("kind"), io.Int.Input("seed", default=0, optional=True)],
            outputs=[io.Latent.Output()],
        )

    @classmethod
    def execute(cls, kind: str, seed: int = 0) -> io.NodeOutput:
        return io.NodeOutput(make(kind, seed))


class ProbeCompare(io.ComfyNode):
    """Says in its ui how a LATENT differs from the one of that kind, and the digest of its samples."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeCompare",
            display_name="Probe Compare",
            category="probe",
            inputs=[
                io.Latent.Input("samples"),
                io.String.Input("kind"),
                io.Int.Input("seed", default=0, optional=True),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, samples: dict, kind: str, seed: int = 0) -> io.NodeOutput:
        return io.NodeOutput(ui={"differences": differences(samples, make(kind, seed))})


class ProbeDigest(io.ComfyNode):
    """Says in its ui the shape, the dtype and the SHA-256 of a LATENT's samples."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeDigest",
            display_name="Probe Digest",
            category="probe",
            inputs=[io.Latent.Input("samples")],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, samples: dict) -> io.NodeOutput:
        return io.NodeOutput(ui={"digest": [digest(samples)]})


class ProbeStrings(io.ComfyNode):
    """A list of strings, one for each line: what hangs on it runs once for each."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeStrings",
            display_name="Probe Strings",
            category="probe",
            inputs=[io.String.Input("lines", multiline=True)],
            outputs=[
                io.String.Output("strings", is_output_list=True),
                io.Custom("COMBO").Output("choices", is_output_list=True),
            ],
        )

    @classmethod
    def execute(cls, lines: str) -> io.NodeOutput:
        return io.NodeOutput(lines.splitlines(), lines.splitlines())


class ProbeVAE(io.ComfyNode):
    """A VAE as other packs leave one.

    ``copied``: with the model of another one, as ComfyUI's SelectVAEDevice does it. ``shifted``: its model's latents
    are a little higher.
    """

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ProbeVAE",
            display_name="Probe VAE",
            category="probe",
            inputs=[io.Vae.Input("vae"), io.String.Input("kind"), io.Vae.Input("other", optional=True)],
            outputs=[io.Vae.Output("changed")],
        )

    @classmethod
    def execute(cls, vae: Any, kind: str, other: Any = None) -> io.NodeOutput:
        changed = copy.copy(vae)
        if kind == "copied":
            changed.first_stage_model = other.first_stage_model
        else:
            model = changed.first_stage_model = copy.copy(vae.first_stage_model)
            encode = model.encode
            model.encode = lambda pixels, *more, **options: encode(pixels, *more, **options) + 0.1
        return io.NodeOutput(changed)


class ProbeExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return [ProbeLatent, ProbeCompare, ProbeDigest, ProbeStrings, ProbeVAE]


async def comfy_entrypoint() -> ProbeExtension:
    return ProbeExtension()


def _loosen_pillow() -> None:
    """As careless packs do, for the whole process: pictures that are cut short or huge must be refused all the same."""
    Image.MAX_IMAGE_PIXELS = None
    ImageFile.LOAD_TRUNCATED_IMAGES = True


_count_vae_loads()
_loosen_pillow()
