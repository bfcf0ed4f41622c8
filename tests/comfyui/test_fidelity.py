"""A whole LATENT comes back from a file as it went in, or the format refuses it in words."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from comfyui.folders import snapshot
from comfyui.prompts import Outcome, node, run, save_probe
from comfyui.servers import Server

_spec = importlib.util.spec_from_file_location("probe_latents", Path(__file__).parent / "probe_nodes" / "latents.py")
assert _spec
assert _spec.loader
probe_latents = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(probe_latents)

UNHOLDABLE = ("complex128", "float8_e8m0fnu", "object-key")
NO_LATENT = "no-samples"
HOLDABLE = [kind for kind in probe_latents.KINDS if kind not in (*UNHOLDABLE, NO_LATENT)]
ONE_TENSOR = (
    "plain",
    "image-4d",
    "zero-batch",
    "not-finite",
    "large",
    *(kind for kind in HOLDABLE if "dtype-" in kind),
)
NOT_IN_NUMPY = [f"dtype-{name}" for name in probe_latents.DTYPES if name.startswith(("bfloat", "float8"))]


def round_trip(server: Server, prefix: str, kind: str, file_format: str) -> Outcome:
    """Save that LATENT, read it back, and compare; the outcome of saving where that failed."""
    saved = run(server, save_probe(kind, f"{prefix}/a", 3, file_format=file_format))
    if not saved.success:
        return saved
    prompt = {
        "1": node("LoadLatentFromDisk", latent_file=f"{prefix}/{saved.record['filename']} [output]"),
        "2": node("ProbeCompare", samples=["1", 0], kind=kind, seed=3),
    }
    return run(server, prompt)


def skip_without_nested_tensors(server: Server, kind: str) -> None:
    if kind == "nested" and not server.host.has_nested_tensors:
        pytest.skip("this ComfyUI has no nested tensors")


@pytest.mark.parametrize("kind", HOLDABLE)
def test_safetensors_holds_everything(server: Server, prefix: str, kind: str) -> None:
    skip_without_nested_tensors(server, kind)
    compared = round_trip(server, prefix, kind, "safetensors")
    assert compared.success, compared.text
    assert compared.all("differences") == []


@pytest.mark.parametrize("kind", UNHOLDABLE)
def test_safetensors_refuses_what_it_cannot_hold(server: Server, prefix: str, kind: str) -> None:
    before = snapshot(server)
    refused = run(server, save_probe(kind, f"{prefix}/a"))
    assert refused.code == "FORMAT_UNSUPPORTED"
    assert [path for path in snapshot(server) if path not in before and not path.endswith(prefix)] == []


@pytest.mark.parametrize("file_format", ["safetensors", "latent", "pt", "npy"])
def test_what_has_no_samples_is_refused(server: Server, prefix: str, file_format: str) -> None:
    refused = run(server, save_probe(NO_LATENT, f"{prefix}/a", file_format=file_format))
    assert refused.code == "LATENT_INVALID"


@pytest.mark.parametrize("file_format", ["latent", "pt", "npy"])
def test_the_other_formats_hold_it_or_refuse_it(server: Server, prefix: str, file_format: str) -> None:
    """Whatever comes back is whole: nothing is dropped silently."""
    for kind in (*HOLDABLE, *UNHOLDABLE):
        if kind == "nested" and not server.host.has_nested_tensors:
            continue
        holds = kind in (HOLDABLE if file_format == "latent" else ONE_TENSOR)
        if kind == "complex128" or (kind, file_format) == ("float8_e8m0fnu", "pt"):
            holds = file_format != "latent"
        if file_format == "npy" and kind in NOT_IN_NUMPY:
            holds = False
        compared = round_trip(server, f"{prefix}/{kind}", kind, file_format)
        if holds:
            assert compared.success, f"{kind}: {compared.text}"
            assert compared.all("differences") == [], kind
        else:
            assert compared.code == "FORMAT_UNSUPPORTED", kind
            assert not list((server.output / prefix).rglob(f"{kind}/*"))


def test_what_goes_on_is_the_same_latent(server: Server, prefix: str) -> None:
    prompt = save_probe("json-keys", f"{prefix}/a", 3)
    prompt["3"] = node("ProbeCompare", samples=["2", 0], kind="json-keys", seed=3)
    compared = run(server, prompt)
    assert compared.success, compared.text
    assert compared.all("differences") == []
