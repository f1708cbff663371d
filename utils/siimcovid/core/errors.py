"""The errors that a user can cause, so that every entry point can print them as a sentence instead of a traceback."""


class InputError(ValueError):
    """Bad input: the message names the file or value and says what to do about it."""


class OutputError(InputError, OSError):
    """A place that cannot be written to. It is an OSError too, for those who go on without what was to be written."""

    def __str__(self) -> str:  # of two bases, each with one of its own
        return ValueError.__str__(self)


class InstallationError(ImportError):
    """A library is missing or cannot be loaded: the message names it and the command that mends it."""


#: For an interpreter {0}: takes both builds of OpenCV away and puts the one without windows back. They share files, so
#: removing one of them breaks the other.
MEND_OPENCV = (
    "{0} -m pip uninstall -y opencv-python opencv-python-headless && {0} -m pip install opencv-python-headless"
)
