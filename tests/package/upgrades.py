"""What of the nodes old workflows rely on, and what of it a newer version has taken away."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Node = Mapping[str, Any]
LINKS = {"VAE", "LATENT", "LATENT_RECORD", "IMAGE", "CLIP", "MODEL"}
"""Types whose inputs are wires; every other input is a widget, with a place of its own in ``widgets_values``."""


def losses(old: Mapping[str, Node], new: Mapping[str, Node]) -> list[str]:
    """What old workflows miss, by nodes as ``/object_info`` describes them: each loss in words."""
    found = [f"{name} is gone" for name in old if name not in new]
    for name in old.keys() & new.keys():
        found += [f"{name}: {loss}" for loss in _node_losses(old[name], new[name])]
    return sorted(found)


def _node_losses(old: Node, new: Node) -> list[str]:
    before, after = _inputs(old), _inputs(new)
    found = [f"the input {name} is gone" for name in before if name not in after]
    for name in before.keys() & after.keys():
        found += [f"{name}: {loss}" for loss in _input_losses(before[name], after[name])]
    found += [f"the new input {name} is required" for name in new["input"].get("required", {}) if name not in before]
    old_widgets, new_widgets = _widgets(before), _widgets(after)
    if new_widgets[: len(old_widgets)] != old_widgets:
        found.append(f"the widgets were {', '.join(old_widgets)} and are {', '.join(new_widgets)}")
    old_outputs, new_outputs = list(old["output"]), list(new["output"])
    if new_outputs[: len(old_outputs)] != old_outputs:
        found.append(f"the outputs were {', '.join(old_outputs)} and are {', '.join(new_outputs)}")
    return found


def _input_losses(old: list[Any], new: list[Any]) -> list[str]:
    if _type(old) != _type(new):
        return [f"its type was {_type(old)} and is {_type(new)}"]
    gone = [choice for choice in _choices(old) if choice not in _choices(new)]
    narrower = [
        f"its {limit} was {old[1][limit]} and is {new[1][limit]}"
        for limit, sign in (("min", 1), ("max", -1))
        if len(old) > 1 and limit in old[1] and sign * new[1].get(limit, old[1][limit]) > sign * old[1][limit]
    ]
    return [f"the choice {choice} is gone" for choice in gone] + narrower


def _inputs(node: Node) -> dict[str, list[Any]]:
    """All inputs in their order: the required ones, then the optional ones."""
    return {**node["input"].get("required", {}), **node["input"].get("optional", {})}


def _type(entry: list[Any]) -> str:
    return "COMBO" if isinstance(entry[0], list) else entry[0]


def _choices(entry: list[Any]) -> list[Any]:
    if isinstance(entry[0], list):
        return entry[0]
    return entry[1].get("options", []) if len(entry) > 1 else []


def _widgets(inputs: Mapping[str, list[Any]]) -> list[str]:
    return [name for name, entry in inputs.items() if _type(entry) not in LINKS]
