"""The service's settings: command line, then environment, then ``.env`` in the working directory, then the default.

``Settings(**values)`` takes what it is given and reads nothing else; ``config_sources.load`` reads all sources.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, StringConstraints
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from latent_encoder.errors import LatentEncoderError
from latent_encoder.images import MAX_MEGAPIXELS, MIN_MEGAPIXELS, UpscaleMethod
from latent_encoder.models import DEFAULT_VAE

from .engines.comfyui.address import parse_address

_REPEATED = " Several are separated by commas."


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path.expanduser()))


def _split(value: Any) -> Any:
    """A comma-separated text as a list; what is a list already stays as it is."""
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _server(url: str) -> str:
    """A ComfyUI server's address, without a slash at its end."""
    try:
        parse_address(url)
    except LatentEncoderError as error:
        words = "an address such as http://127.0.0.1:8188, or http://host/path where a proxy wants one"
        raise ValueError(words) from error
    return url.rstrip("/")


def _origin(origin: str) -> str:
    """What a browser sends as the Origin of a page."""
    parts = urlsplit(origin)
    if origin != "*" and (parts.scheme not in ("http", "https") or origin != f"{parts.scheme}://{parts.netloc}"):
        raise ValueError("an origin such as https://example.org, without a path, or * for every origin")
    return origin


def _mapping(entry: str) -> str:
    """One word of ``--map``; what it names is looked for when the workflow is read."""
    name, equals, target = entry.partition("=")
    if not (name and equals and target):
        raise ValueError("a field and a node's input, such as image=12.image")
    return entry


def _folders(paths: list[Path]) -> list[Path]:
    if not paths:
        raise ValueError("at least one folder")
    return paths


def _token(token: SecretStr) -> SecretStr:
    if not re.fullmatch(r"[\x21-\x7e]+", token.get_secret_value()):
        raise ValueError("printable ASCII without spaces: it travels in an HTTP header")
    return token


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
Folders = Annotated[list[AbsolutePath], NoDecode, BeforeValidator(_split), AfterValidator(_folders)]
Servers = Annotated[list[Annotated[str, AfterValidator(_server)]], NoDecode, BeforeValidator(_split)]
Origins = Annotated[list[Annotated[str, AfterValidator(_origin)]], NoDecode, BeforeValidator(_split)]
Mappings = Annotated[list[Annotated[str, AfterValidator(_mapping)]], NoDecode, BeforeValidator(_split)]
Token = Annotated[SecretStr, AfterValidator(_token)]
WorkerId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
LogLevel = Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)]


def _setting(name: str, description: str, **options: Any) -> Any:
    return Field(validation_alias=name, description=description, **options)


class Settings(BaseSettings):
    """Every setting. Paths are absolute, relative ones taken from the working directory; ``~`` is expanded.

    Raises:
        ValidationError: a value that is not allowed.
    """

    model_config = SettingsConfigDict(
        populate_by_name=True, frozen=True, case_sensitive=True, env_ignore_empty=True, extra="forbid"
    )

    # ComfyUI and the engine
    engine: Literal["comfyui", "embedded"] | None = _setting(
        "LATENT_ENCODER_ENGINE",
        "What encodes: a ComfyUI server, or diffusers in this process. Default: comfyui; embedded where none is found.",
        default=None,
    )
    comfyui_url: Servers = _setting(
        "COMFYUI_URL",
        "The ComfyUI servers to send work to. Default: the one on 127.0.0.1:8188, else one that is started here."
        + _REPEATED,
        default=[],
        repr=False,  # may hold a password
    )
    comfyui_path: AbsolutePath | None = _setting(
        "COMFYUI_PATH", "The folder with ComfyUI's main.py, to start it here. Default: looked for.", default=None
    )
    comfyui_token: Token | None = _setting(
        "LATENT_ENCODER_COMFYUI_TOKEN", "The bearer token that the ComfyUI servers ask for.", default=None
    )
    workflow: AbsolutePath | None = _setting(
        "LATENT_ENCODER_WORKFLOW", "A workflow in API format to use in place of the built-in one.", default=None
    )
    map: Mappings = _setting(
        "LATENT_ENCODER_MAP",
        "Which input of that workflow a field goes into: image=12.image." + _REPEATED,
        default=[],
    )
    model_dir: AbsolutePath | None = _setting(
        "MODEL_DIR",
        "A models folder laid out as ComfyUI's. Default: <COMFYUI_PATH>/models, else ./models.",
        default=None,
    )

    # How pictures are encoded where a request does not say
    vae_model_name: str = _setting(
        "VAE_MODEL_NAME", "The VAE's file name in models/vae.", default=DEFAULT_VAE, min_length=1
    )
    upscale_method: UpscaleMethod = _setting("UPSCALE_METHOD", "How pictures are scaled.", default="lanczos")
    megapixels: float = _setting(
        "MEGAPIXELS",
        "The size that they are scaled to; a megapixel is 1024 x 1024 pixels.",
        default=1.0,
        ge=MIN_MEGAPIXELS,
        le=MAX_MEGAPIXELS,
    )

    # Folders
    output_dir: AbsolutePath = _setting("OUTPUT_DIR", "Where latent files go.", default=Path("output"))
    output_roots: Folders = _setting(
        "LATENT_ENCODER_OUTPUT_ROOTS",
        "The folders that a request may write to. Default: OUTPUT_DIR." + _REPEATED,
        default_factory=lambda values: [values.get("output_dir", Path("output"))],
    )
    input_roots: Folders = _setting(
        "LATENT_ENCODER_INPUT_ROOTS",
        "The folders that a request may read pictures from. Default: the working directory." + _REPEATED,
        default_factory=lambda: [Path()],
    )
    state_dir: AbsolutePath = _setting(
        "LATENT_ENCODER_STATE_DIR", "Jobs, slots and uploads are kept here.", default=Path(".latent_encoder")
    )

    # The HTTP API
    rest_host: str = _setting("REST_HOST", "The address to listen on.", default="127.0.0.1", min_length=1)
    rest_port: int = _setting(
        "REST_PORT", "The port to listen on; 0 takes any free one and logs it.", default=8000, ge=0, le=65535
    )
    api_token: Token | None = _setting(
        "LATENT_ENCODER_API_TOKEN",
        "The bearer token that callers must send; wanted on any address but this machine's own.",
        default=None,
    )
    no_auth: bool = _setting(
        "LATENT_ENCODER_NO_AUTH", "Listen on other addresses without a token all the same.", default=False
    )
    cors_origins: Origins = _setting(
        "LATENT_ENCODER_CORS_ORIGINS", "The web pages that browsers may call from." + _REPEATED, default=[]
    )
    max_upload_mb: int = _setting(
        "LATENT_ENCODER_MAX_UPLOAD_MB", "The largest upload, in MB of 1,000,000 bytes.", default=100, ge=1, le=1_000_000
    )
    queue_size: int = _setting(
        "LATENT_ENCODER_QUEUE_SIZE",
        "How many requests may wait in each queue, /v1/encode's and the jobs'; more are turned away.",
        default=256,
        ge=1,
        le=1_000_000,
    )
    job_ttl_hours: float = _setting(
        "LATENT_ENCODER_JOB_TTL_HOURS", "How long a finished job is remembered.", default=168.0, gt=0, le=1_000_000
    )

    # Running
    timeout: float = _setting(
        "LATENT_ENCODER_TIMEOUT", "How many seconds one picture may take.", default=600.0, gt=0, le=1_000_000
    )
    worker_id: WorkerId | None = _setting(
        "LATENT_ENCODER_WORKER_ID",
        "This worker's name on the ComfyUI servers. Default: the host's name and a number that is free.",
        default=None,
    )
    log_level: LogLevel = _setting("LATENT_ENCODER_LOG_LEVEL", "What is logged: this and worse.", default="info")
    log_format: Literal["text", "json"] = _setting(
        "LATENT_ENCODER_LOG_FORMAT", "Log lines for people or for programs.", default="text"
    )

    @property
    def models_folder(self) -> Path:
        """MODEL_DIR, or the one that stands in for it."""
        return self.model_dir or (self.comfyui_path or Path.cwd()) / "models"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what is given: ``load`` reads the other sources, because it says where each value came from."""
        return (init_settings,)


NAMES: dict[str, str] = {key: str(info.validation_alias) for key, info in Settings.model_fields.items()}
"""Each attribute's setting: ``{"engine": "LATENT_ENCODER_ENGINE", ...}``."""
