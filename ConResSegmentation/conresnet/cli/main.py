"""``python -m conresnet``: the commands by name, and how every one of them ends.

Exit status: 0 done; 2 a mistake the user can put right, one sentence on stderr; 1 a fault of ours, one sentence that
names the log with the traceback; 130 stopped by Ctrl-C, 143 by SIGTERM, both cleaned up. A command's module is imported
when the command is called, so that ``--help`` needs no torch and is quick.
"""

import contextlib
import importlib
import io
import platform
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Iterator, Sequence

import click

from conresnet import __version__
from conresnet.errors import Cancelled, UserError

PROGRAM = "python -m conresnet"
_INTERRUPTED = 128 + signal.SIGINT
# Command: module below conresnet.cli, its click command, what it does in a line.
_COMMANDS = {
    "segment": ("segment", "segment", "Segment images with a model."),
    "models": ("models", "models", "List, show, verify and install model packages."),
    "import": (
        "import_checkpoint",
        "import_checkpoint",
        "Make a model package of a checkpoint of the paper authors.",
    ),
    "worker": ("worker", "worker", "Serve requests on stdin and stdout, as the Slicer module has it do."),
}


class LazyGroup(click.Group):
    """Commands whose modules are imported when they are called; called without one, it shows its help.

    Args:
        package: that holds the modules.
        modules: for each command, its module in the package, the click command there, and what it does in a line.
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
        return getattr(importlib.import_module(f"{self.package}.{module}"), attribute)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, _, summary) in self.modules.items()])


@click.command(cls=LazyGroup, package="conresnet.cli", modules=_COMMANDS)
@click.version_option(__version__, message="ConResNet %(version)s")
def conresnet() -> None:
    """Segment 3-D medical images with inter-slice context residual learning.

    For research; not a medical device. Every command has its own --help.
    """


def main(arguments: Sequence[str] | None = None, command: click.Command = conresnet, program: str = PROGRAM) -> int:
    """Run one command and return the exit status.

    Args:
        arguments: the command line. Defaults to the process's own.
        command: what to run; the training backend's commands end by the same rules.
        program: how the user started it, for help and messages.
    """
    for stream in (sys.stdout, sys.stderr):
        # A console that lacks a letter of a file's name must not turn the report of a success into a failure.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    with _terminable() as terminated:
        status = _run(command, arguments, program)
    return 128 + terminated[0] if terminated and status == _INTERRUPTED else status


@contextlib.contextmanager
def _terminable() -> Iterator[list[int]]:
    """Let SIGTERM and SIGHUP end the work as Ctrl-C does, so that nothing is left lying; yields those heard.

    Python's own answer to them ends the process at once. One that is ignored, as nohup has it, stays so. A command that
    wants to hear them otherwise, as training does, sets its own handler. Signals go to the main thread alone.
    """
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def stop(number: int, frame: object) -> None:
        heard.append(number)
        # A second one must not cut the cleaning up short.
        for other in before:
            signal.signal(other, signal.SIG_IGN)
        raise KeyboardInterrupt

    numbers = (getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
    before = {number: signal.getsignal(number) for number in numbers}
    before = {number: handler for number, handler in before.items() if handler != signal.SIG_IGN}
    for number in before:
        signal.signal(number, stop)
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)


def _run(command: click.Command, arguments: Sequence[str], program: str) -> int:
    try:
        return command.main(arguments, prog_name=program, standalone_mode=False) or 0
    except UserError as error:
        _say(error.message)
        return 2
    except click.ClickException as error:
        _say(_click_sentence(error))
        return 2
    except (click.Abort, KeyboardInterrupt, Cancelled):
        _say("Stopped.")
        return _INTERRUPTED
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package in ("", "conresnet", "conresnet_training"):
            _say(_our_fault(error, arguments))
            return 1
        _say(UserError("package-missing", package=package, python=sys.executable).message)
        return 2
    except PermissionError as error:
        _say(UserError("no-permission", path=str(error.filename), reason=error.strerror or str(error)).message)
        return 2
    except Exception as error:
        _say(_our_fault(error, arguments))
        return 1


def _say(sentence: str) -> None:
    # A terminal that was closed hears nothing any longer.
    with contextlib.suppress(OSError):
        click.echo(" ".join(sentence.split()), err=True)


def _click_sentence(error: click.ClickException) -> str:
    sentence = error.format_message().rstrip(".")
    context = getattr(error, "ctx", None)
    return f"{sentence}; {context.command_path} --help says more." if context else f"{sentence}."


def _our_fault(error: Exception, arguments: Sequence[str]) -> str:
    """Write the log and return the sentence that names it."""
    what = f"{type(error).__name__}: {error}".rstrip(": ")
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
        return f"ConResNet failed by a fault of its own ({what}), and no log could be written."
    return f"ConResNet failed by a fault of its own ({what}); please report it with the log {log.name}."
