"""ComfyUI as the engine: find one (``checkout``), run one (``server``), talk to one (``client``)."""
