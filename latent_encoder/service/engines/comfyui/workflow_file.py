"""A workflow of the user's: read from a file in API format, and searched for the nodes that a request's fields go into.

Which file is the result says the one node that saves it, EncodeToLatentFile or else SaveLatentToDisk; the other nodes
are looked for among those that it depends on. ``field=node.input`` names what is not clear, ``save=node`` the saver.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from latent_encoder.errors import LatentEncoderError

from .workflow import ENCODE, FIELDS, SAVE, Prompt, Target, Workflow

# The node and the input that a field goes into where no EncodeToLatentFile takes it.
CHAIN = {
    "image": Target("LoadImage", "image"),
    "vae_model_name": Target("VAELoader", "vae_name"),
    "upscale_method": Target("ImageScaleToTotalPixels", "upscale_method"),
    "megapixels": Target("ImageScaleToTotalPixels", "megapixels"),
    "resolution_steps": Target("ImageScaleToTotalPixels", "resolution_steps"),
}
SAVER = "save"


def read_workflow(path: Path, mappings: Iterable[str] = ()) -> Workflow:
    """The workflow in ``path``.

    Args:
        mappings: such as ``image=12.image`` (a field goes into this input) and ``save=5`` (this node's file is the
            result).

    Raises:
        LatentEncoderError: INVALID_REQUEST: the file cannot be read, is in the editor's format, or it is not clear
            which node is meant; the message says what was found, the hint how to name it.
    """
    prompt = _read_prompt(path)
    mapped = _parse_mappings(mappings, prompt, path.name)
    saver = _find_saver(prompt, mapped, path.name)
    upstream = _upstream(prompt, saver)
    for field, target in mapped.items():
        if field != SAVER:
            _check_mapped(field, target, prompt, saver, upstream, path.name)
    targets = {field: mapped.get(field) or _find_target(field, prompt, saver, upstream, path.name) for field in FIELDS}
    return Workflow(prompt, saver, targets)


def _read_prompt(path: Path) -> Prompt:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise _invalid(f"The workflow '{path}' cannot be read ({error.strerror}).", "Check its name.") from error
    except (ValueError, RecursionError) as error:
        raise _invalid(f"The workflow '{path.name}' is not JSON ({error}).", "Export it from ComfyUI again.") from error
    if isinstance(content, dict) and isinstance(content.get("nodes"), list):
        raise _invalid(
            f"The workflow '{path.name}' is in the format of ComfyUI's editor, which cannot be run.",
            "Open it in ComfyUI and export it in API format: menu Workflow, 'Export (API)'.",
        )
    if not isinstance(content, dict) or not content or not all(map(_is_node, content.values())):
        raise _invalid(
            f"The workflow '{path.name}' is not in ComfyUI's API format.",
            'There, each node stands under its id as {"class_type": ..., "inputs": {...}}: menu Workflow, '
            "'Export (API)'.",
        )
    return content


def _is_node(value: Any) -> bool:
    return (
        isinstance(value, dict) and isinstance(value.get("class_type"), str) and isinstance(value.get("inputs"), dict)
    )


def _parse_mappings(mappings: Iterable[str], prompt: Prompt, name: str) -> dict[str, Target]:
    """The targets by field; the saver's has an empty input."""
    found: dict[str, Target] = {}
    for text in mappings:
        field, _, place = text.partition("=")
        # An input's name has no dot; a node's id may have one.
        node, _, key = (place, "", "") if field == SAVER else place.rpartition(".")
        if field not in (*FIELDS, SAVER):
            fields = ", ".join((*FIELDS, SAVER))
            raise _invalid(f"'{field}' in '{text}' is no field of a workflow.", f"The fields are {fields}.")
        if not node or (field != SAVER and not key):
            raise _invalid(f"'{text}' names no input.", "Write it as field=node.input, such as image=12.image.")
        if node not in prompt:
            listed = _listed(prompt, prompt)
            raise _invalid(
                f"The workflow '{name}' has no node {node} ('{text}'). It has {listed}.", "Name one of them."
            )
        found[field] = Target(node, key)
    return found


def _find_saver(prompt: Prompt, mapped: dict[str, Target], name: str) -> str:
    if SAVER in mapped:
        node = mapped[SAVER].node
        if prompt[node]["class_type"] not in (ENCODE, SAVE):
            raise _invalid(f"Node {node} of '{name}' is a {prompt[node]['class_type']}.", f"Name {ENCODE} or {SAVE}.")
        return node
    savers = _of_class(prompt, ENCODE) or _of_class(prompt, SAVE)
    if len(savers) > 1 and "image" in mapped:
        reader = mapped["image"].node  # the saver that this picture goes to
        savers = [node for node in savers if node == reader or reader in _upstream(prompt, node)] or savers
    if len(savers) == 1:
        return savers[0]
    if not savers:
        raise _invalid(
            f"The workflow '{name}' saves no latent that we could fetch: it has no {ENCODE} and no {SAVE}.",
            "Add one of these nodes, then export it again.",
        )
    hint = f"--map image={savers[0]}.image" if prompt[savers[0]]["class_type"] == ENCODE else f"--map save={savers[0]}"
    raise _invalid(
        f"It is not clear which node of the workflow '{name}' saves the result: it has {_listed(savers, prompt)}.",
        f"Name one: {hint}",
    )


def _check_mapped(field: str, target: Target, prompt: Prompt, saver: str, upstream: Sequence[str], name: str) -> None:
    """Refuse a place that changes nothing of the result: another picture's latent would come back."""
    if target.node not in (saver, *upstream):
        raise _invalid(
            f"{_listed([target.node], prompt)} of the workflow '{name}' has no part in what node {saver} saves.",
            f"Name one of {_listed([saver, *upstream], prompt)} for '{field}'.",
        )
    node = prompt[target.node]
    usual = {place.input for place in CHAIN.values() if place.node == node["class_type"]}
    inputs = {*node["inputs"], *usual, *(FIELDS if node["class_type"] == ENCODE else ())}
    if target.input not in inputs:
        raise _invalid(
            f"{_listed([target.node], prompt)} of the workflow '{name}' has no input '{target.input}'.",
            f"Its inputs are {', '.join(sorted(inputs))}.",
        )


def _find_target(field: str, prompt: Prompt, saver: str, upstream: Sequence[str], name: str) -> Target:
    if prompt[saver]["class_type"] == ENCODE and field != "vae_model_name":
        return Target(saver, field)
    wanted = CHAIN[field]
    found = [node for node in upstream if prompt[node]["class_type"] == wanted.node]
    if len(found) == 1:
        return Target(found[0], wanted.input)
    saving = f"{prompt[saver]['class_type']} ({saver})"
    if found:
        raise _invalid(
            f"It is not clear where '{field}' goes in the workflow '{name}': {saving} depends on "
            f"{_listed(found, prompt)}.",
            f"Name one: --map {field}={found[0]}.{wanted.input}",
        )
    raise _invalid(
        f"The workflow '{name}' has no {wanted.node} that {saving} depends on, so '{field}' has no place. "
        f"It depends on {_listed(upstream, prompt)}.",
        f"Name the node and its input: --map {field}=NODE.INPUT",
    )


def _upstream(prompt: Prompt, node: str) -> list[str]:
    """The ids of the nodes that a node depends on, nearest first."""
    found: list[str] = []
    waiting = [node]
    while waiting:
        for value in prompt[waiting.pop(0)]["inputs"].values():
            is_link = isinstance(value, list) and len(value) == 2 and str(value[0]) in prompt
            if is_link and str(value[0]) not in (*found, node):
                found.append(str(value[0]))
                waiting.append(str(value[0]))
    return found


def _of_class(prompt: Prompt, class_type: str) -> list[str]:
    return [node for node, entry in prompt.items() if entry["class_type"] == class_type]


def _listed(nodes: Iterable[str], prompt: Prompt) -> str:
    """Their classes, ids and titles, as a person knows them from the editor."""
    words = []
    for node in nodes:
        title = (prompt[node].get("_meta") or {}).get("title")
        words.append(f"{prompt[node]['class_type']} ({node}{f', {title!r}' if title else ''})")
    return ", ".join(words) or "no node"


def _invalid(message: str, hint: str) -> LatentEncoderError:
    return LatentEncoderError("INVALID_REQUEST", message, hint)
