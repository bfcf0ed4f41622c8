"""The ``comfyui`` engine: pictures go to a ComfyUI server, latent files come back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latent_encoder.errors import LatentEncoderError
from latent_encoder.service.engines.base import Call, EncodedLatent, EncodeJob

from .checkout import find_comfyui, is_comfyui
from .client import ComfyUIClient
from .connection import Connection, look_at, vae_names
from .member import Member
from .pool import Pool
from .running import ServerLost
from .sending import Sending
from .slots import Slots, worker_name
from .supervisor import Supervisor
from .workflow import Workflow, built_in
from .workflow_file import read_workflow

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings

USUAL_URL = "http://127.0.0.1:8188"
USUAL_SECONDS = 3.0
SLOTS_PER_SERVER = 3
OF_THIS_SERVER = ("VAE_MODEL_NOT_FOUND", "NODES_MISSING")

logger = logging.getLogger(__name__)


class ComfyUIEngine:
    """Encodes on one or several ComfyUI servers. See ``Engine`` for its methods.

    A server that is down is tried again with growing pauses until ``close``, also after ``start`` has failed.

    Args:
        urls: the servers; none takes the one on this machine's usual port if it has our nodes, else starts one.
        comfyui: the ComfyUI to start; default: ``find_comfyui``.
        state_dir: for the locks of the slots, and the base directory of a server that is started.
        models: folders of models for a server that is started, beside its own.
        token: the bearer token of the servers in ``urls``.
        worker_id: a name that no other worker on these servers has; default: of this host and ``state_dir``.
        workflow: default: the built-in one.
        usual_url: where to look for a server that runs already.
    """

    name = "comfyui"
    takes_image = False

    def __init__(
        self,
        *,
        urls: Sequence[str] = (),
        comfyui: Path | None = None,
        state_dir: Path,
        models: Sequence[Path] = (),
        token: str | None = None,
        worker_id: str | None = None,
        workflow: Workflow | None = None,
        usual_url: str = USUAL_URL,
    ) -> None:
        self.slots = SLOTS_PER_SERVER * max(1, len(urls))
        self._urls, self._token, self._usual_url = tuple(urls), token if urls else None, usual_url
        self._comfyui, self._models, self._state_dir = comfyui, tuple(models), Path(state_dir)
        self._workflow = workflow or built_in()
        self._names = Slots(self._state_dir / "slots", worker_name(worker_id, self._state_dir), self.slots)
        self._pool: Pool | None = None
        self._found: tuple[tuple[str, ...], Supervisor | None] | None = None
        self._closed = False
        self._opening, self._looking = threading.Lock(), threading.Lock()

    @classmethod
    def from_settings(cls, settings: Settings) -> ComfyUIEngine:
        """The engine that the settings describe.

        Raises:
            LatentEncoderError: INVALID_REQUEST for a workflow that cannot be used.
        """
        if settings.workflow:
            workflow = read_workflow(settings.workflow, settings.map)
        else:
            workflow = built_in(optimize=settings.optimize == "auto")
        token = settings.comfyui_token
        return cls(
            urls=settings.comfyui_url,
            comfyui=settings.comfyui_path,
            state_dir=settings.state_dir,
            models=[settings.model_dir] if settings.model_dir else [],
            token=token.get_secret_value() if token else None,
            worker_id=settings.worker_id,
            workflow=workflow,
        )

    def start(self) -> None:
        urls, supervisor = self._servers()
        with self._opening:
            self._pool = self._pool or Pool(urls, supervisor, self._connect)
            if self._closed:  # while the usual place was looked at
                self._pool.close()
        self._pool.start()

    def close(self) -> None:
        with self._opening:
            self._closed = True
        if self._pool is not None:
            self._pool.close()
        self._names.close()

    def check(self) -> None:
        self._started().check()

    def version(self) -> str | None:
        connections = self._pool.connections() if self._pool else []
        return connections[0].facts.version if connections else None

    def vaes(self) -> list[str]:
        """The VAEs of every server that is up.

        Raises:
            LatentEncoderError: ENGINE_UNAVAILABLE, NODES_MISSING.
        """
        self.check()
        names: set[str] = set()
        failure = None
        for connection in self._started().connections():
            try:
                with connection.in_use():
                    names.update(vae_names(connection.client))
            except LatentEncoderError as error:
                failure = error
        if failure and not names:
            raise failure
        return sorted(names)

    def vae_sha256(self, name: str) -> str | None:
        """Only of a server that is, or will be, started here: another one's files cannot be seen."""
        try:
            _, supervisor = self._servers()
        except LatentEncoderError:
            return None
        return supervisor.vae_sha256(name) if supervisor else None

    def wait_to_prepare(self) -> None:
        """At once: no encode takes this process's time."""

    def encode(self, job: EncodeJob, call: Call) -> EncodedLatent:
        pool = self._started()
        with self._names.hold(call) as slot:
            avoid: set[Member] = set()
            lost = False
            while True:
                with pool.take(call, avoid) as lease:
                    try:
                        return Sending(lease, self._workflow, job, slot, call, pool.check_open).run()
                    except ServerLost as error:
                        lease.lost(error.reason)
                        if lost:
                            raise _unavailable(error) from error
                        logger.warning("An encode is tried once more: %s", error, extra={"request_id": job.request_id})
                        lost = True
                    except LatentEncoderError as error:
                        if error.code == "NODES_MISSING":  # it was restarted without them
                            lease.lost(error)
                        # Another server may have this VAE, or the nodes; `vaes` lists those of all.
                        if error.code not in OF_THIS_SERVER or not pool.others({*avoid, lease.member}):
                            raise
                    avoid.add(lease.member)

    def _started(self) -> Pool:
        if self._pool is None:
            raise LatentEncoderError("ENGINE_UNAVAILABLE", "The engine is not started.")
        return self._pool

    def _connect(self, url: str) -> Connection:
        return Connection.open(url, token=self._token, node_classes=self._workflow.node_classes)

    def _servers(self) -> tuple[tuple[str, ...], Supervisor | None]:
        """The servers that run anyway; where there is none, the one to start. Looked for once.

        Raises:
            LatentEncoderError: ENGINE_UNAVAILABLE: there is nothing to start either.
        """
        with self._looking:
            if self._found is None:
                urls = self._urls or self._usual_server()
                own = None if urls else Supervisor(self._comfyui_to_start(), self._state_dir, self._models)
                self._found = urls, own
            return self._found

    def _usual_server(self) -> tuple[str, ...]:
        """The server that runs on this machine anyway, if it has the nodes."""
        found = running_server(self._usual_url, self._workflow)
        if found:
            logger.info("Using the ComfyUI that runs at %s", found)
        return (found,) if found else ()

    def _comfyui_to_start(self) -> Path:
        if self._comfyui is not None and not is_comfyui(self._comfyui):
            raise LatentEncoderError(
                "ENGINE_UNAVAILABLE",
                f"COMFYUI_PATH is '{self._comfyui}', and there is no ComfyUI that can be read.",
                "Set COMFYUI_PATH to the folder that holds ComfyUI's main.py, or unset it.",
            )
        found = self._comfyui or find_comfyui()
        if found is None:
            raise LatentEncoderError(
                "ENGINE_UNAVAILABLE",
                "No ComfyUI is configured, runs at its usual address, or is found on this machine.",
                "Set COMFYUI_URL or COMFYUI_PATH, or run setup.sh.",
            )
        return found


def local_server() -> str | None:
    """The address of the ComfyUI that answers at its usual place on this machine with our nodes; None for none."""
    return running_server(USUAL_URL, built_in())


def running_server(url: str, workflow: Workflow) -> str | None:
    """``url``, if a ComfyUI answers there that has the workflow's nodes."""
    with ComfyUIClient(url) as client:
        try:
            look_at(client, workflow.node_classes, timeout=USUAL_SECONDS)
        except LatentEncoderError as error:
            if error.code == "NODES_MISSING":
                logger.info("Not used: %s", error.message)
            return None
    return url


def _unavailable(error: ServerLost) -> LatentEncoderError:
    reason = error.reason
    hint = None if reason.code == "TIMEOUT" else reason.hint
    return LatentEncoderError("ENGINE_UNAVAILABLE", reason.message, hint, retryable=reason.retryable)
