"""Preparation of images that fails, for test_faults.py: the preparing processes import this module."""

import errno
import os
import signal

from siimcovid.data import image_cache

make_picture = image_cache._make

#: A file in the run's folder that names the image whose preparation fails.
VICTIM = "victim.txt"


def killed_worker(job: tuple) -> image_cache.Outcome:
    """Prepare an image; the process that gets the victim dies."""
    if job[1].stem == (job[1].parents[1] / VICTIM).read_text():
        os.kill(os.getpid(), signal.SIGKILL)
    return make_picture(job)


def full_disk(job: tuple) -> image_cache.Outcome:
    """Prepare an image on a disk without room for the victim's picture."""
    if job[1].stem == (job[1].parents[1] / VICTIM).read_text():
        raise OSError(errno.ENOSPC, "No space left on device", str(job[1]))
    return make_picture(job)
