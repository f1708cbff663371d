"""What every program of this project does first."""

import atexit
import gc

#: Middle collections before one of the old objects; Python's own number is 10.
OLD_AFTER = 100


def spare_old_objects() -> None:
    """Let the collection of garbage look through old objects a tenth as often, and not once more as the program ends.

    PyTorch and torchvision bring a million objects that stay. To look through them again and again while they are
    imported took a quarter of the time in which a training starts, and another quarter as it ended. Young objects are
    looked through as ever. For a process of its own: it changes the whole of it.
    """
    young, middle, _ = gc.get_threshold()
    gc.set_threshold(young, middle, OLD_AFTER)
    atexit.register(gc.freeze)
