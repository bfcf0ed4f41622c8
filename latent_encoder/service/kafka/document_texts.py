"""What the AsyncAPI document says in words: each guarantee, field and header. A test holds the names to the code's."""

from __future__ import annotations

from typing import Any

from latent_encoder.kafka_message import RECORD_HEADER

from .assignment import MOST_DEATHS
from .transactions import MOST_AT_ONCE
from .worker import MOST_ATTEMPTS

GUARANTEES = {
    "file": "A latent file is placed once, whole, under the request's id; the first writer wins.",
    "transaction": "The answer, the dead letter of a message that failed, and the consumer's offset are committed in"
    f" one transaction, with those of up to {MOST_AT_ONCE} messages, after the file is durable.",
    "isolation": "Readers of the answers and dead letters must set isolation.level=read_committed, which is"
    " librdkafka's default and not Java's; another one also sees what was aborted.",
    "one answer": "Each message gets one answer. One that failed gets an error answer and a dead letter. One that"
    " cannot be read, and whose body and key tell no id, gets a dead letter alone.",
    "repeated message": "A message that is produced twice gets two answers, which name one file.",
    "encode": "The encode itself may run more than once: after a crash, or after a rebalance.",
    "order": "Answers are published in the order of their requests' partition; across partitions there is no order.",
    "deadline": "A request whose deadline has passed is answered TIMEOUT.",
    "retries": f"A failure that may pass (retryable) is tried {MOST_ATTEMPTS} times in place, then it is final.",
    "poison": f"A message that {MOST_DEATHS} workers are known to have died of is answered from its file, should that"
    " be there, else INTERNAL; one more may have died of it unseen.",
    "away": "An engine, a disk or a folder of pictures that is away stops consumption and readiness; nothing is"
    " dead-lettered for that.",
    "at_least_once": "KAFKA_DELIVERY=at_least_once sends the records of one message at a time and commits its offset"
    " then, without transactions: what comes between the two (a crash, a rebalance, a commit or a second record that"
    " fails) sends answers and dead letters again.",
}

REQUEST_FIELDS = {
    "schema_version": "1",
    "request_id": "Names the request and its file. Absent: the message's key where that is an id, else one made of the"
    " message's topic, partition, offset and timestamp.",
    "correlation_id": "Handed back. Absent: the header correlation-id.",
    "image_path": "The picture, inside INPUT_ROOTS as the worker sees them; relative to its working directory.",
    "vae_model_name": "The VAE's file. Absent: the worker's VAE_MODEL_NAME.",
    "upscale_method": "How the picture is scaled. Absent: the worker's UPSCALE_METHOD.",
    "megapixels": "The size that it is scaled to, of 1024 x 1024 pixels each. Absent: the worker's MEGAPIXELS.",
    "resolution_steps": "Both sides become multiples of it.",
    "output_dir": "The folder for the file, inside OUTPUT_ROOTS. Absent: the worker's OUTPUT_DIR.",
    "file_format": "The file's format and suffix.",
    "timestamp": "When the request was made; not used.",
    "deadline": "Nobody wants an answer later than this.",
}
RESPONSE_FIELDS = {
    "schema_version": "1",
    "status": "success, or error.",
    "request_id": "The request's, or the one that was made for it.",
    "correlation_id": "The request's, else its header's.",
    "latent_file_path": "The file, as the worker sees it; null for an error.",
    "latent_shape": "Of the tensor samples; for a nested latent a list of shapes; null for an error.",
    "error_code": "One of the catalogue's; null for a success.",
    "error_message": "What happened.",
    "error_hint": "What to do.",
    "retryable": "Whether the same request may succeed later; null for a success.",
    "metadata": "The times, and for a success the LatentRecord and reused.",
    "timestamp": "When the answer was made.",
}
RECORD_FIELDS = {
    "schema_version": "1",
    "request_id": "The request that the file answers.",
    "path": "The file's absolute path.",
    "filename": "Its name.",
    "subfolder": "Its subfolder in the folder that type names, or in OUTPUT_DIR.",
    "type": "ComfyUI's folder; null for a file that a worker placed.",
    "file_format": "Its suffix.",
    "file_bytes": "Its size in bytes.",
    "file_sha256": "Of all its bytes, in hex.",
    "latent_shape": "Of the tensor samples; for a nested latent a list of shapes.",
    "latent_dtype": "Of the tensor samples, such as float32.",
    "latent_channels": "The size of the tensor's dimension 1.",
    "downscale": "Pixels per number of the latent, a side.",
    "vae_name": "The VAE's file name.",
    "vae_sha256": "Of the VAE's file.",
    "image_name": "The picture, as it was asked for.",
    "image_sha256": "Of the bytes that were encoded.",
    "original_size": "Width and height of the picture as it is shown.",
    "scaled_size": "Width and height of what the VAE was given.",
    "upscale_method": "How it was scaled.",
    "megapixels": "The size that was asked for, of 1024 x 1024 pixels each.",
    "resolution_steps": "Both sides are multiples of it.",
    "engine": "What encoded it: comfyui or embedded.",
    "engine_version": "That one's version.",
    "optimized": "Whether a faster encoder made it.",
    "pack_version": "Latent Encoder's version.",
    "created_at": "When it was written.",
}
METADATA_FIELDS: dict[str, dict[str, Any]] = {
    "reused": {"type": "boolean", "description": "Whether the file was there already. Only of a success."},
    "processing_time_ms": {"type": "number", "description": "From the last attempt's start to its answer."},
    "queue_time_ms": {"type": "number", "description": "From the message's arrival in the worker to that start."},
}
EVENT_HEADERS = {
    "content-type": "The value's media type.",
    "ce_specversion": "1.0: CloudEvents, binary mode.",
    "ce_id": "A UUID of this very message.",
    "ce_type": "What it is.",
    "ce_source": "Who wrote it.",
    "ce_time": "When, as RFC 3339.",
}
PASSED_ON_HEADERS = {
    "correlation-id": "What belongs together; also the answer's field correlation_id, where the request has none.",
    "kafka_correlationId": "Spring's header of that kind, of any bytes.",
    "traceparent": "W3C Trace Context; the worker makes no span of its own.",
    "tracestate": "W3C Trace Context.",
}
NODE_HEADERS = {
    "correlation-id": "The node's correlation_id, where it has one.",
    RECORD_HEADER: "The LatentRecord of these bytes, as JSON.",
}
