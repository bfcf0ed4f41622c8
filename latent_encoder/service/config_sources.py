"""Read the settings from every source at once, and say in words what is wrong and where each value came from."""

from __future__ import annotations

import difflib
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from dotenv.parser import parse_stream
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import DotEnvSettingsSource, EnvSettingsSource

from .config import NAMES, SECRET_FILES, Settings

PREFIX = "LATENT_ENCODER_"
HIDDEN = "********"
LITTLE_ALIKE, MUCH_ALIKE = 0.5, 0.75
COMMAND_LINE, ENVIRONMENT, DOTENV, DEFAULT = "command line", "environment", ".env", "default"

_PASSWORD = re.compile(r"//.*@")


def flag(attribute: str) -> str:
    """The command line's name of a setting."""
    return "--" + attribute.replace("_", "-")


def is_list(attribute: str) -> bool:
    """Whether a setting takes several values."""
    return get_origin(Settings.model_fields[attribute].annotation) is list


@dataclass
class Loaded:
    """What all sources together say.

    Attributes:
        settings: where a value was not allowed, its default stands in.
        origins: where each attribute's value came from.
        refused: the attributes whose value was not allowed.
        problems: each a sentence; with any of them, the service does not start.
        warnings: each a sentence.
    """

    settings: Settings
    origins: dict[str, str]
    refused: set[str] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def load(flags: Mapping[str, str]) -> Loaded:
    """Read every source.

    Args:
        flags: what the command line says, by attribute; a list as comma-separated text.
    """
    sources: dict[str, dict[str, Any]] = {}
    problems: list[str] = []
    warnings: list[str] = []
    logging.getLogger("dotenv").setLevel(logging.ERROR)  # of lines that it cannot read, `_unread_lines` says more
    environment = EnvSettingsSource(Settings)
    in_environment = {key for key, name in NAMES.items() if {name, SECRET_FILES.get(key)} & environment.env_vars.keys()}
    try:
        dotenv = DotEnvSettingsSource(Settings, env_file=Path(".env"), dotenv_filtering="only_existing")
        sources[DOTENV] = _by_attribute(dotenv()) | _from_files(
            dotenv.env_vars, DOTENV, problems, beaten={*flags, *in_environment}
        )
        warnings += _unknown_names(dotenv.env_vars, DOTENV) + _unread_lines()
    except (OSError, UnicodeDecodeError) as error:
        problems.append(f"The file '.env' in the working directory cannot be read ({error}).")
    sources[ENVIRONMENT] = _by_attribute(environment()) | _from_files(
        environment.env_vars, ENVIRONMENT, problems, beaten=set(flags)
    )
    warnings += _unknown_names(environment.env_vars, ENVIRONMENT)
    sources[COMMAND_LINE] = dict(flags)

    values: dict[str, Any] = {}
    origins = dict.fromkeys(NAMES, DEFAULT)
    for origin, found in sources.items():
        values.update(found)
        origins.update(dict.fromkeys(found, origin))
    try:
        return Loaded(Settings(**values), origins, set(), problems, warnings)
    except ValidationError as error:
        # What is left unset because a value before it was refused is no problem of its own.
        refused = {attribute: reason for attribute, reason in _refused(error).items() if attribute in values}
    for attribute, reason in refused.items():
        problems.append(_problem(attribute, values[attribute], origins[attribute], reason))
    good = {attribute: value for attribute, value in values.items() if attribute not in refused}
    return Loaded(Settings(**good), origins, set(refused), problems, warnings)


def _by_attribute(found: Mapping[str, Any]) -> dict[str, Any]:
    """What a source found under the settings' names, by attribute."""
    return {attribute: found[name] for attribute, name in NAMES.items() if name in found}


def _from_files(
    names: Mapping[str, str | None], origin: str, problems: list[str], *, beaten: set[str]
) -> dict[str, str]:
    """The values of the settings that a source gives as ``<NAME>_FILE``, by attribute.

    Args:
        problems: to which what is wrong is added.
        beaten: the attributes that a source before this one gives.
    """
    found = {}
    for attribute, name in SECRET_FILES.items():
        path = names.get(name)
        if not path or attribute in beaten:
            continue
        if names.get(NAMES[attribute]):
            problems.append(
                f"{NAMES[attribute]} and {name} are both set (from {_spoken(origin)}): leave one of them out."
            )
            continue
        try:
            value = Path(path).read_text(encoding="utf-8").rstrip("\r\n")
            if value and len(value.splitlines()) == 1:
                found[attribute] = value
            else:
                lines = "holds more than one line" if value else "is empty"
                problems.append(f"{name} (from {_spoken(origin)}) names '{path}', which {lines}.")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            problems.append(f"{name} (from {_spoken(origin)}) names '{path}', which cannot be read ({reason}).")
    return found


def _unknown_names(names: Mapping[str, Any], origin: str) -> list[str]:
    """A warning for each name that looks like ours and is none: by its prefix, or, in our own file, by its letters."""
    known = {*NAMES.values(), *SECRET_FILES.values()}
    bare = {setting.removeprefix(PREFIX): setting for setting in known}
    found = []
    for name in sorted(set(names) - known):
        ours = name.upper().startswith(PREFIX)
        likeness = LITTLE_ALIKE if ours else MUCH_ALIKE
        near = difflib.get_close_matches(name.upper().removeprefix(PREFIX), bare, n=1, cutoff=likeness)
        if ours or (near and origin == DOTENV):
            meant = f"; did you mean {bare[near[0]]}?" if near else "."
            found.append(f"{name} (from {_spoken(origin)}) is no setting{meant}")
    return found


def _unread_lines() -> list[str]:
    """A warning for each line of ``.env`` that gives nothing a value; what stands in it may be a secret."""
    if not Path(DOTENV).is_file():
        return []
    found = []
    with open(DOTENV, encoding="utf-8") as file:
        for binding in parse_stream(file):
            text = binding.original.string
            if binding.error or (binding.key and binding.value is None):
                line = binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")
                found.append(f"Line {line} of .env cannot be read; write it as NAME=value.")
    return found


def _refused(error: ValidationError) -> dict[str, str]:
    """Each refused attribute with what our own validators say of it."""
    attributes = {name: attribute for attribute, name in NAMES.items()}
    refused: dict[str, str] = {}
    for entry in error.errors(include_url=False):
        name = str(entry["loc"][0])
        cause = entry.get("ctx", {}).get("error")
        refused.setdefault(attributes.get(name, name), str(cause or ""))
    return refused


def _problem(attribute: str, value: Any, origin: str, reason: str) -> str:
    allowed = describe_allowed(attribute) or reason or "another value"
    shown = "is not usable" if is_secret(attribute) else f"is '{hide_passwords(str(value))}'"
    return f"{NAMES[attribute]} {shown} (from {_spoken(origin)}); allowed: {allowed}."


def hide_passwords(text: str) -> str:
    """A text without the name and password that an address in it may hold."""
    return _PASSWORD.sub(f"//{HIDDEN}@", text)


def _spoken(origin: str) -> str:
    return origin if origin == DOTENV else f"the {origin}"


def is_secret(attribute: str) -> bool:
    """Whether a setting's value is never shown."""
    return "SecretStr" in repr(Settings.model_fields[attribute].annotation)


def describe_allowed(attribute: str) -> str:
    """What a setting may be, in words; empty where it is not a matter of its type."""
    info = Settings.model_fields[attribute]
    choices = _choices(info.annotation)
    if choices:
        return "one of " + ", ".join(choices)
    if info.annotation is bool:
        return "true or false"
    if info.annotation in (int, float):
        return _describe_range(info)
    if attribute.startswith("kafka_") and attribute.endswith("_topic"):
        return "up to 249 letters, digits, dots, dashes and underscores"
    if attribute == "worker_id":
        return "up to 64 letters, digits, dots, dashes and underscores, the first a letter or digit"
    return ""


def _choices(annotation: Any) -> list[str]:
    """The words of a Literal, wherever it stands in a type."""
    if get_origin(annotation) is Literal:
        return [str(choice) for choice in get_args(annotation)]
    return [choice for part in get_args(annotation) for choice in _choices(part)]


def _describe_range(info: FieldInfo) -> str:
    bounds = {name: getattr(part, name) for part in info.metadata for name in ("ge", "gt", "le") if hasattr(part, name)}
    kind = "a whole number" if info.annotation is int else "a number"
    least = f"above {bounds['gt']:,}" if "gt" in bounds else f"from {bounds['ge']:,}"
    return f"{kind} {least} to {bounds['le']:,}".removesuffix(".0")


def show(loaded: Loaded) -> str:
    """A table of all settings: name, value, where it came from. Secrets and passwords are hidden."""
    rows = [(name, _shown(loaded, attribute), attribute) for attribute, name in NAMES.items()]
    names, values = (max(len(row[column]) for row in rows) for column in (0, 1))
    return "\n".join(f"{name:<{names}}  {value:<{values}}  {loaded.origins[key]}" for name, value, key in rows)


def _shown(loaded: Loaded, attribute: str) -> str:
    settings = loaded.settings
    if attribute in loaded.refused:
        return "(not allowed)"
    return show_value(settings.models_folder if attribute == "model_dir" else getattr(settings, attribute))


def show_value(value: Any) -> str:
    """A setting's value as it is written; ``-`` for none. A secret is hidden."""
    if value is None or value == []:
        return "-"
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, float):
        return f"{value:g}"
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    return hide_passwords(text.lower() if isinstance(value, bool) else text)
