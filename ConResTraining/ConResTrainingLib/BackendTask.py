"""A command of the backend that a button starts, and stops while it runs."""

from collections.abc import Callable

from slicer.i18n import tr as _

from conresnet.errors import UserError
from ConResSegmentationLib import Messages
from ConResSegmentationLib.ChildProcess import ChildProcess, lastLine
from ConResSegmentationLib.ProcessLaunch import ProcessLaunch
from ConResSegmentationLib.StatusLabel import say


class BackendTask:
    """The button, the label that says how it goes, and the process.

    Args:
        button: started by a click; while the command runs it is called Cancel.
        label: says what goes on, and the sentence with which a command has failed.
        onClicked: called by a click that shall start something.
        onLine: called with each line that the command prints.
    """

    def __init__(self, button, label, onClicked: Callable[[], None], onLine: Callable[[str], None]):
        self._button, self._label, self._onClicked, self._onLine = button, label, onClicked, onLine
        self._text = button.text
        self._process: ChildProcess | None = None
        button.connect("clicked(bool)", self._onButton)

    @property
    def isRunning(self) -> bool:
        """Whether the command is at work."""
        return self._process is not None

    def run(
        self,
        launch: Callable[[], ProcessLaunch],
        text: str,
        onDone: Callable[[str], None],
        doneCodes: tuple[int, ...] = (0,),
    ) -> None:
        """Start a command. When it has ended, the label shows its closing sentence.

        Args:
            launch: says how; may raise UserError, which is shown.
            text: what goes on, for the label.
            onDone: called with the standard output when it ended with one of ``doneCodes``.
        """
        try:
            how = launch()
        except UserError as error:
            say(self._label, Messages.sentence(error), isError=True)
            return
        self._onLine(f"> {how.program} {' '.join(how.arguments)}")
        self._process = ChildProcess(how, lambda *ended: self._onEnded(onDone, doneCodes, *ended), self._onLine)
        self._button.text = _("Cancel")
        say(self._label, text)
        self._process.start()

    def stop(self) -> None:
        """Stop the command and wait until it has gone, without telling anybody; the module is about to end."""
        if self._process:
            self._process.stop(wait=True)

    def _onButton(self) -> None:
        if self._process:
            self._process.stop()
        else:
            self._onClicked()

    def _onEnded(
        self, onDone: Callable[[str], None], doneCodes: tuple[int, ...], exitCode: int | None, output: str, errors: str
    ) -> None:
        wasStopped = self._process.isStopped
        self._process = None
        self._button.text = self._text
        if wasStopped:
            say(self._label, _("Cancelled."))
            return
        sentence = lastLine(errors, output) or _("The command ended without a word; see the log.")
        say(self._label, sentence, isError=exitCode != 0)
        if exitCode in doneCodes:
            onDone(output)
