"""PublishLatentToKafka: a latent file, or where it stands, goes to a topic."""

from pathlib import Path
from typing import Any

import folder_paths
from comfy_api.latest import io

from ..latent_encoder.kafka_message import PAYLOADS, build_message, check_record, read_latent
from ..latent_encoder.kafka_publisher import KafkaPublisher
from ..latent_encoder.paths import check_relative, resolve_inside
from ..latent_encoder.publisher_settings import PROPERTIES_NAME, allowed_topics, read_settings
from . import comfyui_host
from .saving import LatentRecordType

SYSTEM_FOLDER = "__latent_encoder"  # ComfyUI's routes serve no user whose name begins so

_publisher = KafkaPublisher()


class PublishLatentToKafka(io.ComfyNode):
    """Sends a LATENT_RECORD, with the file's bytes or without, and waits for the broker's confirmation."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="PublishLatentToKafka",
            display_name="Publish Latent to Kafka",
            category=comfyui_host.CATEGORY,
            description="Sends what is known of a latent file, or the file itself, to a Kafka topic, and waits until "
            "the broker has it.",
            is_output_node=True,
            inputs=[
                LatentRecordType.Input("record", tooltip="The record of a latent that was saved or loaded."),
                io.Combo.Input(
                    "topic",
                    options=allowed_topics(_client_properties()),
                    tooltip="The topics that ComfyUI's administrator allows, in client.properties: see the help.",
                ),
                io.String.Input(
                    "key",
                    default="",
                    tooltip="The message's key. Where it is empty, the request's id, else the file's SHA-256.",
                ),
                io.Combo.Input(
                    "payload",
                    options=list(PAYLOADS),
                    default=PAYLOADS[0],
                    tooltip="reference: the record as JSON, which names the file. inline: the file's bytes; a large "
                    "file is refused.",
                ),
                io.String.Input(
                    "correlation_id", default="", tooltip="Goes into the message's header correlation-id, if not empty."
                ),
            ],
            outputs=[
                LatentRecordType.Output(  # 0.3.64 wants other ids for outputs than for inputs
                    "sent_record", display_name="LATENT_RECORD", tooltip="The record that was sent."
                ),
                io.String.Output(
                    "published", display_name="published", tooltip="Where the message stands: topic[partition]@offset."
                ),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, **_: Any) -> float:
        return comfyui_host.always_run()

    @classmethod
    def validate_inputs(cls, topic="", key="", payload="", correlation_id="") -> bool:
        """Names every widget: ``execute`` checks them, so that a mistake has the same words on every ComfyUI."""
        return True

    @classmethod
    def execute(
        cls, record: Any, topic: str, key: str = "", payload: str = PAYLOADS[0], correlation_id: str = ""
    ) -> io.NodeOutput:
        settings = read_settings(_client_properties())
        data, known = read_latent(_file_of(record), record)
        message = build_message(
            data,
            known,
            payload=payload,
            key=key,
            correlation_id=correlation_id,
            inline_max_bytes=settings.inline_max_bytes,
        )
        delivery = _publisher.publish(settings, topic, message, interrupted=comfyui_host.stop_if_interrupted)
        told = {"published": str(delivery), "payload": payload, "key": message.key.decode(), "record": message.record}
        sent = {**vars(delivery), **told}
        return io.NodeOutput(message.record, str(delivery), ui={"kafka": [sent]})


def _client_properties() -> Path:
    return Path(folder_paths.get_user_directory()) / SYSTEM_FOLDER / PROPERTIES_NAME


def _file_of(record: Any) -> Path:
    """The real path of a record's file inside ComfyUI's own folders; the record's own path is not believed."""
    folder_type, subfolder, filename = check_record(record)
    check_relative(filename, "record.filename")
    if subfolder:
        check_relative(subfolder, "record.subfolder")
    name = f"{subfolder}/{filename}" if subfolder else filename
    return resolve_inside(comfyui_host.folder_of_type(folder_type), name, "record")
