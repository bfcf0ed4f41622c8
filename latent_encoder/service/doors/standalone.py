"""The command line's door: answers on stdout, one EncodeResponse a line, and nothing else there."""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as StillRunning
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

from latent_encoder.errors import LatentEncoderError
from latent_encoder.models import EncodeResponse
from latent_encoder.service.config import Settings
from latent_encoder.service.encoder import Encoder
from latent_encoder.service.engines import make_engine
from latent_encoder.service.engines.base import Call, Engine
from latent_encoder.service.exit_codes import DONE, FAILED, INTERRUPTED, SOME_FAILED, WRONG_USE
from latent_encoder.service.requests import error_response, parse_request

from .interrupts import Interrupts
from .pictures import NamedPicture, find_pictures, is_one_picture
from .progress import Progress, show_progress

NOT_STARTED = "ENGINE_UNAVAILABLE"  # what an engine answers before its start
AHEAD = 4  # pictures for each slot that may be begun, or done, while an earlier one's answer is awaited
POLL_SECONDS = 0.5  # Windows does not wake a thread that waits for ever when Ctrl-C comes

logger = logging.getLogger(__name__)

Fields = Mapping[str, Any]
Work = Callable[[NamedPicture, Call], EncodeResponse]
Answer = tuple[NamedPicture, EncodeResponse]


def run(settings: Settings, named: Sequence[str], *, request: Fields, report: Path | None) -> int:
    """Encode the pictures and print the answers, in the order of the pictures.

    Args:
        named: what ``--image-path`` names: pictures, folders, globs, ``-``.
        request: the fields of an EncodeRequest that the command line gives.
        report: a file for the answers, made anew.

    Returns:
        0 done, 1 failed, 2 wrong use, 3 some of many failed, 130 interrupted.
    """
    interrupts = Interrupts()
    with interrupts.handled(), ExitStack() as stack:
        try:
            one = is_one_picture(named)
            if one:
                pictures = [NamedPicture(named[0], "")]
                request = {"request_id": uuid4().hex, **request}
            else:
                pictures = _find_many(named, request)
            outputs = [stack.enter_context(stdout_for_answers())]
            if report:
                _check_report(report, pictures)
                outputs.append(stack.enter_context(_open_report(report)))
        except LatentEncoderError as error:
            logger.error("%s %s", error.message, error.hint)
            return WRONG_USE
        except KeyboardInterrupt:
            return _interrupted_early()
        if not pictures:
            return DONE
        try:
            with _engine(settings, interrupts) as engine:
                work = _make_work(Encoder(engine, settings), settings, request, one)
                return _encode(work, pictures, engine, outputs, interrupts, quiet=one)
        except LatentEncoderError as error:
            return _refuse(error, request, outputs if one else [])
        except KeyboardInterrupt:
            return _interrupted_early()


def _find_many(named: Sequence[str], request: Fields) -> list[NamedPicture]:
    if "request_id" in request:
        reason = "--request-id is for one picture, and these may be many."
        raise LatentEncoderError("INVALID_REQUEST", reason, "Leave it out: each latent is named after its picture.")
    pictures = find_pictures(named, sys.stdin.buffer)
    if not pictures:
        logger.warning("There is no picture in what --image-path names.")
    return pictures


@contextmanager
def stdout_for_answers() -> Iterator[TextIO]:
    """A stream to stdout for the answers alone: what a library, or a program started here, prints goes to stderr."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    stream = open(own, "w", encoding="utf-8", newline="\n", closefd=False)  # noqa: SIM115
    try:
        yield stream
    finally:
        with suppress(OSError):  # nobody reads it any more, which was noticed when an answer was written
            stream.close()
        sys.stdout.flush()  # what was printed meanwhile
        os.dup2(own, 1)
        os.close(own)


def _check_report(path: Path, pictures: Sequence[NamedPicture]) -> None:
    with suppress(OSError):
        report = path.stat()
        for picture in pictures:
            with suppress(OSError):
                if os.path.samestat(report, os.stat(picture.file)):
                    reason = f"The report '{path}' is one of the pictures."
                    raise LatentEncoderError("INVALID_REQUEST", reason, "Name another file.")


@contextmanager
def _open_report(path: Path) -> Iterator[TextIO]:
    try:
        stream = open(path, "w", encoding="utf-8", newline="\n")  # noqa: SIM115
    except OSError as error:
        reason = f"The report '{path}' cannot be written ({error.strerror})."
        raise LatentEncoderError("INVALID_REQUEST", reason, "Name a file in a folder that can be written.") from error
    try:
        yield stream
    finally:
        with suppress(OSError):  # a full disk, which was noticed when an answer was written
            stream.close()


@contextmanager
def _engine(settings: Settings, interrupts: Interrupts) -> Iterator[Engine]:
    """The engine, not yet started; closed at the end."""
    engine = make_engine(settings)
    try:
        yield engine
    finally:
        with interrupts.ignored():
            engine.close()


def _make_work(encoder: Encoder, settings: Settings, request: Fields, one: bool) -> Work:
    """What is done for each picture; it raises nothing."""

    def work(picture: NamedPicture, call: Call) -> EncodeResponse:
        file = Path(picture.file).absolute()
        try:
            parsed = parse_request({**request, "image_path": picture.name or picture.file}, settings)
        except LatentEncoderError as error:  # a name that is no text
            return error_response(request.get("request_id"), request.get("correlation_id"), error)
        if one:  # as an upload is: INPUT_ROOTS do not bind the user of this machine
            return encoder.encode_image_to_latent(parsed, call=call, upload=file)
        response = encoder.encode_named(file, picture.name, parsed, call=call)
        response.metadata.setdefault("image_name", picture.name)  # else a report would not tell whose failure it is
        return response

    return work


def _encode(
    work: Work,
    pictures: Sequence[NamedPicture],
    engine: Engine,
    outputs: Sequence[TextIO],
    interrupts: Interrupts,
    *,
    quiet: bool,
) -> int:
    lost = False
    with show_progress(len(pictures), quiet=quiet) as progress:
        try:
            for picture, response in answers(work, pictures, engine, interrupts):
                progress.add(response)
                _log_failure(picture, response)
                with progress.aside(outputs[0]):
                    lost = lost or not _write(response, outputs, interrupts)
        except KeyboardInterrupt:
            with interrupts.ignored():
                interrupts.cancel_calls()
                engine.close()
                logger.warning("Interrupted." if quiet else f"Interrupted: {progress.summary()}")
                os._exit(INTERRUPTED)  # threads that are in the middle of an encode would be waited for
    if not quiet:
        logger.info(progress.summary())
    return FAILED if lost else exit_code(progress, interrupts)


def answers(work: Work, pictures: Sequence[NamedPicture], engine: Engine, interrupts: Interrupts) -> Iterator[Answer]:
    """The answers in the order of the pictures. The engine is started for the first one that no file answers.

    Raises:
        LatentEncoderError: the engine cannot be started.
        KeyboardInterrupt: a signal while it starts.
    """
    known = 0
    with (
        interrupts.work_in_hand(),
        closing(in_order(work, pictures, engine.slots, interrupts, to_the_end=True)) as found,
    ):
        for picture, response in found:
            if response.error_code == NOT_STARTED:
                break
            known += 1
            yield picture, response
    if known < len(pictures) and not interrupts.stopping.is_set():
        logger.info("Starting the engine '%s'", engine.name)
        engine.start()
        logger.info("The engine '%s' has started", engine.name)
        with interrupts.work_in_hand():
            yield from in_order(work, pictures[known:], engine.slots, interrupts)


def in_order(
    work: Work, pictures: Sequence[NamedPicture], slots: int, interrupts: Interrupts, *, to_the_end: bool = False
) -> Generator[Answer, None, None]:
    """Work on ``slots`` pictures at once and yield the answers in the order of the pictures.

    Begins nothing more once ``interrupts.stopping`` is set, and holds only a few pictures at any time.

    Args:
        to_the_end: whether what was begun has ended when this ends.
    """

    def begin(picture: NamedPicture) -> EncodeResponse | None:
        if interrupts.stopping.is_set():
            return None
        with interrupts.call() as call:
            return work(picture, call)

    pool = ThreadPoolExecutor(slots)
    waiting: deque[tuple[NamedPicture, Future[EncodeResponse | None]]] = deque()
    left = iter(pictures)
    try:
        while True:
            while len(waiting) < AHEAD * slots and not interrupts.stopping.is_set():
                picture = next(left, None)
                if picture is None:
                    break
                waiting.append((picture, pool.submit(begin, picture)))
            if not waiting:
                return
            picture, future = waiting.popleft()
            response = _result(future)
            if response is not None:
                yield picture, response
    finally:
        pool.shutdown(wait=to_the_end, cancel_futures=True)


def _result(future: Future[EncodeResponse | None]) -> EncodeResponse | None:
    while True:
        with suppress(StillRunning):
            return future.result(POLL_SECONDS)


def _write(response: EncodeResponse, outputs: Sequence[TextIO], interrupts: Interrupts) -> bool:
    """Write an answer everywhere; where that fails the run stops, for its answers would be lost."""
    line = response.model_dump_json() + "\n"
    try:
        for stream in outputs:
            stream.write(line)
            stream.flush()
    except OSError as error:
        logger.error("An answer cannot be written (%s): stopping.", error.strerror)
        interrupts.stopping.set()
        return False
    return True


def _log_failure(picture: NamedPicture, response: EncodeResponse) -> None:
    if response.status == "error":
        ids = {"request_id": response.request_id, "correlation_id": response.correlation_id}
        logger.error("%s: %s: %s", picture.file, response.error_code, response.error_message, extra=ids)


def _refuse(error: LatentEncoderError, request: Fields, outputs: Sequence[TextIO]) -> int:
    """The engine cannot be had: one picture's answer says so; a run of many has none."""
    logger.error("%s: %s %s", error.code, error.message, error.hint)
    response = error_response(request.get("request_id"), request.get("correlation_id"), error)
    _write(response, outputs, Interrupts())
    return FAILED


def _interrupted_early() -> int:
    logger.warning("Interrupted before any picture was begun.")
    return INTERRUPTED


def exit_code(progress: Progress, interrupts: Interrupts) -> int:
    """130 for a run that was to stop; else by how many failed: 0 none, 3 some, 1 all."""
    if interrupts.stopping.is_set():
        return INTERRUPTED
    if not progress.failed:
        return DONE
    return FAILED if progress.failed == progress.total else SOME_FAILED
