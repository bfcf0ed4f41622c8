"""The worker's process: what must be there before it starts, how engine, clients and endpoints come up and go down."""

from __future__ import annotations

import logging
import os
import threading
from typing import TYPE_CHECKING
from uuid import uuid4

from confluent_kafka import Consumer, KafkaError, Producer
from confluent_kafka.admin import AdminClient

from latent_encoder.errors import LatentEncoderError
from latent_encoder.kafka_properties import hide_secrets, without_secrets
from latent_encoder.service.encoder import Encoder
from latent_encoder.service.engines import make_engine
from latent_encoder.service.engines.base import Engine
from latent_encoder.service.engines.comfyui.slots import lock_lowest, worker_name
from latent_encoder.service.exit_codes import DONE, FAILED, FENCED, WRONG_USE
from latent_encoder.service.listener import CannotListen, listen, url_of
from latent_encoder.service.metrics import Metrics
from latent_encoder.service.readiness import Readiness
from latent_encoder.service.signals import Signals

from . import client_config
from .health import serve_health
from .marks import Marks
from .numbers import STUCK_SECONDS, Numbers
from .transactions import AtLeastOnce, CannotGoOn, ExactlyOnce, Fenced, NotSent, Publisher
from .worker import Worker

if TYPE_CHECKING:
    from latent_encoder.service.config import Settings

CHECK_SECONDS = 1.0
RETRY_SECONDS = 2.0

REPEAT_THE_LIBRARY = ("assignment", "marks", "numbers", "process", "transactions", "worker")
"""The modules whose log lines may hold texts of the Kafka library."""

OUTAGES = (KafkaError._ALL_BROKERS_DOWN, KafkaError._AUTHENTICATION, KafkaError._SSL)

logger = logging.getLogger(__name__)


def run_worker(settings: Settings, signals: Signals) -> int:
    """Work until a signal comes; returns the exit code (see ``run``)."""
    lock = None
    try:
        name = worker_name(settings.worker_id, settings.state_dir)
        if settings.worker_id is None:
            lock, number = lock_lowest(settings.state_dir / "kafka", f"{name}-")
            name = f"{name}-{number}"
        with listen(settings) as listener:
            engine = make_engine(settings)
            readiness = Readiness(engine)
            properties = client_config.connection(settings)
            for module in REPEAT_THE_LIBRARY:
                hide_secrets(logging.getLogger(f"{__package__}.{module}"), properties)
            numbers = Numbers(Metrics(), readiness, lambda text: without_secrets(text, properties))
            numbers.metrics.watch_engine(engine.name, lambda: readiness.error() is None)
            consumer, publisher, marks = _clients(settings, name, numbers)
            logger.info("Health and metrics on %s", url_of(listener))
            with serve_health(listener, numbers, engine):
                encoder = Encoder(engine, settings)
                worker = Worker(settings, encoder, consumer, publisher, marks, readiness, numbers, signals, name)
                return _live(worker, engine, readiness, numbers, publisher, signals)
    except LatentEncoderError as error:
        logger.error("[%s] %s %s", error.code, error.message, error.hint)
        return WRONG_USE
    except CannotListen as error:
        logger.error("%s", error)
        return WRONG_USE
    finally:
        if lock:
            lock.release()


def _clients(settings: Settings, name: str, numbers: Numbers) -> tuple[Consumer, Publisher, Marks]:
    """The clients of the brokers; none of them needs a broker yet.

    Raises:
        LatentEncoderError: INVALID_REQUEST: a setting that librdkafka does not take.
    """
    client_id = f"{name}-{uuid4().hex[:8]}"  # of this process alone: the marks tell by it who has died
    group = settings.kafka_consumer_group
    exactly_once = settings.kafka_delivery == "exactly_once"
    # One broker of several that is away is no trouble yet.
    watch = {"error_cb": lambda error: numbers.trouble(error.str()) if error.code() in OUTAGES else None}
    consumer = client_config.make_client(Consumer, client_config.consumer(settings, client_id) | watch)
    transactional_id = f"{group}.{name}" if exactly_once else None
    of_producer = client_config.producer(settings, client_id, transactional_id) | watch
    kind = ExactlyOnce if exactly_once else AtLeastOnce
    publisher = kind(lambda: client_config.make_client(Producer, of_producer), numbers.turned)
    admin = client_config.make_client(AdminClient, client_config.connection(settings) | {"client.id": client_id})
    return consumer, publisher, Marks(admin, group, client_id, numbers.turned)


def _live(
    worker: Worker, engine: Engine, readiness: Readiness, numbers: Numbers, publisher: Publisher, signals: Signals
) -> int:
    ended, closed = threading.Event(), threading.Event()
    code = FAILED
    try:
        if _start_engine(engine, readiness, numbers, signals) and _start_publisher(publisher, numbers, signals):
            threading.Thread(target=_keep_asking, args=(readiness, ended), name="readiness", daemon=True).start()
            threading.Thread(target=_watch, args=(numbers, closed), name="watchdog", daemon=True).start()
            worker.start()
            while not signals.count:
                worker.turn()
            _drain(worker)
        code = DONE if signals.count else FAILED
    except Fenced as error:
        logger.error("This worker can go on no more, and is to be started again: %s", error)
        code = FENCED
    except (CannotGoOn, NotSent) as error:
        logger.error("%s", error)
    finally:
        ended.set()
        readiness.stop()
        numbers.turned()
        worker.close()  # may hang as well: it commits, and leaves the group
        engine.close()
        closed.set()
    logger.info("Stopped")
    logging.shutdown()
    if worker.has_threads:
        os._exit(code)  # a thread that is still in torch would abort the interpreter's own end
    return code


def _start_engine(engine: Engine, readiness: Readiness, numbers: Numbers, signals: Signals) -> bool:
    """Start the engine, as often as it takes; False where a signal came first, or it can never be started.

    The group is joined afterwards, so that no partition waits for an engine that is not there.
    """
    outcome: list[bool] = []

    def start() -> None:
        said = ""
        while not signals.count:
            try:
                engine.start()
                outcome.append(readiness.update())
                logger.info("The engine '%s' has started", engine.name)
                return
            except LatentEncoderError as error:
                if not signals.count and str(error) != said:
                    logger.warning("The engine cannot be started yet: %s", error)
                    said = str(error)
                signals.came.wait(RETRY_SECONDS)
            except Exception:
                logger.exception("The engine cannot be started")
                return

    thread = threading.Thread(target=start, name="engine-start", daemon=True)
    thread.start()
    while thread.is_alive() and not signals.count:
        thread.join(0.1)
        numbers.turned()
    return bool(outcome)


def _start_publisher(publisher: Publisher, numbers: Numbers, signals: Signals) -> bool:
    """Make the producer ready, as often as it takes; False where a signal came first."""
    while not signals.count:
        try:
            publisher.start()
            return True
        except NotSent as error:
            numbers.turned()
            numbers.trouble(f"The producer cannot be made ready: {error}")
            publisher.producer.poll(0)  # the library tells why only when it is asked
            signals.came.wait(RETRY_SECONDS)
    return False


def _keep_asking(readiness: Readiness, ended: threading.Event) -> None:
    while not ended.wait(CHECK_SECONDS):
        readiness.update()


def _watch(numbers: Numbers, closed: threading.Event) -> None:
    """End a process whose loop turns no more: a call of the library's may never come back where a broker dies in it."""
    while not closed.wait(CHECK_SECONDS):
        if numbers.is_stuck:
            logger.error("The worker's loop has not turned for %d s: it is to be started again", STUCK_SECONDS)
            logging.shutdown()
            os._exit(FENCED)


def _drain(worker: Worker) -> None:
    """Finish and publish what runs, begin nothing; a second signal hurries."""
    logger.info("Stopping")
    while worker.busy and not worker.gives_up:
        worker.turn(begin=False)
