"""The core of Latent Encoder: errors, paths, pictures and latent files.

Imports neither ComfyUI nor the service, so that the node pack, the service and other programs share it.
"""

__version__ = "0.1.0"
