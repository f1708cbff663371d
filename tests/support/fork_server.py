"""A fork server that has imported what its children need, in the place of one that an earlier test started."""

import multiprocessing
from collections.abc import Iterable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext

#: What a training imports where it needs it.
IMPORTED_LATE = (
    "siimcovid.data.augmentation",
    "scipy.sparse.csgraph",
    "sklearn.metrics",
    "torch.utils.tensorboard",
    "efficientnet_lite_pytorch",
)


def fresh_fork_server(modules: Iterable[str]) -> ForkServerContext:
    """Start the server anew with these modules and IMPORTED_LATE imported, and wait for it; returns its context.

    The server that runs already keeps what it has imported, and each child of it would import the rest by itself.
    """
    forkserver._forkserver._stop()
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*modules, *IMPORTED_LATE])
    warm = context.Process(target=int)  # the server's imports are done when this is
    warm.start()
    warm.join()
    return context
