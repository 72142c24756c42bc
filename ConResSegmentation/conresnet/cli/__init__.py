"""``python -m conresnet``: the commands by name, and how each of them ends.

Exit status: 0 done; 2 something the user can fix, one sentence on stderr; 1 an internal error, one sentence that names
the log with the traceback; 130 stopped by Ctrl-C, 143 by SIGTERM, both cleaned up. A command's module is imported when
the command is called, so that ``--help`` is quick and needs no torch.
"""

import contextlib
import importlib
import io
import os
import platform
import re
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence

import click

from conresnet import __version__
from conresnet.errors import Cancelled, UserError, as_user_error

PROGRAM = "python -m conresnet"
_INTERRUPTED = 128 + signal.SIGINT
# Signals that mean "end now": a user's, a session's and a job queue's. Windows has only some of them.
_ENDING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGXCPU", "SIGUSR1", "SIGUSR2", "SIGQUIT")
ENDING = tuple(getattr(signal, name) for name in _ENDING if hasattr(signal, name))
_BLANK = re.compile(r"(--[\w-]+)=\s*")
# A ~ at the beginning of an argument, or of the value in --option=value, NAME=value or both.
_HOME = re.compile(r"((?:--[\w-]+=)?(?:[^=/\\]+=)?)~(?=[/\\])")

# Command: module in conresnet.cli, its click command, one line on what it does.
_COMMANDS = {
    "segment": (".segment", "segment", "Segment images with a model."),
    "models": (".models", "models", "List, show, verify, download, install and remove model packages."),
    "import": (".models", "import_checkpoint", "Make a model package from a checkpoint by the paper's authors."),
    "worker": (".", "worker", "Serve requests on stdin and stdout, for the Slicer module."),
}


class LazyGroup(click.Group):
    """Commands whose modules are imported when they are called; without a command, the help is shown.

    Args:
        package: the package that contains the modules.
        modules: for each command, its module with a leading dot, the click command in it, and a one-line summary.
    """

    def __init__(self, *args, package: str, modules: dict[str, tuple[str, str, str]], **options):
        context = {"help_option_names": ["-h", "--help"], "max_content_width": 100}
        super().__init__(*args, invoke_without_command=True, context_settings=context, **options)
        self.package, self.modules = package, modules

    def invoke(self, context: click.Context) -> object:
        result = super().invoke(context)
        if context.invoked_subcommand is None:
            click.echo(context.get_help())
        return result

    def list_commands(self, context: click.Context) -> list[str]:
        return list(self.modules)

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in self.modules:
            return None
        module, attribute, _ = self.modules[name]
        return getattr(importlib.import_module(module, self.package), attribute)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in self.modules.items()])


@click.command(cls=LazyGroup, package="conresnet.cli", modules=_COMMANDS)
@click.version_option(__version__, message="ConResNet %(version)s")
def conresnet() -> None:
    """Segment 3D medical images with inter-slice context residual learning.

    For research only; not a medical device. Every command has its own --help.
    """


@click.command()
@click.option("--remote", is_flag=True, help="Send and receive arrays through the pipe, as over ssh.")
def worker(remote: bool) -> int:
    """Serve requests on standard input until it closes.

    This is for programs: they write requests and read events, one JSON object per line, as described in
    conresnet.worker.
    """
    from conresnet.worker.server import serve

    return serve(remote=remote)


def main(arguments: Sequence[str] | None = None, command: click.Command = conresnet, program: str = PROGRAM) -> int:
    """Run one command and return the exit status.

    Args:
        arguments: the command line. Defaults to the process's own.
        command: what to run; the training backend's commands end by the same rules.
        program: how the user started it, for help and messages.
    """
    for stream in (sys.stdout, sys.stderr):
        # A console that lacks a character of a file's name must not turn the report of a success into a failure.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = [_with_home(argument) for argument in (sys.argv[1:] if arguments is None else arguments)]
    with _terminable() as terminated:
        status = _run(command, arguments, program)
    return 128 + terminated[0] if terminated and status == _INTERRUPTED else status


def say(text: str, err: bool = False) -> None:
    """Print a line; if nobody reads the output anymore, as after ``| head``, continue without printing."""
    try:
        click.echo(text, err=err)
    except OSError:
        _discard(sys.stderr if err else sys.stdout)


def _discard(stream: io.TextIOBase) -> None:
    """Discard everything written to a stream from now on, including what Python flushes when it ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def _terminable() -> Iterator[list[int]]:
    """Let termination signals act like Ctrl-C, so that nothing is left behind; yields those received.

    By default, they end Python at once. The second one is ignored, so that it does not interrupt the cleanup; the
    third ends it. A signal that is ignored, as by nohup, stays ignored. A command that handles them in another way, as
    training does, installs its own handler. Only the main thread receives signals.
    """
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def stop(number: int, frame: object) -> None:
        heard.append(number)
        # The third one means that the cleaning up hangs, or that the first was lost.
        if len(heard) in (1, 3):
            raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in ENDING}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _run(command: click.Command, arguments: Sequence[str], program: str) -> int:
    streams = sys.stdout, sys.stderr
    try:
        _check_not_blank(arguments)
        _check_current_folder()
        status = command.main(arguments, prog_name=program, standalone_mode=False) or 0
        if sys.stdout:
            sys.stdout.flush()
        return status
    except SystemExit:
        if (sys.stdout, sys.stderr) == streams:
            raise
        # What click does when nobody reads the output anymore, as after "| head".
        sys.stdout, sys.stderr = streams
        _discard(sys.stdout)
        return 0
    except click.ClickException as error:
        return _refuse(_click_sentence(error))
    except (click.Abort, KeyboardInterrupt, Cancelled):
        _refuse("Stopped.")
        return _INTERRUPTED
    except Exception as error:
        mistake = as_user_error(error) or _lost_output(error)
        return _refuse(mistake.message) if mistake else _internal_error(error, arguments)


def _check_not_blank(arguments: Sequence[str]) -> None:
    """Refuse an empty value, such as an unset shell variable, which must not be taken for an omitted option."""
    for place, argument in enumerate(arguments):
        before = arguments[place - 1] if place else ""
        if match := _BLANK.fullmatch(argument):
            raise UserError("argument-blank", option=match[1])
        if not argument.strip():
            raise UserError("argument-blank", option=before if before.startswith("-") else "an argument")


def _with_home(argument: str) -> str:
    """Expand ~/ in an argument where shells do not, as in --output=~/results, which would make a folder named "~"."""
    match = _HOME.match(argument)
    return match[1] + os.path.expanduser(argument[match.end() - 1 :]) if match else argument


def _check_current_folder() -> None:
    """Refuse a current folder that was deleted; below us, MKL would end the process with a message of its own."""
    try:
        os.getcwd()
    except FileNotFoundError as error:
        raise UserError("current-folder-gone") from error


def _lost_output(error: Exception) -> UserError | None:
    """What the user can do if it was printing that failed, as on a full disk; the output is then discarded."""
    *_, (frame, _line) = traceback.walk_tb(error.__traceback__)
    if not isinstance(error, OSError) or frame.f_code not in (click.echo.__code__, _run.__code__):
        return None
    _discard(sys.stdout)
    return UserError("output-lost", reason=error.strerror or str(error))


def _refuse(text: str) -> int:
    say(" ".join(text.split()), err=True)
    return 2


def _click_sentence(error: click.ClickException) -> str:
    text = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    if not context:
        return f"{text}."
    # The text may be a question, such as "Did you mean 'install'?"
    return f"{text}{' See' if text.endswith('?') else '; see'} {context.command_path} --help."


def _internal_error(error: Exception, arguments: Sequence[str]) -> int:
    """Write a log and say where it is."""
    reason = f"{type(error).__name__}: {error}".rstrip(": ")
    details = [
        f"ConResNet {__version__}, Python {platform.python_version()}, {platform.platform()}",
        f"Arguments: {list(arguments)}",
        "",
        "".join(traceback.format_exception(error)),
    ]
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="conresnet-", suffix=".log", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as log:
            log.write("\n".join(details))
    except OSError:
        _refuse(UserError("internal-error-no-log", reason=reason).message)
    else:
        _refuse(UserError("internal-error", reason=reason, log=log.name).message)
    return 1
