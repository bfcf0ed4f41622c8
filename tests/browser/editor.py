"""ComfyUI's graph editor in a real, headless Chromium, driven as a user drives it wherever that is possible."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import ConsoleMessage, Page, sync_playwright

VIEWPORT = {"width": 1600, "height": 1000}
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--force-color-profile=srgb",
]
# A first start would open the Templates window; the rest lies over the lower right corner of the picture.
SETTINGS = {
    "Comfy.TutorialCompleted": True,
    "Comfy.Minimap.Visible": False,
    "Comfy.Graph.CanvasMenu": False,
    "Comfy.Graph.CanvasInfo": False,
}
READY = "() => window.app?.graph && Object.keys(window.LiteGraph?.registered_node_types ?? {}).length > 100"
VUE_NODES = "Comfy.VueNodes.Enabled"
# What the editor writes itself: files of the user's that need not exist, and model sizes that it asks the network for.
HOSTS_OWN = re.compile(r"Failed to load resource|huggingface\.co|fetching file size", re.IGNORECASE)
# What names one of our files or extensions is ours, a warning too; but not that the editor looks for a help page in the
# user's language before it takes the one that there is.
OURS = re.compile(r"latent-?encoder(?!/docs/\w+/\w+\.md)", re.IGNORECASE)
MESSAGES = ".p-dialog:visible, .p-toast-message:visible, [data-testid=error-overlay]:visible"


def find_chromium() -> str | None:
    """The Chromium or Chrome that is installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next((path for path in map(shutil.which, names) if path), None)


class Editor:
    """One page with the editor in it.

    Attributes:
        page: Playwright's page.
        errors: what the console and the page reported as errors since the last ``forget_errors``.
        ours: the warnings and errors that name us, since the page was opened.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.errors: list[str] = []
        self.ours: list[str] = []
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.errors.append(f"{error.message}\n{error.stack}"))

    def _on_console(self, message: ConsoleMessage) -> None:
        text = f"{message.text} ({message.location.get('url', '')})"
        if message.type == "error" and not HOSTS_OWN.search(text):
            self.errors.append(text)
        if message.type in ("warning", "error") and OURS.search(text):
            self.ours.append(text)

    def forget_errors(self) -> None:
        """Forget what the editor reports while it starts: 0.33 and 0.3.64 each have an error of their own there."""
        self.errors.clear()

    def wait_until_ready(self) -> None:
        """Wait until the page that is loading has its graph and all node types."""
        self.page.wait_for_function(READY)
        self.page.wait_for_timeout(2000)

    def reload(self) -> None:
        """Load the page again, as with F5."""
        self.page.once("dialog", lambda dialog: dialog.accept())  # it asks whether to leave unsaved changes
        self.page.reload()
        self.wait_until_ready()
        self.forget_errors()

    def open(self, path: Path) -> None:
        """Open a workflow file through the editor's own Open command."""
        with self.page.expect_file_chooser() as chooser:
            self.command("Comfy.OpenWorkflow")
        chooser.value.set_files(path)
        self.page.wait_for_function("name => document.title.includes(name)", arg=path.stem)
        self.page.wait_for_timeout(1500)

    def command(self, name: str) -> None:
        """Run one of the editor's commands. It is not waited for: some end only with a dialog."""
        self.page.evaluate("name => void window.app.extensionManager.command.execute(name)", name)

    def messages(self) -> str:
        """What the dialogs and toasts now on the screen say."""
        return "\n".join(self.page.locator(MESSAGES).all_inner_texts())

    def dismiss_messages(self) -> None:
        """Close dialogs and toasts."""
        overlay = self.page.get_by_test_id("error-overlay-dismiss")
        if overlay.is_visible():
            overlay.click()
        self.page.keyboard.press("Escape")
        self.page.wait_for_timeout(500)

    def nodes(self) -> list[dict[str, Any]]:
        """The graph's nodes: ``id, type, mode, known`` (its type is registered), ``flawed`` (it has an error mark)."""
        return self.page.evaluate(
            """() => window.app.graph.nodes.map(node => ({
                id: node.id, type: node.type, mode: node.mode,
                known: node.type in LiteGraph.registered_node_types, flawed: !!node.has_errors,
            }))"""
        )

    def node_id(self, kind: str) -> int:
        """The id of the one node of that type."""
        (node,) = [node for node in self.nodes() if node["type"] == kind]
        return node["id"]

    def widgets(self, kind: str) -> dict[str, Any]:
        """The values of a node's widgets, by name; without those that the editor makes for itself (``$$...``)."""
        values = self.page.evaluate(
            "id => Object.fromEntries(window.app.graph.getNodeById(id).widgets.map(w => [w.name, w.value]))",
            self.node_id(kind),
        )
        return {name: value for name, value in values.items() if not name.startswith("$$")}

    def choices(self, kind: str, widget: str) -> list[str]:
        """What a combo offers."""
        return self.page.evaluate(
            """([id, name]) => {
                const values = window.app.graph.getNodeById(id).widgets.find(w => w.name === name).options.values;
                return typeof values === "function" ? values() : [...values];
            }""",
            [self.node_id(kind), widget],
        )

    def choose(self, kind: str, widget: str, value: Any) -> None:
        """Set a widget's value by the way that a click takes, so that all who listen hear of it."""
        self.page.evaluate(
            """([id, name, value]) => {
                const node = window.app.graph.getNodeById(id);
                const e = new PointerEvent("pointerup");
                node.widgets.find(w => w.name === name).setValue(value, { e, node, canvas: window.app.canvas });
            }""",
            [self.node_id(kind), widget, value],
        )

    def upload(self, kind: str, path: Path) -> None:
        """Press a node's upload button and choose that file; returns when the node's ``image`` names it."""
        with self.page.expect_file_chooser() as chooser:
            self.page.evaluate(
                "id => void window.app.graph.getNodeById(id).widgets.find(w => w.name === 'upload').callback()",
                self.node_id(kind),
            )
        chooser.value.set_files(path)
        self.page.wait_for_function(
            "([id, name]) => window.app.graph.getNodeById(id).widgets.find(w => w.name === 'image').value === name",
            arg=[self.node_id(kind), path.name],
        )

    def select(self, kinds: list[str]) -> None:
        """Select the nodes of these types."""
        self.page.evaluate(
            "ids => window.app.canvas.selectNodes(ids.map(id => window.app.graph.getNodeById(id)))",
            [self.node_id(kind) for kind in kinds],
        )

    def press(self, keys: str) -> None:
        """Press a key with the canvas in focus."""
        self.page.evaluate("() => { document.activeElement?.blur(); window.app.canvas.canvas.focus(); }")
        self.page.keyboard.press(keys)

    def run(self) -> str:
        """Press the Run button; returns the prompt's id."""
        button = self.page.get_by_test_id("queue-button")
        if button.evaluate("element => element.tagName") != "BUTTON":  # 0.3.64: a box with the button and its menu
            button = button.get_by_role("button").first
        with self.page.expect_response(lambda response: response.url.endswith("/api/prompt")) as answer:
            button.click()
        assert answer.value.ok, answer.value.text()
        return answer.value.json()["prompt_id"]

    def show_all(self) -> None:
        """Zoom so that every group and node is in view, clear of the editor's own bars."""
        self.page.evaluate(
            """([left, top, right, bottom]) => {
                const items = [...window.app.graph.nodes, ...window.app.graph.groups];
                const boxes = items.map(item => item.boundingRect ?? item._bounding);
                const x0 = Math.min(...boxes.map(b => b[0])), y0 = Math.min(...boxes.map(b => b[1]));
                const x1 = Math.max(...boxes.map(b => b[0] + b[2])), y1 = Math.max(...boxes.map(b => b[1] + b[3]));
                const width = innerWidth - left - right, height = innerHeight - top - bottom;
                const scale = Math.min(width / (x1 - x0), height / (y1 - y0));
                const area = window.app.canvas.canvas.getBoundingClientRect();
                const ds = window.app.canvas.ds;
                ds.scale = scale;
                ds.offset[0] = (left - area.left + (width - (x1 - x0) * scale) / 2) / scale - x0;
                ds.offset[1] = (top - area.top + (height - (y1 - y0) * scale) / 2) / scale - y0;
                window.app.canvas.deselectAll?.();
                window.app.graph.setDirtyCanvas(true, true);
            }""",
            [75, 95, 15, 15],
        )
        self.page.wait_for_timeout(4000)  # 0.33 shows for a while that the run is done


@contextmanager
def open_editor(url: str, profile: Path, executable: str, settings: dict[str, Any] | None = None) -> Iterator[Editor]:
    """The editor of that ComfyUI server in a Chromium with a fresh user data folder; the settings stay the server's."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            profile, executable_path=executable, args=ARGUMENTS, headless=True, viewport=VIEWPORT
        )
        try:
            page = browser.new_page()
            page.set_default_timeout(60_000)
            editor = Editor(page)
            page.request.post(f"{url}/settings", data=SETTINGS | {VUE_NODES: False} | (settings or {}))
            page.goto(url)
            editor.wait_until_ready()
            editor.forget_errors()
            yield editor
        finally:
            browser.close()
