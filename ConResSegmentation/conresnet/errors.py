"""The two exceptions that the whole engine shares. Standard library only, so that Slicer's process can use them too."""

from conresnet.messages import sentence


class UserError(Exception):
    """Something only the user can fix: a file, a setting, a full disk.

    The sentence that the user reads is written in `conresnet.messages`, once, under the error's code.

    Args:
        code: stable name of the problem, such as ``"image-not-found"``.
        message: the sentence itself, for a code that has no entry in the catalog yet.
        values: what the sentence names (paths, counts).

    Attributes:
        message: one English sentence that says what is wrong and what to do.
    """

    def __init__(self, code: str, message: str | None = None, /, **values):
        self.code = code
        self.values = values
        self.message = message if message is not None else sentence(code, values)
        super().__init__(self.message)

    def within(self, code: str, **values) -> "UserError":
        """The same error, told with its context: the sentence of ``code``, which names this one's as ``{sentence}``."""
        return UserError(self.code, sentence(code, {**values, "sentence": self.message}), **self.values, **values)


class Cancelled(Exception):  # noqa: N818 - a request of the user's, not an error
    """The user asked to stop; raised from inside the running work, which then leaves nothing half-written."""
