"""The training of the demo VAE: the network, its export, the pictures and the two phases."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "tools"))  # the tools are scripts, they import one another from their own folder

import demo_vae_network  # noqa: E402
import train_demo_vae  # noqa: E402
from demo_vae_network import DemoVAE  # noqa: E402
from train_demo_vae import Budget, Crops  # noqa: E402

ASSET = ROOT / "assets" / "demo_vae.safetensors"


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def pictures() -> list[torch.Tensor]:
    """Two smooth pictures with an edge each, uint8 (3, 80, 96)."""
    y, x = torch.meshgrid(torch.linspace(0, 1, 80), torch.linspace(0, 1, 96), indexing="ij")
    first = torch.stack([x, y, (x > 0.5).float()])
    second = torch.stack([1 - x * y, (y > x).float(), 0.5 + 0.5 * torch.sin(9 * x)])
    return [(255 * picture).to(torch.uint8) for picture in (first, second)]


def test_export_has_the_keys_shapes_and_dtypes_of_the_asset() -> None:
    asset = load_file(ASSET)
    exported = demo_vae_network.export_weights(DemoVAE())
    assert {key: (value.shape, value.dtype) for key, value in exported.items()} == {
        key: (value.shape, value.dtype) for key, value in asset.items()
    }


def test_import_and_export_give_the_asset_back_bit_for_bit() -> None:
    asset = load_file(ASSET)
    exported = demo_vae_network.export_weights(demo_vae_network.import_weights(asset))
    assert exported.keys() == asset.keys()
    assert [key for key in asset if not torch.equal(asset[key], exported[key])] == []


def test_import_refuses_another_architecture() -> None:
    weights = load_file(ASSET)
    del weights["encoder.conv1.bias"]
    with pytest.raises(RuntimeError, match=r"encoder\.conv1\.bias"):
        demo_vae_network.import_weights(weights)
    with pytest.raises(KeyError):
        demo_vae_network.import_weights({"some.weight": torch.zeros(1)})


def test_exported_kernel_is_the_2d_convolution_on_one_frame() -> None:
    network = DemoVAE()
    exported = demo_vae_network.export_weights(network, torch.float32)
    picture = torch.randn(1, 3, 24, 16)
    causal = F.pad(picture.unsqueeze(2), (1, 1, 1, 1, 2, 0))  # two frames of zeros before the one frame
    three_d = F.conv3d(causal, exported["encoder.conv1.weight"], exported["encoder.conv1.bias"])
    torch.testing.assert_close(three_d[:, :, 0], network.encoder.conv1(picture))


@pytest.mark.parametrize(("name", "parts"), [("encoder.downsamples.5", 1), ("decoder.upsamples.3", 2)])
def test_time_convolutions_pass_the_newest_frame_on(name: str, parts: int) -> None:
    exported = demo_vae_network.export_weights(DemoVAE(), torch.float32)
    kernel = exported[f"{name}.time_conv.weight"]
    frames = torch.randn(1, kernel.shape[1], 3, 4, 4)
    passed = F.conv3d(frames, kernel, exported[f"{name}.time_conv.bias"])
    torch.testing.assert_close(passed[:, :, 0], frames[:, :, -1].repeat(1, parts, 1, 1))


def test_latent_is_an_eighth_of_the_sides() -> None:
    network = DemoVAE(width=8)
    latent = network.encode(torch.zeros(2, 3, 40, 64))
    assert latent.shape == (2, 16, 5, 8)
    assert network.decode(latent).shape == (2, 3, 40, 64)


def test_grown_branches_change_nothing_until_they_are_trained(pictures: list[torch.Tensor]) -> None:
    network = DemoVAE()
    network.initialise()
    crops = Crops(pictures, seed=1, batch_size=1).batch()
    with torch.no_grad():
        before = network.decode(network.encode(crops))
        network.grow_branches()
        after = network.decode(network.encode(crops))
    torch.testing.assert_close(after, before)
    assert all(block.branch for block in network.blocks())


def probe_loss(network: DemoVAE, pictures: list[torch.Tensor]) -> float:
    """The loss on crops that are not trained on, with the same noise on the latents each time."""
    torch.manual_seed(3)
    with torch.no_grad():
        return train_demo_vae.loss_of(network, Crops(pictures, seed=9, batch_size=2).batch()).item()


def test_phase_1_lowers_the_loss_with_the_branches_untouched(pictures: list[torch.Tensor]) -> None:
    network = DemoVAE()
    network.initialise()
    branches = {key: value.clone() for key, value in network.state_dict().items() if ".residual." in key}
    at_start = probe_loss(network, pictures)
    train_demo_vae.train_phase(network, Crops(pictures, 1, batch_size=2), Budget(0, 25), 2e-3, label="phase 1")
    assert probe_loss(network, pictures) < 0.8 * at_start
    assert all(torch.equal(network.state_dict()[key], value) for key, value in branches.items())


def test_phase_2_trains_the_branches_and_keeps_the_average(pictures: list[torch.Tensor]) -> None:
    network = DemoVAE()
    network.initialise()
    network.grow_branches()
    at_start = probe_loss(network, pictures)
    crops = Crops(pictures, 1, batch_size=2)
    kept = train_demo_vae.train_phase(network, crops, Budget(0, 12), 1e-3, label="phase 2", warm_up=2, cosine=True)
    assert probe_loss(network, pictures) < 0.9 * at_start
    # These started at zero; the average lags behind.
    for last, averaged in zip(network.blocks(), kept.blocks(), strict=True):
        trained = (last.proj if hasattr(last, "proj") else last.residual[6]).weight.abs().mean()
        lagging = (averaged.proj if hasattr(averaged, "proj") else averaged.residual[6]).weight.abs().mean()
        assert 0 < lagging < trained


@pytest.mark.parametrize(
    ("budget", "step", "seconds", "expected"),
    [
        (Budget(2), 10**6, 30.0, 0.25),
        (Budget(2, steps=40), 10, 1e6, 0.25),
        (Budget(2, steps=0), 0, 0.0, 1.0),
        (Budget(0), 0, 0.0, 1.0),
    ],
)
def test_budget(budget: Budget, step: int, seconds: float, expected: float) -> None:
    assert budget.progress(step, seconds) == expected


def test_crops_are_repeatable_and_in_range(pictures: list[torch.Tensor]) -> None:
    batch = Crops(pictures, seed=5).batch()
    assert batch.shape == (16, 3, 64, 64)
    assert batch.min() >= -1 and batch.max() <= 1
    assert torch.equal(batch, Crops(pictures, seed=5).batch())
    assert not torch.equal(batch, Crops(pictures, seed=6).batch())
    with pytest.raises(ValueError, match="no picture"):
        Crops([], seed=0)


def test_read_pictures_takes_stills_at_two_sizes(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (100, 100), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "animated.webp", save_all=True, append_images=frames[1:])
    Image.new("RGB", (1600, 800), "green").save(tmp_path / "large.webp", lossless=True)
    Image.new("RGBA", (64, 20)).save(tmp_path / "small.png")
    read = train_demo_vae.read_pictures(sorted(tmp_path.iterdir()))
    assert [tuple(picture.shape) for picture in read] == [(3, 384, 768), (3, 160, 320)]
    assert read[0].dtype == torch.uint8
    assert read[0][:, 5, 5].tolist() == [0, 128, 0]


def test_template_pictures_are_found_through_the_installed_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package, picture in (("comfyui_workflow_templates_media_x", "a.webp"), ("other_media", "b.webp")):
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "RECORD").write_text(f"templates/{picture},,\ntemplates/index.json,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = train_demo_vae.template_pictures()
    assert tmp_path / "templates" / "a.webp" in found
    assert not any(path.name == "b.webp" for path in found)
    assert {path.suffix for path in found} == {".webp"}


def test_command_writes_a_whole_file(
    tmp_path: Path, pictures: list[torch.Tensor], capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, picture in enumerate(pictures):
        Image.fromarray(np.ascontiguousarray(picture.permute(1, 2, 0).numpy())).save(folder / f"{number}.png")
    output = tmp_path / "new" / "vae.safetensors"
    arguments = [str(output), "--pictures", str(folder), "--held-out", str(folder / "1.png")]
    train_demo_vae.main([*arguments, "--phase1-steps", "2", "--phase2-steps", "1"])
    printed = capsys.readouterr().out
    assert printed.count("held out: 1 ") == 2
    assert list(output.parent.iterdir()) == [output]
    written = load_file(output)
    assert {key: value.shape for key, value in written.items()} == {
        key: value.shape for key, value in load_file(ASSET).items()
    }
    assert all(torch.isfinite(value).all() for value in written.values())


def test_command_without_pictures_says_where_to_get_some(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "vae.safetensors"
    with pytest.raises(SystemExit) as caught:
        train_demo_vae.main([str(output), "--pictures", str(tmp_path)])
    assert caught.value.code == 2
    assert "comfyui-workflow-templates-media-image" in capsys.readouterr().err
    assert not output.exists()
