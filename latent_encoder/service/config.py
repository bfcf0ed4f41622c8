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

_BROKER = re.compile(r"(?:[A-Z_]+://)?(?:\[[0-9A-Fa-f:.]+\]|[^\s:/,\[\]]+)(?::(?P<port>[0-9]{1,5}))?")
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


def _brokers(text: str) -> str:
    """Addresses of brokers; librdkafka would take what is wrong in one for something else, or leave it out."""
    for broker in text.split(","):
        found = _BROKER.fullmatch(broker.strip())
        if not found or not 0 < int(found["port"] or 9092) < 1 << 16:
            raise ValueError("host:port, such as localhost:9092, several separated by commas")
    return text


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


def _upper(value: Any) -> Any:
    return value.upper() if isinstance(value, str) else value


AbsolutePath = Annotated[Path, AfterValidator(_absolute)]
Folders = Annotated[list[AbsolutePath], NoDecode, BeforeValidator(_split), AfterValidator(_folders)]
Servers = Annotated[list[Annotated[str, AfterValidator(_server)]], NoDecode, BeforeValidator(_split)]
Origins = Annotated[list[Annotated[str, AfterValidator(_origin)]], NoDecode, BeforeValidator(_split)]
Mappings = Annotated[list[Annotated[str, AfterValidator(_mapping)]], NoDecode, BeforeValidator(_split)]
Token = Annotated[SecretStr, AfterValidator(_token)]
Brokers = Annotated[str, AfterValidator(_brokers)]
Topic = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,249}$")]
WorkerId = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
SecurityProtocol = Annotated[Literal["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"], BeforeValidator(_lower)]
SaslMechanism = Annotated[Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"], BeforeValidator(_upper)]
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
    optimize: Annotated[Literal["auto", "off"], BeforeValidator(_lower)] = _setting(
        "LATENT_ENCODER_OPTIMIZE",
        "auto: encode the faster way where the VAE has one and it gives the same latents. A workflow of yours says so"
        " itself.",
        default="auto",
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

    # Kafka
    kafka_bootstrap_servers: Brokers = _setting(
        "KAFKA_BOOTSTRAP_SERVERS",
        "The brokers to begin with: host:port." + _REPEATED,
        default="localhost:9092",
        min_length=1,
    )
    kafka_security_protocol: SecurityProtocol = _setting(
        "KAFKA_SECURITY_PROTOCOL", "How the brokers are spoken to.", default="plaintext"
    )
    kafka_sasl_mechanism: SaslMechanism | None = _setting(
        "KAFKA_SASL_MECHANISM", "How a user proves who it is.", default=None
    )
    kafka_sasl_username: str | None = _setting("KAFKA_SASL_USERNAME", "The user's name.", default=None)
    kafka_sasl_password: SecretStr | None = _setting("KAFKA_SASL_PASSWORD", "The user's password.", default=None)
    kafka_ssl_ca_location: AbsolutePath | None = _setting(
        "KAFKA_SSL_CA_LOCATION", "The file of the authorities that the brokers' certificates come from.", default=None
    )
    kafka_ssl_certificate_location: AbsolutePath | None = _setting(
        "KAFKA_SSL_CERTIFICATE_LOCATION", "The file of this client's own certificate.", default=None
    )
    kafka_ssl_key_location: AbsolutePath | None = _setting(
        "KAFKA_SSL_KEY_LOCATION", "The file of its private key.", default=None
    )
    kafka_ssl_key_password: SecretStr | None = _setting(
        "KAFKA_SSL_KEY_PASSWORD", "The password of that key.", default=None
    )
    kafka_ssl_endpoint_identification_algorithm: Literal["https", "none"] = _setting(
        "KAFKA_SSL_ENDPOINT_IDENTIFICATION_ALGORITHM",
        "Whether a broker's certificate must bear its host's name.",
        default="https",
    )
    kafka_request_topic: Topic = _setting(
        "KAFKA_REQUEST_TOPIC", "The topic that requests come from.", default="latent-encoder-requests"
    )
    kafka_response_topic: Topic = _setting(
        "KAFKA_RESPONSE_TOPIC", "The topic that answers go to.", default="latent-encoder-responses"
    )
    kafka_dlq_topic: Topic = _setting(
        "KAFKA_DLQ_TOPIC", "The topic for requests that failed.", default="latent-encoder-dlq"
    )
    kafka_consumer_group: str = _setting(
        "KAFKA_CONSUMER_GROUP", "The group that the workers share.", default="latent-encoder-group", min_length=1
    )
    kafka_delivery: Literal["exactly_once", "at_least_once"] = _setting(
        "KAFKA_DELIVERY",
        "exactly_once: answer and offset in one transaction. at_least_once: without, an answer may come twice.",
        default="exactly_once",
    )
    kafka_group_protocol: Literal["classic", "consumer"] = _setting(
        "KAFKA_GROUP_PROTOCOL", "How the group shares the partitions; consumer is KIP-848.", default="classic"
    )
    kafka_config_file: AbsolutePath | None = _setting(
        "KAFKA_CONFIG_FILE", "A client.properties file with further settings of librdkafka's.", default=None
    )

    # Running
    timeout: float = _setting(
        "LATENT_ENCODER_TIMEOUT", "How many seconds one picture may take.", default=600.0, gt=0, le=1_000_000
    )
    worker_id: WorkerId | None = _setting(
        "LATENT_ENCODER_WORKER_ID",
        "This worker's name on the ComfyUI servers and for Kafka. Default: the host's name and a mark of STATE_DIR; a"
        " number that is free follows either on the servers, and the default for Kafka.",
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


SECRET_FILES: dict[str, str] = {
    key: f"{info.validation_alias}_FILE"
    for key, info in Settings.model_fields.items()
    if "SecretStr" in repr(info.annotation) or key == "kafka_sasl_username"
}
"""Settings that may also be given as the file that holds the value, as Docker and Kubernetes lay secrets."""

NAMES: dict[str, str] = {key: str(info.validation_alias) for key, info in Settings.model_fields.items()}
"""Each attribute's setting: ``{"engine": "LATENT_ENCODER_ENGINE", ...}``."""
