"""Which ComfyUI set-up, demo and service take."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.engines.comfyui import checkout


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory, no COMFYUI_PATH, and a pack that lies in no custom_nodes."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(checkout, "__file__", str(tmp_path / "elsewhere" / "checkout.py"))
    return tmp_path


def make_comfyui(folder: Path) -> Path:
    (folder / "comfy").mkdir(parents=True)
    (folder / "main.py").touch()
    (folder / "comfy" / "cli_args.py").touch()
    return folder


def write_config(home: Path, text: str) -> None:
    config = home / checkout.COMFY_CLI_CONFIG.get(sys.platform, ".config/comfy-cli/config.ini")
    config.parent.mkdir(parents=True)
    config.write_text(text, encoding="utf-8")


def test_none(home: Path) -> None:
    assert checkout.find_comfyui() is None
    assert checkout.main() == 1


def test_the_order(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    last = make_comfyui(home / "ComfyUI")
    assert checkout.find_comfyui() == last
    usual = make_comfyui(home / "comfy" / "ComfyUI")
    assert checkout.find_comfyui() == usual
    workspace = make_comfyui(home / "my 100% ComfyUI")
    write_config(home, f"[DEFAULT]\ndefault_workspace = {workspace}\nrecent_workspace = {last}\n")
    assert checkout.find_comfyui() == workspace
    enclosing = make_comfyui(home / "enclosing")
    monkeypatch.setattr(checkout, "__file__", str(enclosing / "custom_nodes" / "any name" / "a" / "checkout.py"))
    assert checkout.find_comfyui() == enclosing
    named = make_comfyui(home / "named")
    monkeypatch.setenv("COMFYUI_PATH", str(named))
    assert checkout.find_comfyui() == named
    assert checkout.main() == 0
    assert capsys.readouterr().out == f"{named}\n"


def test_a_wrong_path_is_never_replaced(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_comfyui(home / "ComfyUI")
    monkeypatch.setenv("COMFYUI_PATH", str(home / "nothing"))
    with pytest.raises(LatentEncoderError) as caught:
        checkout.find_comfyui()
    assert caught.value.code == "ENGINE_UNAVAILABLE"
    assert checkout.main() == 2


@pytest.mark.parametrize("text", ["no section\n", "[DEFAULT]\n", "[DEFAULT]\ndefault_workspace = /nothing/here\n"])
def test_a_useless_config_is_passed_over(home: Path, text: str) -> None:
    usual = make_comfyui(home / "ComfyUI")
    write_config(home, text)
    assert checkout.find_comfyui() == usual
