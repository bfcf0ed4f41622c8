"""Panels by keyboard alone, and their colours in ComfyUI's dark and light themes."""

from __future__ import annotations

from typing import Any

import pytest
from browser.editor import VUE_NODES, Editor
from browser.graphs import BOTH_RENDERINGS, fail, lay_encoder, panel, run
from comfyui.servers import Server
from playwright.sync_api import expect

pytestmark = [pytest.mark.browser, pytest.mark.timeout(600), pytest.mark.usefixtures("photo")]

SAVED = "Saved latent"
READABLE = 4.5  # WCAG 2.1, AA
MOST_TABS = 150

# Each text of the panels with its colour and the colour behind it, both as [r, g, b] of 0 to 255.
TEXTS = """() => {
    const rgb = colour => colour.match(/[\\d.]+/g).map(Number);
    const behind = element => {
        for (; element; element = element.parentElement) {
            const found = rgb(getComputedStyle(element).backgroundColor);
            if (found.length === 3 || found[3] === 1) return found.slice(0, 3);
        }
    };
    const elements = [...document.querySelectorAll(".latent-encoder-panel *")];
    const texts = elements.filter(e => [...e.childNodes].some(c => c.nodeType === 3 && c.textContent.trim()));
    return texts.map(e => ({ text: e.textContent, colour: rgb(getComputedStyle(e).color), behind: behind(e) }));
}"""
FOCUSED = """() => {
    const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
    return { text: document.activeElement.textContent, outline: outlineStyle !== "none" && parseFloat(outlineWidth) };
}"""


@pytest.fixture
def palette(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", "dark")


@pytest.fixture
def settings(rendering: str, palette: str) -> dict[str, Any]:
    return {VUE_NODES: rendering == "vue", "Comfy.ColorPalette": palette}


@BOTH_RENDERINGS
def test_by_keyboard_alone(editor: Editor, server: Server, rendering: str) -> None:
    editor.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    lay_encoder(editor, "taesd", filename_prefix=f"keyboard_{rendering}")
    run(editor, server)
    panel(editor, SAVED).wait_for()
    tab_to(editor, "Copy path")
    editor.page.keyboard.press("Enter")
    expect(panel(editor, SAVED).get_by_role("button", name="Copied")).to_be_visible()
    path = server.output / f"keyboard_{rendering}_00001_.safetensors"
    assert editor.page.evaluate("() => navigator.clipboard.readText()") == str(path)

    editor.page.keyboard.press("Tab")
    assert editor.page.evaluate(FOCUSED)["text"] == "Download"
    with editor.page.expect_download() as download:
        editor.page.keyboard.press("Space")
    assert download.value.suggested_filename == path.name

    editor.page.keyboard.press("Tab")
    assert editor.page.evaluate(FOCUSED)["text"] == "Load this latent"
    editor.page.keyboard.press("Enter")
    editor.page.wait_for_function("() => window.app.graph.nodes.some(n => n.type === 'LoadLatentFromDisk')")
    assert editor.ours == []


def tab_to(editor: Editor, words: str) -> None:
    """Press Tab until the button with these words has the focus, and shows it."""
    for _ in range(MOST_TABS):
        editor.page.keyboard.press("Tab")
        focused = editor.page.evaluate(FOCUSED)
        if focused["text"] == words:
            assert focused["outline"] >= 2
            return
    pytest.fail(f"{MOST_TABS} times Tab do not lead to {words!r}")


@pytest.mark.parametrize("palette", ["dark", "light"], indirect=True)
def test_words_can_be_read(editor: Editor, server: Server, palette: str) -> None:
    """What was saved, and above it why the next run failed."""
    lay_encoder(editor, "taesd", filename_prefix=f"colours_{palette}")
    run(editor, server)
    panel(editor, SAVED).wait_for()
    editor.choose("EncodeToLatentFile", "filename_prefix", "a/../../b")
    fail(editor, server)
    editor.page.locator(".latent-encoder-failure").wait_for()
    texts = editor.page.evaluate(TEXTS)
    assert len(texts) > 12
    faint = {each["text"]: contrast(each["colour"], each["behind"]) for each in texts}
    assert {text: ratio for text, ratio in faint.items() if ratio < READABLE} == {}
    light_behind = sum(texts[0]["behind"]) > 3 * 128
    assert light_behind == (palette == "light")
    assert editor.ours == []


def contrast(first: list[float], second: list[float]) -> float:
    """WCAG's contrast ratio of two sRGB colours."""
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: list[float]) -> float:
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in colour[:3])]
    return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))
