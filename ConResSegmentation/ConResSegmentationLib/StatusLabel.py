"""The sentence below the widgets of a section."""

_ERROR_STYLE = "color: #c0392b; font-weight: bold"


def say(label, text: str, isError: bool = False) -> None:
    """Show a sentence, or none: an empty label takes no room."""
    label.text = text
    label.styleSheet = _ERROR_STYLE if isError else ""
    label.visible = bool(text)
