"""The demo VAE that ships with the project, and its zero-padded copy."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))  # the tools are scripts, they import one another from their own folder

import pad_demo_vae  # noqa: E402
import train_demo_vae  # noqa: E402
from demo_vae_network import DemoVAE, export_weights, import_weights, load_network  # noqa: E402

ASSET = ROOT / "assets" / "demo_vae.safetensors"
CARD = (ROOT / "assets" / "demo_vae.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return load_file(ASSET)


@pytest.fixture(scope="module")
def padded(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return pad_demo_vae.pad_weights(weights, 96)


@pytest.fixture(scope="module")
def chelsea() -> Tensor:
    """A photograph that the VAE never saw, uint8 (3, 300, 451)."""
    return train_demo_vae.held_out_pictures(None)["chelsea"]


def test_card_is_that_of_the_file() -> None:
    assert hashlib.sha256(ASSET.read_bytes()).hexdigest() in CARD
    assert f"{ASSET.stat().st_size:,} bytes" in CARD


def test_photograph_comes_back_at_the_stated_psnr(chelsea: Tensor) -> None:
    stated = re.search(r"\| chelsea \|[^|]*\| ([\d.]+) \|", CARD)
    assert stated
    measured = train_demo_vae.psnr(load_network(ASSET), chelsea)
    assert measured == pytest.approx(float(stated[1]), abs=0.05)


def test_padded_copy_has_the_shapes_of_width_96(padded: dict[str, Tensor]) -> None:
    wide = export_weights(DemoVAE(96))
    assert {key: value.shape for key, value in padded.items()} == {key: value.shape for key, value in wide.items()}


def test_padded_copy_computes_the_same(weights: dict[str, Tensor], padded: dict[str, Tensor], chelsea: Tensor) -> None:
    narrow, wide = import_weights(weights), import_weights(padded)
    picture = chelsea[None, :, 100:164, 150:246] / 127.5 - 1
    with torch.no_grad():
        latent = narrow.encode(picture)
        torch.testing.assert_close(wide.encode(picture), latent, atol=1e-4, rtol=0)
        torch.testing.assert_close(wide.decode(latent), narrow.decode(latent), atol=1e-4, rtol=0)


def test_padded_time_convolutions_pass_the_newest_frame_on(padded: dict[str, Tensor]) -> None:
    frames = torch.zeros(1, 384, 3, 2, 2)
    frames[:, :64] = torch.randn(1, 64, 3, 2, 2)  # the channels that the copy uses
    kernel = padded["decoder.upsamples.3.time_conv.weight"].float()
    passed = F.conv3d(frames, kernel)[:, :, 0]
    torch.testing.assert_close(passed, frames[:, :, -1].repeat(1, 2, 1, 1))


def test_rescaled_tensors_are_float32_and_the_rest_is_as_it_was(
    weights: dict[str, Tensor], padded: dict[str, Tensor]
) -> None:
    rescaled = {key for key, value in padded.items() if value.dtype == torch.float32}
    assert rescaled == {key for key in weights if key.endswith(".gamma") or ".to_qkv." in key}
    for key in weights.keys() - rescaled:
        assert padded[key].dtype == torch.float16
        assert torch.count_nonzero(padded[key]) == torch.count_nonzero(weights[key])
        assert padded[key].double().sum() == weights[key].double().sum()


def test_padding_to_its_own_width_changes_no_number(weights: dict[str, Tensor]) -> None:
    same = pad_demo_vae.pad_weights(weights, 16)
    assert same.keys() == weights.keys()
    assert all(torch.equal(same[key].float(), weights[key].float()) for key in weights)


def test_padding_leaves_its_input_alone(weights: dict[str, Tensor]) -> None:
    wide = {key: value.float() for key, value in weights.items()}
    pad_demo_vae.pad_weights(wide, 32)
    assert all(torch.equal(wide[key], weights[key].float()) for key in weights)


@pytest.mark.parametrize("width", [8, 40, 0])
def test_refuses_a_width_that_is_no_multiple(weights: dict[str, Tensor], width: int) -> None:
    with pytest.raises(ValueError, match="multiple"):
        pad_demo_vae.pad_weights(weights, width)


def test_command_writes_a_whole_file(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    target = tmp_path / "demo_vae_32.safetensors"
    target.write_bytes(b"an older one")
    pad_demo_vae.main([str(ASSET), str(target), "--width", "32"])
    assert list(tmp_path.iterdir()) == [target]
    written, expected = load_file(target), pad_demo_vae.pad_weights(weights, 32)
    assert written.keys() == expected.keys()
    assert all(torch.equal(written[key], expected[key]) for key in expected)


@pytest.mark.parametrize("content", [None, b"no tensors", b""])
def test_command_refuses_what_is_no_vae(
    tmp_path: Path, content: bytes | None, capsys: pytest.CaptureFixture[str]
) -> None:
    source, target = tmp_path / "source.safetensors", tmp_path / "target.safetensors"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(SystemExit) as caught:
        pad_demo_vae.main([str(source), str(target)])
    assert caught.value.code == 2
    assert str(source) in capsys.readouterr().err
    assert not target.exists()


def test_command_refuses_another_architecture_and_a_missing_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other.safetensors"
    save_file({"decoder.conv_in.weight": torch.zeros(4)}, other)
    with pytest.raises(SystemExit):
        pad_demo_vae.main([str(other), str(tmp_path / "target.safetensors")])
    assert "not a Qwen-Image" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        pad_demo_vae.main([str(ASSET), str(tmp_path / "absent" / "target.safetensors"), "--width", "32"])
    assert "absent" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [other]
