"""The families of VAEs that the embedded engine knows, each with diffusers' own class.

A family is told by the keys of the state dict and configured by its shapes; loading is strict, since a VAE with a
piece missing encodes noise and says nothing. Nothing is ever fetched: diffusers' ``from_single_file`` would ask the
hub for a configuration.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from latent_encoder.errors import LatentEncoderError
from latent_encoder.fast_encoder import FastEncoder, understands

from .devices import pick_dtype
from .vae_files import ASK_COMFYUI, PIXEL_SPACE, REPLACE, VaeFiles, read_weights

if TYPE_CHECKING:
    import torch

    from .vae_files import Weights

TINY_SCALES = {
    "taesd": (0.18215, 0.0),
    "taesdxl": (0.13025, 0.0),
    "taesd3": (1.5305, 0.0609),
    "taef1": (0.3611, 0.1159),
}
"""What ComfyUI divides a tiny encoder's result by, and then adds."""

TRAINING_KEYS = ("loss.", "model_ema.")
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


class Vae:
    """A VAE's encoder.

    Args:
        module: diffusers' model; what only decodes may be missing.
        latent_of: the latent of pixels from -1 to 1, as ComfyUI's VAE gives it: not normalised.
        factor: how many pixels of a side become one number; the picture is cropped to a multiple of it.
        channels: of the pixels; a fourth one, alpha, is all opaque.
        video: whether pixels and latent have a time axis before the height.
        half_types: the 16-bit types that ComfyUI lets the family compute in, the best first.
        weight_names: the model's parameters by the names of the original file, where ``FastEncoder`` understands them.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        latent_of: Callable[[torch.Tensor], torch.Tensor],
        *,
        factor: int = 8,
        channels: int = 3,
        video: bool = False,
        half_types: Iterable[str] = ("bfloat16",),
        weight_names: Mapping[str, str] | None = None,
    ) -> None:
        self._factor = factor
        self._module = module.eval().requires_grad_(False)
        self._latent_of = latent_of
        self._channels = channels
        self._video = video
        self._half_types = tuple(half_types)
        self._on_layer: Callable[[float], None] = lambda part: None
        self._weight_names = weight_names
        self._fast: FastEncoder | None = None
        self._layers_done = 0
        self._layers = [layer for layer in module.modules() if not any(layer.children())]
        for layer in self._layers:
            layer.register_forward_pre_hook(self._before_layer)

    def optimize(self) -> None:
        """Encode the faster way from now on, where there is one; to be called after ``move``."""
        import torch

        if self._weight_names:
            self._fast = FastEncoder(self._latent_of, self._original_weights, lambda part: self._on_layer(part))
            with torch.inference_mode():  # the self-check, so that no picture's progress shows it
                self._fast.trusts(torch.empty(1, self._channels, 1, 8, 8, dtype=self._dtype, device=self._device))

    @property
    def optimized(self) -> bool | None:
        """Whether the last picture was encoded the faster way; None where there is none, or it was not asked for."""
        return self._fast.optimized if self._fast else None

    def move(self, device: torch.device) -> None:
        """Move it to the device, in the dtype that is right there; needed before the first ``encode``."""
        import torch

        self._device = device
        self._dtype = pick_dtype(device, [getattr(torch, name) for name in self._half_types])
        torch.nn.Module.to(self._module, device, self._dtype)  # diffusers' own `to` warns of what is not the case here

    def encode(self, pixels: torch.Tensor, on_layer: Callable[[float], None]) -> torch.Tensor:
        """Encode one picture; one call at a time.

        Args:
            pixels: (1, 3, height, width), from 0 to 1.
            on_layer: called before each layer with the part that is done; what it raises ends the call.

        Returns:
            float32 on the CPU, contiguous, of shape (1, channels, [1,] height / factor, width / factor).
        """
        import torch

        self._on_layer, self._layers_done = on_layer, 0
        pixels = crop(pixels, self._factor)
        if self._channels > 3:
            pixels = torch.nn.functional.pad(pixels, (0, 0, 0, 0, 0, self._channels - 3), value=1.0)
        if self._video:
            pixels = pixels.unsqueeze(2)
        with torch.inference_mode():
            pixels = (pixels * 2 - 1).to(self._dtype).to(self._device)
            if self._fast:
                self._fast.optimized = None
            latent = self._fast.encode(pixels) if self._fast else self._latent_of(pixels)
            # Copied here, so that whoever lays out the file need not, on a thread with OpenMP helpers of its own.
            return latent.to("cpu", torch.float32).contiguous()

    def _original_weights(self) -> dict[str, torch.Tensor]:
        parameters = dict(self._module.named_parameters())
        return {name: parameters[current] for name, current in (self._weight_names or {}).items()}

    def _before_layer(self, *_: Any) -> None:
        self._on_layer(min(1.0, self._layers_done / len(self._layers)))
        self._layers_done += 1


def crop(pixels: torch.Tensor, factor: int) -> torch.Tensor:
    """The middle of (..., height, width) whose sides are multiples of ``factor``."""
    height, width = (side - side % factor for side in pixels.shape[-2:])
    top, left = (side % factor // 2 for side in pixels.shape[-2:])
    return pixels[..., top : top + height, left : left + width]


def load_vae(files: VaeFiles, device: torch.device, *, optimize: bool) -> Vae:
    """Read a VAE into the device's memory.

    Args:
        optimize: encode the faster way, where there is one.

    Raises:
        LatentEncoderError: VAE_MODEL_INVALID for a damaged file and a family that is not known; OUT_OF_MEMORY.
    """
    vae = _read(files)
    vae.move(device)
    if optimize:
        vae.optimize()
    return vae


def _read(files: VaeFiles) -> Vae:
    import torch

    if files.name == PIXEL_SPACE:
        return Vae(torch.nn.Identity(), lambda pixels: pixels, factor=1)
    weights = [read_weights(path) for path in files.paths]
    if len(weights) == 2:
        return _tiny(files.name, *weights)
    keys = weights[0].keys()
    if "decoder.middle.0.residual.0.gamma" in keys and "decoder.head.0.gamma" in keys:
        return _wan(files.name, weights[0])
    if "decoder.conv_in.weight" in keys:
        diffusers_keys = "decoder.up_blocks.0.resnets.0.norm1.weight" in keys
        return (_kl_of_diffusers if diffusers_keys else _kl)(files.name, weights[0])
    raise unknown(files.name, "its keys are those of no family that is known here")


def unknown(name: str, reason: str) -> LatentEncoderError:
    """The error for a VAE that is read, but not understood."""
    return LatentEncoderError("VAE_MODEL_INVALID", f"'embedded' cannot encode with '{name}': {reason}.", ASK_COMFYUI)


def import_diffusers() -> Any:
    """diffusers, told to stay off the network; the first time it takes seconds."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import diffusers

    return diffusers


def _converter(name: str) -> Callable[..., Weights]:
    """diffusers' own renaming of an original file's keys."""
    import_diffusers()
    converter: Callable[..., Weights] = getattr(import_module("diffusers.loaders.single_file_utils"), name)
    return converter


def _wan(name: str, weights: Weights) -> Vae:
    """Wan 2.1's and Qwen-Image's VAE, of any width. AutoencoderKLQwenImage computes the very same, bit for bit; this
    class also tells the decoder's width and the channels apart."""
    model, convert = import_diffusers().AutoencoderKLWan, _converter("convert_wan_vae_to_diffusers")

    try:
        channels = weights["encoder.conv1.weight"].shape[1]
        config = {
            "base_dim": weights["encoder.conv1.weight"].shape[0],
            "decoder_base_dim": weights["decoder.head.0.gamma"].shape[0],
            "z_dim": weights["conv2.weight"].shape[0],
            "in_channels": channels,
            "out_channels": weights["decoder.head.2.weight"].shape[0],
        }
        converted = convert(weights)
    except (KeyError, IndexError, ValueError) as error:
        raise _incomplete(name, error) from error
    _check_all_converted(name, weights, converted)
    module = _build(model, config, converted, name)
    current = {id(tensor): key for key, tensor in converted.items()}
    names = {key: current.get(id(tensor)) for key, tensor in weights.items()}
    encoder = {key: new for key, new in names.items() if new and not key.startswith(("decoder.", "conv2."))}
    return Vae(
        module,
        lambda pixels: module.encode(pixels).latent_dist.mode(),
        channels=channels,
        video=True,
        half_types=("bfloat16", "float16"),
        weight_names=encoder if understands(encoder) else None,
    )


def _kl(name: str, weights: Weights) -> Vae:
    """The VAE of SD, SDXL, SD3 and Flux, with the keys of the original files."""
    convert = _converter("convert_ldm_vae_checkpoint")
    weights = {key: tensor for key, tensor in weights.items() if not key.startswith(TRAINING_KEYS)}
    try:
        config = _kl_config(weights, "encoder.down.{}.block.{}.conv1.weight")
        converted = convert(weights, config)
    except (KeyError, IndexError, ValueError) as error:
        raise _incomplete(name, error) from error
    _check_all_converted(name, weights, converted)
    return _kl_of(name, config, converted)


def _kl_of_diffusers(name: str, weights: Weights) -> Vae:
    """The same VAE with the keys of diffusers' own files, old ones too."""
    for old, new in OLD_ATTENTION.items():
        weights = {key.replace(f"attentions.0{old}", f"attentions.0{new}"): value for key, value in weights.items()}
    try:
        config = _kl_config(weights, "encoder.down_blocks.{}.resnets.{}.conv1.weight")
    except (KeyError, IndexError) as error:
        raise _incomplete(name, error) from error
    return _kl_of(name, config, weights)


def _kl_config(weights: Weights, block: str) -> dict[str, Any]:
    widths: list[int] = []
    while block.format(len(widths), 0) in weights:
        widths.append(weights[block.format(len(widths), 0)].shape[0])
    layers = 0
    while block.format(0, layers) in weights:
        layers += 1
    return {
        "in_channels": weights["encoder.conv_in.weight"].shape[1],
        "out_channels": weights["decoder.conv_out.weight"].shape[0],
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "block_out_channels": widths or [0],
        "layers_per_block": layers,
        "latent_channels": weights["decoder.conv_in.weight"].shape[1],
        "use_quant_conv": "quant_conv.weight" in weights,
        "use_post_quant_conv": "post_quant_conv.weight" in weights,
    }


def _kl_of(name: str, config: dict[str, Any], weights: Weights) -> Vae:
    module = _build(import_diffusers().AutoencoderKL, config, weights, name)
    factor = 2 ** (len(config["block_out_channels"]) - 1)
    return Vae(module, lambda pixels: module.encode(pixels).latent_dist.mode(), factor=factor)


def _tiny(name: str, encoder: Weights, decoder: Weights) -> Vae:
    """TAESD and its kin."""
    import torch

    try:
        channels = decoder["1.weight"].shape[1]
        # In the original decoder a clamp, which has no weights, counts as the first layer.
        shifted = {f"{int(key.partition('.')[0]) - 1}.{key.partition('.')[2]}": key for key in decoder}
    except (KeyError, IndexError, ValueError) as error:
        raise _incomplete(name, error) from error
    weights = {f"encoder.layers.{key}": tensor for key, tensor in encoder.items()}
    weights |= {f"decoder.layers.{new}": decoder[key] for new, key in shifted.items()}
    module = _build(import_diffusers().AutoencoderTiny, {"latent_channels": channels}, weights, name)
    scale, shift = map(torch.tensor, TINY_SCALES[name])

    def latent_of(pixels: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = module.encode(pixels).latents
        return latents / scale.to(latents) + shift.to(latents)

    return Vae(module, latent_of)


def _build(model: Any, config: dict[str, Any], weights: Weights, name: str) -> Any:
    """The model with exactly these weights, without its decoder.

    Raises:
        LatentEncoderError: VAE_MODEL_INVALID where a key or a shape is not the model's.
    """
    import torch

    try:
        with torch.device("meta"):  # no numbers are made up only to be replaced
            module = model(**config)
    except Exception as error:  # shapes that no such model has
        raise unknown(name, f"its shapes are not those of an {model.__name__}") from error
    wanted = module.state_dict()
    problems = {
        "missing": wanted.keys() - weights.keys(),
        "not known": weights.keys() - wanted.keys(),
        "of another shape": [key for key in wanted.keys() & weights.keys() if wanted[key].shape != weights[key].shape],
        "whole numbers": [key for key in weights if not weights[key].is_floating_point()],
    }
    found = [f"{len(keys)} tensors are {what} (such as '{min(keys)}')" for what, keys in problems.items() if keys]
    if found:
        raise unknown(name, f"as an {model.__name__}, {'; '.join(found)}")
    module.load_state_dict(weights, strict=True, assign=True)
    module.decoder = torch.nn.Identity()
    return module


def _check_all_converted(name: str, weights: Weights, converted: Weights) -> None:
    """diffusers' conversions leave out a key that they do not know, or give two keys one name."""
    if len(converted) != len(weights):
        raise unknown(name, f"{len(weights) - len(converted)} of its tensors have no place in such a VAE")


def _incomplete(name: str, error: Exception) -> LatentEncoderError:
    return LatentEncoderError("VAE_MODEL_INVALID", f"'{name}' is incomplete ({error}).", REPLACE)
