"""The two exceptions that every room of the engine shares. Imports nothing, so that Slicer's process can use it too."""


class UserError(Exception):
    """Something only the user can put right: a file, a setting, a full disk.

    Args:
        code: stable name of the fault, such as ``"image-not-found"``; Slicer's module translates by it.
        message: one sentence in English that says what is wrong, names the file, and says what to do.
        values: what the sentence speaks of (paths, counts), for a translated sentence.
    """

    def __init__(self, code: str, message: str, **values):
        super().__init__(message)
        self.code = code
        self.message = message
        self.values = values


class Cancelled(Exception):  # noqa: N818 - not an error, a wish
    """The user asked to stop; raised from inside the running work, which then leaves nothing half-written."""
