"""The two exceptions that the whole engine shares. Standard library only, so that Slicer's process can use them too."""

import errno
import os
import re
import sys

_OUR_PACKAGES = ("conresnet", "conresnet_training")
_FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
# What the file system or the user's account can cause at any time.
_FILE_SYSTEM = {
    getattr(errno, name)
    for name in (
        "EACCES EPERM ENOTDIR EISDIR EEXIST ENAMETOOLONG ELOOP EROFS EIO ESTALE ETIMEDOUT EHOSTDOWN EMFILE ENFILE"
    ).split()
    if hasattr(errno, name)
}

# The C library's message if a shared library does not fit into memory. For other reasons, a colon would follow.
_NO_MEMORY_TO_LOAD = re.compile("failed to map segment from shared object$|Cannot allocate memory")


class UserError(Exception):
    """Something only the user can fix: a file, a setting, a full disk.

    Args:
        code: stable name of the problem, such as ``"image-not-found"``. The English sentence that says what is wrong
            and what to do, the attribute ``message``, is in `conresnet.messages` under this code.
        message: the finished sentence, if the caller already has it.
        values: what the sentence names (paths, counts).
    """

    def __init__(self, code: str, message: str | None = None, /, **values):
        self.code = code
        self.values = values
        self.message = message if message is not None else _sentence(code, values)
        super().__init__(self.message)

    def within(self, code: str, **values) -> "UserError":
        """The same error with its context: the sentence of ``code``, in which this error's is ``{sentence}``."""
        return UserError(self.code, _sentence(code, {**values, "sentence": self.message}), **self.values, **values)

    def naming(self, path: str, name: str) -> "UserError":
        """The same error with ``name`` in place of a path that means nothing to the user."""
        values = {
            key: value.replace(path, name) if isinstance(value, str) else value for key, value in self.values.items()
        }
        return UserError(self.code, self.message.replace(path, name), **values)


def _sentence(code: str, values: dict) -> str:
    # Slicer's Reload keeps this module but reads the sentences again.
    from conresnet.messages import sentence

    return sentence(code, values)


class Cancelled(Exception):  # noqa: N818 - a request of the user's, not an error
    """The user asked to stop; raised from inside the running work, which then leaves nothing half-written."""


def as_user_error(error: Exception) -> UserError | None:
    """What the user can do about any exception; None if it is a bug.

    Besides UserErrors, these are running out of memory (also when loading a library), file system errors for a path, no
    folder for temporary files, and packages that this Python does not have.
    """
    match error:
        case UserError():
            return error
        case MemoryError():
            return UserError("memory-short")
        case FileNotFoundError(filename=None) if "temporary directory" in str(error):
            # From tempfile, which tries to write to several places.
            return UserError("no-temporary-folder")
        case ImportError() if _NO_MEMORY_TO_LOAD.search(str(error)):
            return UserError("memory-short")
        case ModuleNotFoundError(name=str(name)) if name.split(".")[0] not in _OUR_PACKAGES:
            return UserError("package-missing", package=name, python=sys.executable)
        case OSError(filename=str() | bytes() | os.PathLike() as path, errno=number) if number in _FULL_DISK:
            return UserError("disk-full", path=os.fsdecode(path))
        case OSError(filename=str() | bytes() | os.PathLike() as path, errno=number) if number in _FILE_SYSTEM:
            return UserError("cannot-access", path=os.fsdecode(path), reason=error.strerror)
    return None
