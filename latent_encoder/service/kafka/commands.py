"""The subcommands ``send``, ``topics`` and ``dlq``: their options, which of them is run, and how it ends."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from latent_encoder.errors import LatentEncoderError
from latent_encoder.kafka_properties import LOGGER
from latent_encoder.service import logs
from latent_encoder.service.command_line import (
    REQUEST_FIELDS,
    Parser,
    WrongWords,
    add_pictures,
    add_request,
    add_settings,
    setting_flags,
    unknown_words,
    with_dashes,
)
from latent_encoder.service.config import NAMES
from latent_encoder.service.config_sources import Loaded, flag, load
from latent_encoder.service.doors.interrupts import Interrupts
from latent_encoder.service.exit_codes import FAILED, INTERRUPTED, WRONG_USE
from latent_encoder.service.start_checks import check_request, check_start

EXIT_CODES = "exit codes: 0 done, 1 failed, 2 wrong use, 3 some of many failed, 130 interrupted"
PROGRAM = "latent-encoder"

WHICH = """\
Dead letters are chosen by all of the options together; without any, all are. A time is RFC 3339 (2026-01-02T03:04:05Z),
or so long ago: 90m, 12h, 7d.
"""
REPLAY = """\
Without --yes nothing is sent: it shows what would be. A message goes to the topic that it came from, with key, value
and headers byte for byte; its dlq.* headers stay, so that it keeps its history. Its dead letter stays, too.

What has been replayed already is left out, as far as that is known: while the dead letter of its next failure, or the
replayed message itself, is still kept in its topic. --again sends it all the same.
"""

logger = logging.getLogger(__name__)


@dataclass
class Words:
    """A subcommand's command line.

    Attributes:
        name: ``send``, ``topics create``, ...
        options: its own options and the settings' flags, as argparse gives them.
        problems: each a sentence.
    """

    name: str
    options: argparse.Namespace
    problems: list[str] = field(default_factory=list)


def run(words: Sequence[str]) -> int:
    """Run a subcommand; returns the exit code.

    Args:
        words: the command line, from the subcommand on.
    """
    try:
        command = _parse(words)
    except WrongWords as error:
        return _report([str(error)])
    loaded = load(setting_flags(vars(command.options)))
    problems = command.problems + loaded.problems
    problems += check_start(loaded.settings, "kafka", loaded.refused | (NAMES.keys() - {"kafka_config_file"}))
    if command.name == "send":
        problems += check_request(_request_fields(command.options), loaded.settings)
    if problems:
        return _report(problems)
    _configure_logs(loaded)
    interrupts = Interrupts()
    try:
        with interrupts.handled():
            return _do(command, loaded)
    except LatentEncoderError as error:
        logger.error("%s: %s %s", error.code, error.message, error.hint)
        return WRONG_USE if error.code == "INVALID_REQUEST" else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # nobody reads stdout any more; the interpreter's own end shall not complain, too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED


def _do(command: Words, loaded: Loaded) -> int:
    settings, options = loaded.settings, command.options
    if command.name == "send":
        from . import send

        fields = _request_fields(options) | send.fields_of_settings(settings, loaded.origins)
        return send.run(settings, options.image_path, fields, wait=options.wait, as_named=options.as_named)
    if command.name.startswith("topics"):
        from . import topics

        if command.name == "topics check":
            return topics.check(settings)
        return topics.create(settings, topics.Plan.of(options), dry_run=options.dry_run)
    from . import dlq

    chosen = dlq.Choice.of(options)
    if command.name == "dlq list":
        return dlq.list_letters(settings, chosen, as_json=options.json)
    if command.name == "dlq show":
        return dlq.show_letters(settings, chosen, as_json=options.json)
    from . import dlq_replay

    return dlq_replay.replay(settings, chosen, yes=options.yes, again=options.again)


def _request_fields(options: argparse.Namespace) -> dict[str, str]:
    given = vars(options)
    return {name: given[name] for name in (*REQUEST_FIELDS, "deadline") if given[name] is not None}


def _configure_logs(loaded: Loaded) -> None:
    settings = loaded.settings
    logs.configure(settings.log_level, settings.log_format)
    if settings.log_level != "debug":  # a command says itself what is wrong
        logging.getLogger(LOGGER).setLevel(logging.CRITICAL)
    for warning in loaded.warnings:
        logger.warning(warning)


def _report(problems: list[str]) -> int:
    for problem in problems:
        print(f"{PROGRAM}: {problem}", file=sys.stderr)
    return WRONG_USE


# The command line


def _parse(words: Sequence[str]) -> Words:
    """Read the command line; ``--help`` prints and ends the program.

    Raises:
        WrongWords: it cannot be read.
    """
    parser = _make_parser()
    options, unknown = parser.parse_known_args([with_dashes(word) for word in words])
    known = [flag(name) for name in vars(options)]
    problems = unknown_words(unknown, known, pictures=options.command == "send")
    if options.command == "send" and not options.image_path:
        problems.append("Name a picture: --image-path photo.png.")
    if options.command == "dlq show" and not (options.places or options.id):
        problems.append("Say which dead letter: PARTITION:OFFSET, as dlq list shows it, or --id.")
    return Words(options.command, options, problems)


def _make_parser() -> Parser:
    parser = Parser(prog=PROGRAM, allow_abbrev=False)
    commands = parser.add_subparsers(required=True, metavar="send | topics | dlq")
    _add(commands, "send", "Send requests to the workers, and wait for their answers.", _add_send)
    topics = commands.add_parser("topics", help="Create or check the topics.", allow_abbrev=False)
    kinds = topics.add_subparsers(required=True, metavar="create | check")
    _add(kinds, "topics create", "Create the topics that are not there.", _add_create)
    _add(kinds, "topics check", "Say whether the topics are there, and what this user may do with them.")
    dlq = commands.add_parser("dlq", help="List, show or replay dead letters.", allow_abbrev=False)
    kinds = dlq.add_subparsers(required=True, metavar="list | show | replay")
    _add(kinds, "dlq list", f"List dead letters.\n\n{WHICH}", _add_list)
    _add(kinds, "dlq show", "Show dead letters whole: headers and value.", _add_show)
    _add(kinds, "dlq replay", f"Send the messages of dead letters again.\n\n{WHICH}\n{REPLAY}", _add_replay)
    return parser


def _add(
    commands: argparse._SubParsersAction[Parser],
    name: str,
    description: str,
    add_options: Callable[[argparse._ArgumentGroup], None] | None = None,
) -> None:
    """One subcommand, its options and every setting."""
    word = name.split()[-1]
    parser = commands.add_parser(
        word,
        prog=f"{PROGRAM} {name}",
        usage="%(prog)s [flags]" if word != "show" else "%(prog)s PARTITION:OFFSET ... [flags]",
        help=description.partition("\n")[0],
        description=description,
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=name)
    if add_options:
        add_options(parser.add_argument_group(name))
    add_settings(parser)


def _add_send(group: argparse._ArgumentGroup) -> None:
    add_pictures(group)
    group.add_argument(
        "--as-named", action="store_true", help="send the picture's path as it is named here; else it is made absolute"
    )
    group.add_argument(
        "--wait",
        action="store_true",
        help="print the answers as they come; give up when none has come for --timeout seconds",
    )
    add_request(group)
    group.add_argument("--deadline", metavar="TIME", help="nobody wants an answer later than this (RFC 3339)")


def _add_create(group: argparse._ArgumentGroup) -> None:
    numbers = {
        "--partitions": (12, "of each topic; as many workers can share the work"),
        "--replication-factor": (-1, "of each topic; -1 is the brokers' own default"),
        "--retention-days": (7, "how long requests and answers are kept"),
        "--dlq-retention-days": (30, "how long dead letters are kept"),
    }
    for name, (default, meaning) in numbers.items():
        group.add_argument(name, type=int, default=default, metavar="N", help=f"{meaning}; default: {default}")
    group.add_argument("--dry-run", action="store_true", help="ask the brokers whether they would, and create nothing")


def _add_filters(group: argparse._ArgumentGroup, *, places: bool) -> None:
    if places:
        group.add_argument("places", nargs="*", metavar="PARTITION:OFFSET", help="as dlq list shows it")
    else:
        group.set_defaults(places=[])
    group.add_argument("--id", metavar="REQUEST_ID", help="of this request")
    group.add_argument("--code", metavar="CODE", help="with this error code")
    group.add_argument("--since", metavar="TIME", help="that failed then or later")
    group.add_argument("--until", metavar="TIME", help="that failed then or earlier")
    group.add_argument("--limit", metavar="N", help="the newest so many")


def _add_list(group: argparse._ArgumentGroup) -> None:
    _add_filters(group, places=False)
    group.add_argument("--json", action="store_true", help="one JSON object a line")


def _add_show(group: argparse._ArgumentGroup) -> None:
    _add_filters(group, places=True)
    group.add_argument("--json", action="store_true", help="one JSON object a line; what is no text in base64")


def _add_replay(group: argparse._ArgumentGroup) -> None:
    _add_filters(group, places=True)
    group.add_argument("--yes", action="store_true", help="send")
    group.add_argument("--again", action="store_true", help="also what has been replayed already")
