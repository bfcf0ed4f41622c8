"""What turns a picture into a latent: a ComfyUI server, driven over its public API."""
