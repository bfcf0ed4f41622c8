"""``python main.py``, ``python -m latent_encoder.service`` and the command ``latent-encoder``."""

from __future__ import annotations

import itertools
import logging
import sys
from collections.abc import Sequence

from .exit_codes import DONE, INTERRUPTED, WRONG_USE
from .signals import Signals, handled_signals

SUBCOMMANDS = ("dlq", "send", "topics")
"""What is done with Kafka's topics; each is the first word of the command line."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the service; returns the exit code. Settings and command line are checked whole before anything starts."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        if "--mode=kafka" in words or ("--mode", "kafka") in itertools.pairwise(words):
            with handled_signals() as signals:  # before the heavy imports: a worker is stopped at any time
                return _run(words, signals)
        if words[:1] and words[0] in SUBCOMMANDS:
            from .kafka.commands import run

            return run(words)
        return _run(words)
    except KeyboardInterrupt:  # while a door was not there yet to handle it
        return INTERRUPTED


def _run(argv: Sequence[str], signals: Signals | None = None) -> int:
    from . import logs
    from .command_line import parse
    from .config_sources import load, show
    from .start_checks import check_request, check_start

    command = parse(argv)
    loaded = load(command.flags)
    settings = loaded.settings
    problems = command.problems + loaded.problems
    if command.show_settings:
        print(show(loaded))
        return _report(problems, loaded.warnings)
    if command.mode:
        problems += check_start(settings, command.mode, loaded.refused)
    problems += check_request(command.request, settings)
    if problems:
        return _report(problems, loaded.warnings)
    logs.configure(settings.log_level, settings.log_format)
    for warning in loaded.warnings:
        logging.getLogger(__name__).warning(warning)
    if command.mode == "kafka" and signals:
        from . import kafka

        return kafka.run(settings, signals)
    if command.mode == "rest":
        from .doors import rest

        return rest.run(settings)
    from .doors import standalone

    return standalone.run(settings, command.pictures, request=command.request, report=command.report)


def _report(problems: list[str], warnings: list[str]) -> int:
    for warning in warnings:
        print(f"latent-encoder: warning: {warning}", file=sys.stderr)
    for problem in problems:
        print(f"latent-encoder: {problem}", file=sys.stderr)
    return WRONG_USE if problems else DONE


if __name__ == "__main__":
    sys.exit(main())
