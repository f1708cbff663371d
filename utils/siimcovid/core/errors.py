"""The errors that a user can cause, so that every entry point can print them as a sentence instead of a traceback."""


class InputError(ValueError):
    """Bad input: the message names the file or value and says what to do about it."""


class InstallationError(ImportError):
    """A library is missing or cannot be loaded: the message names it and the command that mends it."""
