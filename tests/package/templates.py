"""The templates of ``workflows/`` outside the editor: turned into prompts by comfy-cli, made small, run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comfyui.prompts import Outcome, Prompt, outcome
from package.installs import Installation
from package.tools import ROOT, comfy

from latent_encoder.service.engines.comfyui.client import ComfyUIClient, PromptRejected

WORKFLOWS = ROOT / "workflows"
TEMPLATES = sorted(WORKFLOWS.glob("*.json"))
MEGAPIXELS = 0.02
MODEL_LOADERS = {"UNETLoader", "CLIPLoader", "VAELoader"}


def template(name: str) -> Path:
    return WORKFLOWS / f"{name}.json"


def as_prompt(installation: Installation, workflow: Path) -> Prompt:
    """A workflow in the editor's format as ``/prompt`` takes it: comfy-cli asks this server for its nodes."""
    server = installation.server
    where = ("--host", "127.0.0.1", "--port", str(server.port), "--where", "local")
    env = installation.environment()
    done = comfy("run", "--workflow", workflow, *where, "--print-prompt", cwd=installation.folder, env=env)
    assert done.returncode == 0, done.stdout
    (answer,) = [line for line in done.stdout.splitlines() if line.startswith('{"schema"')]
    return json.loads(answer)["data"]["prompt"]


def made_small(installation: Installation, prompt: Prompt) -> Prompt:
    """The same with a VAE that is there, and a picture of few pixels."""
    here = {"vae_name": installation.host.demo_vae, "megapixels": MEGAPIXELS}
    return {
        number: {**node, "inputs": {name: here.get(name, value) for name, value in node["inputs"].items()}}
        for number, node in prompt.items()
    }


def run_prompt(installation: Installation, prompt: Prompt) -> Outcome:
    """What comes of it; a refusal at the door fails the test."""
    with ComfyUIClient(installation.server.url) as client:
        return outcome(client.run(prompt, timeout=120))


def refusals(installation: Installation, prompt: Prompt) -> list[tuple[str, str]]:
    """What the server has against the prompt before it runs: each error's node class and type."""
    with ComfyUIClient(installation.server.url) as client:
        try:
            client.cancel(client.submit(prompt))
        except PromptRejected as refusal:
            nodes: dict[str, Any] = refusal.node_errors
            assert nodes, refusal.error
            return [(node["class_type"], error["type"]) for node in nodes.values() for error in node["errors"]]
    return []
