"""Times how ComfyUI loads custom node packs, and names the modules that they import besides their own."""

from __future__ import annotations

import sys
import time
from typing import Any

import host

answers = host.start()


class Watcher:
    """Stands first among the import finders: notes who imports what is not the pack's own, and finds nothing."""

    def __init__(self, pack: str) -> None:
        self.pack = pack
        self.foreign: dict[str, str] = {}

    def find_spec(self, name: str, _path: object = None, _target: object = None) -> None:
        if name.startswith(self.pack):
            return
        frame = sys._getframe(1)
        while frame and not frame.f_globals.get("__name__", "").startswith(self.pack):
            frame = frame.f_back
        importer = frame.f_globals["__name__"].removeprefix(self.pack + ".") if frame else "ComfyUI"
        self.foreign[name] = f"{importer}:{frame.f_lineno}" if frame else importer


def load(folder: str) -> dict[str, Any]:
    """The seconds that ComfyUI takes to load the pack; by name, the modules that are new besides it, and by whom."""
    watcher = Watcher(host.module_name(folder))
    sys.meta_path.insert(0, watcher)
    before = set(sys.modules)
    begin = time.perf_counter()
    host.load_pack(folder)
    seconds = time.perf_counter() - begin
    sys.meta_path.remove(watcher)
    new = sorted(name for name in set(sys.modules) - before if not name.startswith(watcher.pack))
    return {"seconds": seconds, "foreign": {name: watcher.foreign.get(name, "unknown") for name in new}}


host.serve(load, answers)
