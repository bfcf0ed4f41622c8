"""LoadLatentFromDisk: what it lists, what it reads, and what it refuses."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from pathlib import Path

import pictures
import pytest
import torch
from comfyui.folders import put
from comfyui.prompts import by_hand, encode, load, node, run, save_probe
from comfyui.servers import Server
from comfyui.small_vae import NAME as SMALL_VAE
from safetensors.torch import save_file

FORMATS = ("safetensors", "latent", "pt", "npy")
FILES = 10_000


def listed(server: Server) -> list[str]:
    info = server.client.object_info("LoadLatentFromDisk")["LoadLatentFromDisk"]
    kind, options = info["input"]["required"]["latent_file"]
    return kind if isinstance(kind, list) else options["options"]


def saved(server: Server, prefix: str, file_format: str = "safetensors") -> Path:
    return Path(run(server, save_probe("plain", f"{prefix}/a", file_format=file_format)).record["path"])


def refused(server: Server, path: Path) -> str | None:
    """The code with which a file under output is refused."""
    outcome = run(server, load(f"{path.relative_to(server.output)} [output]"))
    assert not outcome.success
    return outcome.code


def test_lists_output_and_input_with_subfolders_newest_first(server: Server, prefix: str) -> None:
    names = [
        f"{prefix}/old.safetensors [output]",
        f"{prefix}/sub/middle.pt [input]",
        f"{prefix}/deep/er/new.npy [output]",
    ]
    for age, name in zip((300, 200, 100), names, strict=True):
        plain, folder = name[:-1].split(" [")
        path = getattr(server, folder) / plain
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
        os.utime(path, (time.time() - age,) * 2)
    found = [name for name in listed(server) if name.startswith(prefix)]
    assert found == names[::-1]


def test_lists_latents_only(server: Server, prefix: str) -> None:
    path = saved(server, prefix)
    image = put(server, f"{prefix}/a.png", pictures.png())
    run(server, encode(image, SMALL_VAE, filename_prefix=f"{prefix}/b", preview=True))
    (path.parent / ".latent-encoder-leftover.safetensors").write_bytes(b"")
    found = {name for name in listed(server) if name.startswith(prefix)}
    assert found == {f"{prefix}/a_00001_.safetensors [output]", f"{prefix}/b_00001_.safetensors [output]"}


def test_lists_none_of_outputs_model_folders(server: Server) -> None:
    models = [server.output / name for name in ("checkpoints", "vae", "loras", "diffusion_models", "clip")]
    for folder in models:
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"")
    try:
        assert [name for name in listed(server) if "model.safetensors" in name] == []
    finally:
        for folder in models:
            shutil.rmtree(folder)


def test_lists_ten_thousand_files_quickly(server: Server, prefix: str) -> None:
    folder = server.output / prefix
    folder.mkdir()
    try:
        for n in range(FILES):
            (folder / f"a_{n:05}_.safetensors").touch()
        times = []
        for _ in range(3):
            start = time.perf_counter()
            names = listed(server)
            times.append(time.perf_counter() - start)
        assert len([name for name in names if name.startswith(f"{prefix}/")]) == FILES
        shown = ", ".join(f"{seconds * 1000:.0f} ms" for seconds in times)
        print(f"\n/object_info/LoadLatentFromDisk with {FILES} files, three times: {shown}")
        assert min(times) < 2
        (folder / "the_newest.safetensors").touch()
        assert listed(server)[0] == f"{prefix}/the_newest.safetensors [output]"
    finally:
        shutil.rmtree(folder)


def test_stock_latent_file(server: Server, prefix: str) -> None:
    image = put(server, f"{prefix}/a.png", pictures.png())
    prompt = by_hand(image, SMALL_VAE, f"{prefix}/stock")
    prompt["6"] = node("ProbeDigest", samples=["4", 0])
    wanted = run(server, prompt).all("digest")
    loaded = run(server, load(f"{prefix}/stock_00001_.latent [output]"))
    assert loaded.all("digest") == wanted


def test_old_stock_latent_file_is_scaled(server: Server, prefix: str) -> None:
    """The first ``.latent`` files have no version and another scale: stock divides them by 0.18215."""
    file = server.input / prefix / "old.latent"
    file.parent.mkdir()
    save_file({"latent_tensor": torch.arange(64.0).reshape(1, 4, 4, 4).half()}, file)
    ours = load(f"{prefix}/old.latent [input]")
    stock = {"1": node("LoadLatent", latent=f"{prefix}/old.latent"), "2": node("ProbeDigest", samples=["1", 0])}
    assert run(server, ours).all("digest") == run(server, stock).all("digest")


def test_missing_latent(server: Server) -> None:
    assert run(server, load("nowhere/a.safetensors [output]")).code == "LATENT_NOT_FOUND"


@pytest.mark.parametrize("file_format", FORMATS)
def test_flipped_bit(server: Server, prefix: str, file_format: str) -> None:
    path = saved(server, prefix, file_format)
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    assert refused(server, path) == "LATENT_INVALID"


def test_flipped_bit_without_a_sidecar(server: Server, prefix: str) -> None:
    path = saved(server, prefix)
    path.with_name(path.name + ".json").unlink()
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)
    assert refused(server, path) == "LATENT_INVALID"


@pytest.mark.parametrize("sidecar", [True, False], ids=["with-sidecar", "without-sidecar"])
@pytest.mark.parametrize("file_format", FORMATS)
def test_cut_in_half(server: Server, prefix: str, file_format: str, sidecar: bool) -> None:
    path = saved(server, prefix, file_format)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    if not sidecar:
        path.with_name(path.name + ".json").unlink()
    assert refused(server, path) == "LATENT_INVALID"


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("content", [b"", b"\xff" * 40, b"not a latent" * 50], ids=["empty", "huge-length", "text"])
def test_not_a_latent(server: Server, prefix: str, file_format: str, content: bytes) -> None:
    path = server.output / prefix / f"a.{file_format}"
    path.parent.mkdir()
    path.write_bytes(content)
    assert refused(server, path) == "LATENT_INVALID"


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("writer", ["torch", "pickle", "numpy"])
def test_pickle_bomb(server: Server, prefix: str, tmp_path: Path, writer: str) -> None:
    import numpy

    bomb, path = Bomb(tmp_path / "exploded"), server.output / prefix / ("a.npy" if writer == "numpy" else "a.pt")
    path.parent.mkdir()
    if writer == "torch":
        torch.save(bomb, path)
    elif writer == "pickle":
        path.write_bytes(pickle.dumps(bomb))
    else:
        numpy.save(path, numpy.array([bomb], dtype=object), allow_pickle=True)
    assert refused(server, path) == "LATENT_INVALID"
    assert not bomb.marker.exists()


def test_vae_that_made_it_is_accepted(server: Server, prefix: str) -> None:
    image = put(server, f"{prefix}/a.png", pictures.png())
    for n, vae in enumerate((server.host.demo_vae, SMALL_VAE, "pixel_space"), 1):
        run(server, encode(image, vae, filename_prefix=f"{prefix}/a"))
        loaded = run(server, load(f"{prefix}/a_0000{n}_.safetensors [output]", vae))
        assert loaded.success, loaded.text


@pytest.mark.parametrize("file_format", FORMATS)
def test_vae_that_cannot_decode_it_is_refused_with_a_sentence(server: Server, prefix: str, file_format: str) -> None:
    image = put(server, f"{prefix}/a.png", pictures.png())
    run(server, encode(image, SMALL_VAE, filename_prefix=f"{prefix}/a", file_format=file_format))
    loaded = run(server, load(f"{prefix}/a_00001_.{file_format} [output]", "pixel_space"))
    assert loaded.code == "VAE_MISMATCH"
    sentence = loaded.text.splitlines()[0]
    assert f"made by the VAE '{SMALL_VAE}'" in sentence
    assert "[1, 4, " in sentence
    assert "'pixel_space' takes 3 channels, not 4" in sentence


def test_vae_of_other_dimensions_is_refused(server: Server, prefix: str) -> None:
    """16 channels, but a picture's (4 axes) where a Wan VAE reads a video's (5 axes)."""
    path = server.output / prefix / "a.safetensors"
    path.parent.mkdir()
    save_file({"latent_tensor": torch.zeros(1, 16, 8, 8), "latent_format_version_0": torch.tensor([])}, path)
    assert run(server, load(f"{prefix}/a.safetensors [output]", server.host.demo_vae)).code == "VAE_MISMATCH"


def test_latent_of_nothing_is_refused_where_a_vae_shall_decode_it(server: Server, prefix: str) -> None:
    import numpy

    path = server.output / prefix / "a.npy"
    path.parent.mkdir()
    for shape in ((), (0, 4, 8, 8), (1, 4, 0, 8)):
        numpy.save(path, numpy.zeros(shape, numpy.float32))
        assert run(server, load(f"{prefix}/a.npy [output]", SMALL_VAE)).code == "VAE_MISMATCH"


def test_another_vae_of_the_same_shape_is_a_warning(server: Server, prefix: str) -> None:
    image = put(server, f"{prefix}/a.png", pictures.png())
    run(server, encode(image, server.host.demo_vae, filename_prefix=f"{prefix}/a"))
    vaes = server.folder / "models" / "vae"
    data = (vaes / server.host.demo_vae).read_bytes()
    length = int.from_bytes(data[:8], "little")
    other = vaes / f"{prefix}.safetensors"  # the same numbers behind a header with more spaces
    other.write_bytes((length + 8).to_bytes(8, "little") + data[8 : 8 + length] + b" " * 8 + data[8 + length :])
    try:
        loaded = run(server, load(f"{prefix}/a_00001_.safetensors [output]", other.name))
        assert loaded.success, loaded.text
        assert f"was made by another VAE file ('{server.host.demo_vae}') than the one wired in" in server.log()
    finally:
        other.unlink()


def test_changed_file_is_read_again(server: Server, prefix: str) -> None:
    """ComfyUI keeps a node's result; a latent that was replaced under the same name must not come from there."""
    prompt = load(f"{prefix}/a.safetensors [output]")
    digests = []
    for seed in (1, 2):
        run(server, save_probe("plain", f"{prefix}/a", seed, if_exists="overwrite"))
        digests.append(run(server, prompt).all("digest")[0]["sha256"])
    assert digests[0] != digests[1]


def test_record_output(server: Server, prefix: str) -> None:
    record = run(server, save_probe("plain", f"{prefix}/a")).record
    prompt = load(f"{prefix}/a_00001_.safetensors [output]")
    prompt["4"] = node("PreviewAny", source=["2", 1])
    shown = run(server, prompt)
    assert shown.success, shown.text
    assert record["file_sha256"] in shown.all("text")[0]
