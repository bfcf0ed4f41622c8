#!/usr/bin/env python3
"""Encode a picture in a real ComfyUI, decode the latent file back, and say what came of it. Where there is no ComfyUI,
the embedded engine encodes, and nothing is decoded.

    python tools/demo.py [--image photo.jpg] [--vae name]

Everything that it makes is in ``.demo/``, the base directory of the ComfyUI that it starts; the models are those of the
ComfyUI that was found. The workflows are ``workflows/api/encode.json`` and ``decode.json``.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

ROOT = Path(__file__).absolute().parents[1]
sys.path.insert(0, str(ROOT))  # ComfyUI runs in a process of its own and sees nothing of this

from latent_encoder.errors import LatentEncoderError  # noqa: E402
from latent_encoder.images import check_image  # noqa: E402
from latent_encoder.models import DEFAULT_VAE, EncodeRequest, LatentRecord  # noqa: E402
from latent_encoder.service.engines.comfyui.checkout import find_comfyui  # noqa: E402
from latent_encoder.service.engines.comfyui.client import ComfyUIClient, PromptRejected  # noqa: E402
from latent_encoder.service.engines.comfyui.failures import from_history, from_rejection  # noqa: E402
from latent_encoder.service.engines.comfyui.launch import our_server  # noqa: E402

BASE = ROOT / ".demo"
DEMO_VAE = "demo_vae.safetensors"
DEMO_VAE_WIDE = "demo_vae_96.safetensors"

Prompt = dict[str, dict[str, Any]]


def main() -> int:
    """Run the demo: 0 when it went well, 1 for a failure that it explained, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(description="Encode a picture in ComfyUI and decode it back.")
    parser.add_argument("--image", type=Path, help="default: a photograph that scikit-image ships")
    parser.add_argument("--vae", help=f"a name in ComfyUI's models/vae; default: {DEFAULT_VAE}")
    parser.add_argument("--python", default=sys.executable, help="the Python that runs ComfyUI; default: this one")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _as_keyboard_interrupt)  # so that the server is stopped, too
    try:
        demo(options.image, options.vae, options.python)
    except LatentEncoderError as error:
        print(f"\n{error.code}: {error.message}\nHint: {error.hint}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    return 0


def demo(image: Path | None, vae: str | None, python: str) -> None:
    """Start ComfyUI, encode, decode, print.

    Raises:
        LatentEncoderError: any step's failure, with its code.
    """
    data, name = read_picture(image)
    check_image(data)
    comfyui = find_comfyui()
    if comfyui is None:
        demo_without_comfyui(data, name, vae)
        return
    server = our_server(comfyui, BASE, python=python, pack=ROOT)
    print(f"Starting ComfyUI ({comfyui}) ...", flush=True)
    start = time.monotonic()
    with server, ComfyUIClient(server.url) as client:
        started = time.monotonic() - start
        vae = vae or choose_vae(client)
        record, encoded = encode(client, data, name, vae)
        picture, decoded = decode(client, record, vae)
    print_results(record, data, picture, {"start ComfyUI": started, "encode": encoded, "decode": decoded})


def demo_without_comfyui(data: bytes, name: str, vae: str | None) -> None:
    """The same by the service's encoder, which needs no ComfyUI; nothing is decoded."""
    from latent_encoder.service.config import Settings
    from latent_encoder.service.encoder import Encoder
    from latent_encoder.service.engines.embedded import EmbeddedEngine

    print("No ComfyUI is found: the embedded engine (diffusers) encodes.", flush=True)
    models, picture = BASE / "models", BASE / "input" / name
    for folder in (models / "vae", picture.parent):
        folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(ROOT / "assets" / DEMO_VAE, models / "vae" / DEMO_VAE)
    picture.write_bytes(data)
    engine = EmbeddedEngine(models)
    vae = vae or (DEFAULT_VAE if DEFAULT_VAE in engine.vaes() else DEMO_VAE)
    print(f"Encoding {name} with {vae} ...", flush=True)
    engine.start()
    settings = Settings(output_dir=BASE / "output", input_roots=[picture.parent], state_dir=BASE / "state")
    answer = Encoder(engine, settings).encode_image_to_latent(
        EncodeRequest(image_path=str(picture), vae_model_name=vae)
    )
    engine.close()
    if answer.error_code:
        raise LatentEncoderError(answer.error_code, answer.error_message or "", answer.error_hint)
    seconds = answer.metadata["processing_time_ms"] / 1000
    print_record({key: value for key, value in answer.metadata.items() if key in LatentRecord.model_fields})
    print(f"Time:         encode {seconds:.1f} s (the loading of the VAE included)")


def read_picture(path: Path | None) -> tuple[bytes, str]:
    """The picture's bytes and name."""
    if path is None:
        from skimage.data import astronaut

        buffer = io.BytesIO()
        Image.fromarray(astronaut()).save(buffer, "PNG")
        return buffer.getvalue(), "astronaut.png"
    try:
        return path.read_bytes(), path.name
    except FileNotFoundError as error:
        raise LatentEncoderError("IMAGE_NOT_FOUND", f"There is no picture '{path}'.", "Check its name.") from error
    except OSError as error:
        raise LatentEncoderError("IMAGE_INVALID", f"'{path}' cannot be read: {error.strerror}.") from error


def choose_vae(client: ComfyUIClient) -> str:
    """The Qwen-Image VAE; where ComfyUI does not have it, the demo VAE in the width that this ComfyUI reads."""
    names = client.object_info("VAELoader")["VAELoader"]["input"]["required"]["vae_name"][0]
    if DEFAULT_VAE in names:
        return DEFAULT_VAE
    demo_vae = DEMO_VAE_WIDE if DEMO_VAE_WIDE in names else DEMO_VAE  # set-up lays the wide one only where it is needed
    if demo_vae not in names:
        reason = f"ComfyUI has neither {DEFAULT_VAE} nor {demo_vae} in models/vae."
        raise LatentEncoderError("VAE_MODEL_NOT_FOUND", reason, "Run 'make setup'.")
    print(f"{DEFAULT_VAE} is not there ('make setup' fetches it); using the small {demo_vae}.", flush=True)
    return demo_vae


def encode(client: ComfyUIClient, data: bytes, name: str, vae: str) -> tuple[dict[str, Any], float]:
    """Run ``encode.json`` on the picture; returns the latent file's record and the seconds."""
    print(f"Encoding {name} with {vae} ...", flush=True)
    uploaded = client.upload_image(data, name)
    prompt = workflow("encode", VAELoader={"vae_name": vae}, EncodeToLatentFile={"image": uploaded["name"]})
    start = time.monotonic()
    outputs = run(client, prompt)
    return next(output["latent_record"][0] for output in outputs if "latent_record" in output), time.monotonic() - start


def decode(client: ComfyUIClient, record: dict[str, Any], vae: str) -> tuple[dict[str, str], float]:
    """Run ``decode.json`` on the latent file; returns ComfyUI's name of the picture and the seconds."""
    print("Decoding the latent file ...", flush=True)
    name = "/".join(filter(None, (record["subfolder"], record["filename"])))
    latent = {"latent_file": f"{name} [{record['type']}]"}
    start = time.monotonic()
    outputs = run(client, workflow("decode", VAELoader={"vae_name": vae}, LoadLatentFromDisk=latent))
    return next(output["images"][0] for output in outputs if "images" in output), time.monotonic() - start


def workflow(name: str, **inputs: dict[str, Any]) -> Prompt:
    """A prompt of ``workflows/api`` with the given inputs set, by the node's class."""
    prompt: Prompt = json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))
    for node in prompt.values():
        node["inputs"].update(inputs.get(node["class_type"], {}))
    return prompt


def run(client: ComfyUIClient, prompt: Prompt) -> list[dict[str, Any]]:
    """What the nodes of a prompt have put out.

    Raises:
        LatentEncoderError: the code that our node gave, or the one that fits what ComfyUI says.
    """
    try:
        entry = client.run(prompt, timeout=1800)
    except PromptRejected as rejected:
        raise from_rejection(rejected) from rejected
    failure = from_history(entry)
    if failure is not None:
        raise failure
    return list(entry["outputs"].values())


def print_results(record: dict[str, Any], original: bytes, picture: dict[str, str], seconds: dict[str, float]) -> None:
    """The record, the files, the quality of the round trip, the times."""
    print_record(record)
    decoded = BASE / picture["type"] / picture["subfolder"] / picture["filename"]
    print(f"Decoded:      {decoded}")
    print(
        f"Round trip:   {psnr(original, decoded, tuple(record['scaled_size'])):.1f} dB PSNR against the scaled picture"
    )
    print(f"Time:         {', '.join(f'{step} {spent:.1f} s' for step, spent in seconds.items())}")


def print_record(record: dict[str, Any]) -> None:
    """The record, then the file."""
    print("\nRecord:")
    for key, value in record.items():
        print(f"  {key}: {json.dumps(value)}")
    print(f"\nLatent file:  {record['path']} ({record['file_bytes']:,} bytes)")


def psnr(original: bytes, decoded: Path, scaled_size: tuple[int, int]) -> float:
    """Peak signal-to-noise ratio in dB between the picture as it was scaled and what came back.

    Scales as ComfyUI's ``lanczos`` does (Pillow, 8 bit), then cuts the middle out as VAEEncode does, whose sides are
    multiples of 8.
    """
    with Image.open(io.BytesIO(original)) as opened, Image.open(decoded) as result:
        scaled = ImageOps.exif_transpose(opened).convert("RGB").resize(scaled_size, Image.Resampling.LANCZOS)
        width, height = result.size
        left, top = (scaled.width - width) // 2, (scaled.height - height) // 2
        expected = np.asarray(scaled.crop((left, top, left + width, top + height)), dtype=np.float64)
        actual = np.asarray(result.convert("RGB"), dtype=np.float64)
    error = float(np.mean((expected - actual) ** 2))
    return float("inf") if error == 0 else 10 * float(np.log10(255.0**2 / error))


def _as_keyboard_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
