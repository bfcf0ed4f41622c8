# syntax=docker/dockerfile:1
# Two images (docs/deploy.md): `worker`, the service without torch, and `comfyui`, ComfyUI with this pack.
#     docker build --target worker --tag latent-encoder-worker .
#     docker build --target comfyui --tag latent-encoder-comfyui .

FROM python:3.12-slim AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# tini is process 1, where the kernel drops a SIGTERM that no handler waits for yet, and hands it on.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/*
RUN useradd --uid 10001 --user-group --create-home --shell /usr/sbin/nologin latent


FROM base AS wheel
WORKDIR /src
COPY LICENSE README.md pyproject.toml ./
COPY latent_encoder latent_encoder
RUN pip wheel --no-deps --wheel-dir /wheel .


FROM base AS worker
COPY --from=wheel /wheel /wheel
RUN pip install "$(echo /wheel/*.whl)[service,kafka]"
# A new named volume takes over the owner of the folder that it is mounted on.
RUN install --directory --owner latent --group latent /data /var/lib/latent-encoder
ENV LATENT_ENCODER_STATE_DIR=/var/lib/latent-encoder \
    REST_HOST=0.0.0.0
# Not /data: who may put pictures there could put a .env there, too.
WORKDIR /app
COPY main.py ./
USER 10001
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s CMD ["python", "-c", "\
import os, urllib.request as web; \
port = os.environ.get('REST_PORT') or 8000; \
opener = web.build_opener(web.ProxyHandler({})); \
opener.open(f'http://127.0.0.1:{port}/health/ready', timeout=4)"]
ENTRYPOINT ["tini", "--", "python", "main.py"]
CMD ["--mode", "kafka"]


FROM base AS comfyui
# As in setup.sh. For NVIDIA: --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130, and no --cpu below.
ARG COMFYUI_TAG=v0.33.0
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG TORCH_PACKAGES="torch==2.14.1 torchvision==0.29.1 torchaudio==2.11.0"
WORKDIR /comfyui
RUN pip install --index-url "$TORCH_INDEX" $TORCH_PACKAGES
ADD https://github.com/comfyanonymous/ComfyUI.git#${COMFYUI_TAG} ./
RUN pip install --requirement requirements.txt
COPY requirements.txt custom_nodes/latent-encoder/
# The second one for the node PublishLatentToKafka, which says where to: user/__latent_encoder/client.properties.
RUN pip install --requirement custom_nodes/latent-encoder/requirements.txt "confluent-kafka>=2.12"
# What node.zip holds, too: all but what .comfyignore names.
COPY LICENSE README.md __init__.py pyproject.toml custom_nodes/latent-encoder/
COPY latent_encoder/*.py latent_encoder/py.typed custom_nodes/latent-encoder/latent_encoder/
COPY locales custom_nodes/latent-encoder/locales
COPY nodes custom_nodes/latent-encoder/nodes
COPY web custom_nodes/latent-encoder/web
COPY workflows custom_nodes/latent-encoder/workflows
# What ComfyUI writes to; all else stays root's.
RUN install --directory --owner latent --group latent input output temp user
USER 10001
EXPOSE 8188
HEALTHCHECK --interval=10s --timeout=10s --start-period=120s CMD ["python", "-c", "\
import urllib.request as web; \
opener = web.build_opener(web.ProxyHandler({})); \
opener.open('http://127.0.0.1:8188/system_stats', timeout=9)"]
ENTRYPOINT ["tini", "--", "python", "main.py", "--listen", "0.0.0.0", "--port", "8188"]
CMD ["--cpu"]
