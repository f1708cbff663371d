"""The one error a user can cause, so that every entry point can print it as a sentence instead of a traceback."""


class InputError(ValueError):
    """Bad input: the message names the file or value and says what to do about it."""
