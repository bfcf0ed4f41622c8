"""`.env.example` lists every setting with its meaning and default."""

from __future__ import annotations

import textwrap
from pathlib import Path

from dotenv import dotenv_values

from latent_encoder.service.config import NAMES, Settings
from latent_encoder.service.config_sources import describe_allowed, show_value

EXAMPLE = Path(__file__).parents[2] / ".env.example"


def block(attribute: str) -> str:
    """What the example says of one setting."""
    info = Settings.model_fields[attribute]
    allowed = describe_allowed(attribute)
    meaning = f"{info.description} {allowed[:1].upper()}{allowed[1:]}." if allowed else str(info.description)
    default = "" if info.default_factory or info.default in (None, []) else show_value(info.default)
    lines = textwrap.wrap(meaning, 118, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
    return "\n".join([*lines, f"#{NAMES[attribute]}={default}"])


def test_the_example_lists_every_setting_with_meaning_and_default() -> None:
    _, *blocks = EXAMPLE.read_text(encoding="utf-8").strip().split("\n\n")
    assert blocks == [block(attribute) for attribute in NAMES]


def test_every_default_in_the_example_is_the_default(tmp_path: Path) -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    file = tmp_path / ".env"
    file.write_text("\n".join(line.lstrip("#") for line in lines if not line.startswith("# ")), encoding="utf-8")
    values = {name: value for name, value in dotenv_values(file).items() if value}
    assert Settings(**values) == Settings()
