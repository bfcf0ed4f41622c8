"""The usual loop: poll, process, produce, commit. What our worker is measured against.

    kafka_loop.py NAME BOOTSTRAP REQUEST_TOPIC RESPONSE_TOPIC FOLDER ENCODE_SECONDS SESSION_MS [flush]

With ``flush`` it waits for the brokers' word on each answer before it commits.
"""

import json
import sys
import time
from pathlib import Path

import numpy
from confluent_kafka import Consumer, Producer
from safetensors.numpy import save_file

name, bootstrap, requests, responses, folder, seconds, session, *flush = sys.argv[1:]
consumer = Consumer(
    {
        "bootstrap.servers": bootstrap,
        "group.id": f"{requests}-group",
        "session.timeout.ms": int(session),
        "heartbeat.interval.ms": int(session) // 4,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
    }
)
producer = Producer({"bootstrap.servers": bootstrap, "acks": "all"})
consumer.subscribe([requests])
while True:
    message = consumer.poll(1.0)
    if message is None or message.error():
        continue
    request = json.loads(message.value())
    path = Path(folder, f"{request['request_id']}.safetensors")
    time.sleep(float(seconds))  # in place of the encode
    save_file({"latent_tensor": numpy.zeros((1, 4, 8, 8), numpy.float32)}, path)
    answer = {"request_id": request["request_id"], "status": "success", "latent_file_path": str(path)}
    producer.produce(responses, json.dumps(answer), message.key(), headers={"ce_source": name})
    producer.flush() if flush else producer.poll(0)
    consumer.commit(message, asynchronous=False)
