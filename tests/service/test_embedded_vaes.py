"""Which VAEs the embedded engine finds, takes and refuses, and in what words."""

from __future__ import annotations

import io
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pictures
import pytest
import torch
from comfyui.servers import demo_vae, extra_models
from safetensors.torch import load_file
from service import vae_files
from service.encode_jobs import job_of_bytes as job
from service.encode_jobs import samples

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.engines.base import Call
from latent_encoder.service.engines.embedded import EmbeddedEngine
from latent_encoder.service.engines.vae_files import TINY_NAMES

DEMO = "demo_vae.safetensors"


@pytest.fixture
def models(tmp_path: Path) -> Path:
    (tmp_path / "vae" / "sub").mkdir(parents=True)
    (tmp_path / "vae_approx").mkdir()
    (tmp_path / "vae" / DEMO).symlink_to(demo_vae(padded=False))
    return tmp_path


def encode(models: Path, vae: str) -> torch.Tensor:
    engine = EmbeddedEngine(models)
    engine.start()
    return samples(engine.encode(job(pictures.png(), vae, megapixels=0.01), Call()))


def refusal(models: Path, vae: str) -> LatentEncoderError:
    with pytest.raises(LatentEncoderError) as caught:
        encode(models, vae)
    return caught.value


def demo() -> vae_files.Weights:
    return load_file(demo_vae(padded=False))


def small_kl() -> vae_files.Weights:
    return vae_files.kl(width=32)


def test_the_names_are_those_of_vaeloader(models: Path) -> None:
    for name in ("b.ckpt", "sub/a.pt", "notes.txt", "put_vae_here", "sub/c.safetensors.part"):
        (models / "vae" / name).touch()
    (models / "vae" / "sub" / "up").symlink_to(models / "vae")  # a loop
    vae_files.write_tiny(["taesd", "taef1", "taef2"], models / "vae_approx")
    (models / "vae_approx" / "taesd3_decoder.pth").touch()  # its encoder is missing
    (models / "vae_approx" / "taehv.pth").touch()
    assert EmbeddedEngine(models).vaes() == ["b.ckpt", DEMO, "sub/a.pt", "taesd", "taef1", "pixel_space"]
    assert EmbeddedEngine(models / "nowhere").vaes() == ["pixel_space"]


def test_a_missing_vae_is_told_with_those_that_are_there(models: Path) -> None:
    error = refusal(models, "nowhere.safetensors")
    assert error.code == "VAE_MODEL_NOT_FOUND"
    assert DEMO in error.message and "pixel_space" in error.message
    assert str(models) not in str(error)
    for name in ("sub", ".", "sub/", f"./{DEMO}", f"sub//{DEMO}", "taesd", "taehv", f"{DEMO}/x", "x" * 200):
        assert refusal(models, name).code == "VAE_MODEL_NOT_FOUND", name
    assert EmbeddedEngine(models).vae_sha256("nowhere.safetensors") is None


@pytest.mark.parametrize("name", [f"../vae/{DEMO}", "/etc/passwd", "sub\\a.pt", "a\0b", "C:/x.pt", "sub/../" + DEMO])
def test_names_that_lead_out_are_refused(models: Path, name: str) -> None:
    assert refusal(models, name).code == "PATH_NOT_ALLOWED"
    assert EmbeddedEngine(models).vae_sha256(name) is None


def test_links_and_subfolders(models: Path) -> None:
    (models / "vae" / "sub" / "linked.safetensors").symlink_to(demo_vae(padded=False))
    assert torch.equal(encode(models, "sub/linked.safetensors"), encode(models, DEMO))


@pytest.mark.parametrize("wrap", [lambda weights: weights, lambda weights: {"state_dict": weights, "epoch": 3}])
@pytest.mark.parametrize("suffix", [".pt", ".ckpt"])
def test_pickled_files_hold_the_same(models: Path, suffix: str, wrap: Callable[[object], object]) -> None:
    torch.save(wrap(demo()), models / "vae" / f"old{suffix}")
    assert torch.equal(encode(models, f"old{suffix}"), encode(models, DEMO))


def test_what_training_left_does_not_matter(models: Path) -> None:
    left = {"loss.logvar": torch.zeros(1), "model_ema.num_updates": torch.tensor(3)}
    vae_files.write(small_kl(), models / "vae" / "clean.safetensors")
    vae_files.write(small_kl() | left, models / "vae" / "trained.safetensors")
    assert torch.equal(encode(models, "trained.safetensors"), encode(models, "clean.safetensors"))


def test_a_kl_vae_is_the_same_in_diffusers_words(models: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    blocks = {"down_block_types": [""] * 4, "up_block_types": [""] * 4}
    renamed = convert_ldm_vae_checkpoint(small_kl(), blocks)
    old_words = {"to_q.": "query.", "to_k.": "key.", "to_v.": "value.", "to_out.0.": "proj_attn."}
    older = dict(renamed)
    for new, old in old_words.items():
        older = {key.replace(f"attentions.0.{new}", f"attentions.0.{old}"): value for key, value in older.items()}
    assert older.keys() != renamed.keys()
    for name, weights in {"original": small_kl(), "renamed": renamed, "older": older}.items():
        vae_files.write(weights, models / "vae" / f"{name}.safetensors")
    wanted = encode(models, "original.safetensors")
    assert wanted.shape == (1, 4, 11, 14)
    assert torch.equal(encode(models, "renamed.safetensors"), wanted)
    assert torch.equal(encode(models, "older.safetensors"), wanted)


def test_other_number_types_are_taken(models: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float8_e4m3fn):
        changed = {key: value.to(dtype) for key, value in demo().items()}
        vae_files.write(changed, models / "vae" / "changed.safetensors")
        latent = encode(models, "changed.safetensors")
        assert latent.dtype == torch.float32
        assert torch.isfinite(latent).all()


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("trapped",)


def pickled(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


DAMAGED = {
    "empty.safetensors": lambda: b"",
    "empty.pt": lambda: b"",
    "text.safetensors": lambda: b"this is no VAE\n" * 100,
    "text.ckpt": lambda: b"this is no VAE\n" * 100,
    "cut.safetensors": lambda: demo_vae(padded=False).read_bytes()[:1_000_000],
    "header.safetensors": lambda: (1 << 40).to_bytes(8, "little") + b"{}",
    "cut.pt": lambda: pickled(demo())[:1_000_000],
    "trap.pt": lambda: pickle.dumps({"decoder.conv_in.weight": Trap()}),
    "trapped.pt": lambda: pickled({"decoder.conv_in.weight": Trap()}),
    "list.pt": lambda: pickled([torch.zeros(1)]),
    "words.pt": lambda: pickled({"a": "b", "c": "d"}),
    "none.pt": lambda: pickled({}),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_file_is_invalid(models: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(models)
    (models / "vae" / name).write_bytes(DAMAGED[name]())
    error = refusal(models, name)
    assert error.code == "VAE_MODEL_INVALID"
    assert name in error.message and "again" in error.hint
    assert not (models / "trapped").exists(), "a file's code was run"


def without(weights: vae_files.Weights, key: str) -> vae_files.Weights:
    return {name: value for name, value in weights.items() if name != key}


UNKNOWN = {
    "other keys": lambda: {"blocks.0.weight": torch.zeros(2)},
    "demo, a tensor missing": lambda: without(demo(), "encoder.downsamples.3.residual.2.weight"),
    "demo, its first tensor missing": lambda: without(demo(), "encoder.conv1.weight"),
    "demo, a tensor more": lambda: demo() | {"encoder.extra.weight": torch.zeros(1)},
    "demo, another shape": lambda: demo() | {"encoder.head.2.bias": torch.zeros(31)},
    "demo, whole numbers": lambda: demo() | {"encoder.conv1.bias": torch.zeros(16, dtype=torch.int32)},
    "Wan 2.2": lambda: demo() | {"decoder.upsamples.0.upsamples.0.residual.2.weight": torch.zeros(1)},
    "KL, a tensor missing": lambda: without(small_kl(), "encoder.mid.attn_1.q.weight"),
    "KL, no encoder": lambda: {key: value for key, value in small_kl().items() if key.startswith("decoder.")},
    "KL, another shape": lambda: small_kl() | {"quant_conv.bias": torch.zeros(7)},
    "Flux 2": lambda: small_kl() | {"bn.running_mean": torch.zeros(128), "bn.running_var": torch.ones(128)},
}


@pytest.mark.parametrize("kind", UNKNOWN)
def test_loading_is_strict(models: Path, kind: str) -> None:
    """ComfyUI itself would encode with what is missing at random, and only warn."""
    vae_files.write(UNKNOWN[kind](), models / "vae" / "odd.safetensors")
    error = refusal(models, "odd.safetensors")
    assert error.code == "VAE_MODEL_INVALID"
    assert "odd.safetensors" in error.message
    assert "comfyui" in error.hint or "again" in error.hint


@pytest.mark.parametrize("name", ["taef2", "taehv.pth", "lighttaew2_1.safetensors"])
def test_tiny_vaes_of_comfyui_alone_name_it(models: Path, name: str) -> None:
    vae_files.write_tiny(["taef2"], models / "vae_approx")
    (models / "vae_approx" / name).touch()
    error = refusal(models, name)
    assert error.code == "VAE_MODEL_INVALID"
    assert "'comfyui'" in error.hint


def test_the_real_taef2_is_not_taken_for_another(models: Path) -> None:
    """Its keys, under a name that is known here."""
    source = extra_models() / "vae_approx"
    if not (source / "taef2_encoder.pth").is_file():
        pytest.skip("the weights of taef2 are not on this machine")
    for part in ("encoder", "decoder"):
        shutil.copyfile(source / f"taef2_{part}.pth", models / "vae_approx" / f"taesd_{part}.pth")
    error = refusal(models, "taesd")
    assert error.code == "VAE_MODEL_INVALID"
    assert "'comfyui'" in error.hint and "not known" in error.message


def test_a_tiny_vae_needs_both_its_files_whole(models: Path) -> None:
    vae_files.write_tiny(TINY_NAMES, models / "vae_approx")
    decoder = models / "vae_approx" / "taesd_decoder.safetensors"
    vae_files.write(without(load_file(decoder), "1.weight"), decoder)
    assert refusal(models, "taesd").code == "VAE_MODEL_INVALID"
    decoder.unlink()
    assert refusal(models, "taesd").code == "VAE_MODEL_NOT_FOUND"
    assert encode(models, "taesdxl").shape == (1, 4, 11, 14)
    assert EmbeddedEngine(models).vae_sha256("taesdxl") is None


def test_pixel_space_needs_no_file(tmp_path: Path) -> None:
    latent = encode(tmp_path, "pixel_space")
    assert latent.shape == (1, 3, 89, 118)
    assert -1 <= latent.min() < -0.5 and 0.5 < latent.max() <= 1
