"""The command line: every setting as a flag, the mode, and what the standalone door is asked for."""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from latent_encoder import __version__

from .config import NAMES, Settings
from .config_sources import describe_allowed, flag, hide_passwords, is_list, show_value

MODES = ("standalone", "rest", "kafka")
REQUEST_FIELDS = ("request_id", "correlation_id", "file_format", "resolution_steps")

DESCRIPTION = "Encode pictures to latent files, from the command line, over HTTP or over Kafka."
USAGE = """
  %(prog)s --mode standalone --image-path PICTURE ... [flags]
  %(prog)s --mode rest [flags]
  %(prog)s --mode kafka [flags]
  %(prog)s send | topics | dlq ... (see: %(prog)s send --help)
  %(prog)s --show-settings"""
EPILOG = """\
Each setting is a flag, else an environment variable, else a line of .env in the working directory, under the name in
brackets. Flags may be written with dashes or underscores; several values are separated by commas.

exit codes: 0 done, 1 failed, 2 wrong use, 3 some of many pictures failed, 130 interrupted;
with --mode kafka, 3: another process has this worker's name, or the brokers have lost its state: start it again
"""


@dataclass
class Command:
    """What the command line says.

    Attributes:
        mode: as it was given; None without ``--mode``.
        flags: the settings that it names, by attribute, as text.
        pictures: what ``--image-path`` names, in order.
        report: the file for ``--report``.
        request: the fields of an EncodeRequest that it names.
        problems: each a sentence.
    """

    mode: str | None = None
    show_settings: bool = False
    flags: dict[str, str] = field(default_factory=dict)
    pictures: list[str] = field(default_factory=list)
    report: Path | None = None
    request: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


class WrongWords(Exception):
    """The command line cannot be read; says why."""


class Parser(argparse.ArgumentParser):
    """Raises WrongWords in place of ending the program."""

    def error(self, message: str) -> NoReturn:
        raise WrongWords(f"The command line cannot be read: {message}.")


def parse(argv: Sequence[str]) -> Command:
    """Read the command line; ``--help`` and ``--version`` print and end the program."""
    parser = make_parser()
    try:
        options, unknown = parser.parse_known_args([with_dashes(word) for word in argv])
    except WrongWords as error:
        return Command(problems=[str(error)])
    given = vars(options)
    command = Command(
        mode=options.mode,
        show_settings=options.show_settings,
        flags=setting_flags(given),
        pictures=options.image_path or [],
        report=options.report,
        request={name: given[name] for name in REQUEST_FIELDS if given[name] is not None},
        problems=unknown_words(unknown, [flag(name) for name in given]),
    )
    command.problems += _misfits(command)
    return command


def make_parser() -> argparse.ArgumentParser:
    """The parser; every value stays text, which the settings and the request check."""
    parser = Parser(
        prog="latent-encoder",
        usage=USAGE,
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--mode", help=f"which door: {', '.join(MODES)}")
    parser.add_argument("--show-settings", action="store_true", help="print every setting and where it came from")
    parser.add_argument("--version", action="version", version=__version__)
    _add_standalone(parser.add_argument_group("standalone"))
    add_settings(parser)
    return parser


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Every setting as a flag."""
    group = parser.add_argument_group("settings")
    for attribute in NAMES:
        _add_setting(group, attribute)


def setting_flags(given: Mapping[str, Any]) -> dict[str, str]:
    """The settings among what a parser has found, by attribute, as text."""
    flags = {name: given[name] for name in NAMES if given[name] is not None}
    return {name: ",".join(value) if isinstance(value, list) else value for name, value in flags.items()}


def _add_standalone(group: argparse._ArgumentGroup) -> None:
    add_pictures(group)
    group.add_argument(
        "--report", type=Path, metavar="FILE", help="write one answer a line (JSON), in order; made anew"
    )
    add_request(group)


def add_pictures(group: argparse._ArgumentGroup) -> None:
    """``--image-path``, for whoever takes many pictures."""
    group.add_argument(
        "--image-path",
        nargs="+",
        action="extend",
        metavar="PICTURE",
        help="the picture; may be repeated, be a folder, a glob, or - for names on stdin",
    )


def add_request(group: argparse._ArgumentGroup) -> None:
    """``REQUEST_FIELDS`` as flags."""
    group.add_argument("--request-id", metavar="ID", help="one picture's id and file name; made where absent")
    group.add_argument("--correlation-id", metavar="ID", help="handed back in every answer")
    group.add_argument("--file-format", metavar="FORMAT", help="safetensors (default), latent, pt or npy")
    group.add_argument("--resolution-steps", metavar="N", help="sides become multiples of it, 1 (default) to 256")


def _add_setting(group: argparse._ArgumentGroup, attribute: str) -> None:
    options: dict[str, Any] = {"help": f"{_describe(attribute)} [{NAMES[attribute]}]".replace("%", "%%")}
    if Settings.model_fields[attribute].annotation is bool:
        options |= {"nargs": "?", "const": "true", "metavar": "true|false"}
    elif is_list(attribute):
        options |= {"action": "append", "metavar": "LIST"}
    else:
        options |= {"metavar": "VALUE"}
    group.add_argument(flag(attribute), **options)


def _describe(attribute: str) -> str:
    """A setting's meaning, what it may be, and its default."""
    info = Settings.model_fields[attribute]
    allowed = describe_allowed(attribute)
    words = [info.description or "", f"{allowed[:1].upper()}{allowed[1:]}." if allowed else ""]
    if isinstance(info.default, (str, int, float, Path)):
        words.append(f"Default: {show_value(info.default)}.")
    return " ".join(filter(None, words))


def with_dashes(word: str) -> str:
    """A flag with dashes, however it was written; its value, after ``=``, stays as it is."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def unknown_words(words: list[str], known: list[str], *, pictures: bool = True) -> list[str]:
    """A sentence for each flag that is none, and for each word that belongs to no flag.

    Args:
        pictures: whether ``--image-path`` is known, and may have been meant.
    """
    hint = "; a picture is named with --image-path" if pictures else ""
    problems = []
    for index, word in enumerate(words):
        if word.startswith("-") and word != "-":
            name = word.partition("=")[0]
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            problems.append(f"There is no flag '{name}'" + (f"; did you mean {near[0]}?" if near else "."))
        elif not (index and words[index - 1].startswith("-")):  # else it is that flag's value
            problems.append(f"'{hide_passwords(word)}' belongs to no flag{hint}.")
    return problems


def _misfits(command: Command) -> list[str]:
    """What does not go together."""
    if command.mode is None:
        return [] if command.show_settings else [f"Say --mode {' or --mode '.join(MODES)}."]
    if command.mode not in MODES:
        return [f"--mode is '{command.mode}'; allowed: one of {', '.join(MODES)}."]
    named = [flag(name) for name in REQUEST_FIELDS if name in command.request]
    named += ["--image-path"] * bool(command.pictures) + ["--report"] * bool(command.report)
    if command.mode != "standalone" and named:
        return [f"{', '.join(named)}: only --mode standalone knows this."]
    if command.mode == "standalone" and not command.pictures:
        return ["Name a picture: --image-path photo.png."]
    return []
