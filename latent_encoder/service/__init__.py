"""The service beside ComfyUI, which it drives over HTTP and never imports. Not in the node pack's archive."""
