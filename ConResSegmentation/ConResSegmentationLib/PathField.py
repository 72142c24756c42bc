"""Fields for a path (ctkPathLineEdit), which tell of fewer changes by themselves than a panel needs to hear of."""

from collections.abc import Callable


def whenPathChanges(edit, react: Callable[[str], None]) -> None:
    """Call a function with the new text at every change of a path field.

    The field's own signal, ``currentPathChanged``, leaves out a path that is emptied, and one whose extension is not
    among the field's: what was chosen before would stay in use.

    Args:
        edit: a ctkPathLineEdit that shows the paths used before, as it does unless told otherwise.
        react: called with the text, whatever it is.
    """
    edit.comboBox().lineEdit().connect("textChanged(QString)", react)
