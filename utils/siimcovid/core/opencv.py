"""Loads OpenCV first, so that a build that this machine cannot load is answered by the command that mends it.

yolov5 asks for opencv-python, whose windows need X and OpenGL libraries that servers and containers lack.
opencv-python-headless is the same module without windows. `make` and uv leave the first one out; plain
`pip install .` cannot, installs both, and whichever came last is the `cv2` that is imported.

Raises InstallationError where `import cv2` fails. The folders of the package whose modules use OpenCV, or libraries
that do, import this one in their `__init__`.
"""

import sys

from siimcovid.core.errors import MEND_OPENCV, InstallationError


def explanation(error: ImportError, interpreter: str = sys.executable) -> str:
    """The sentence for a failed `import cv2`, with the command for this interpreter."""
    if isinstance(error, ModuleNotFoundError) and error.name == "cv2":
        return f"OpenCV is not installed: {interpreter} -m pip install opencv-python-headless"
    return f"OpenCV cannot be loaded here ({error}); its build without windows can: {MEND_OPENCV.format(interpreter)}"


try:
    import cv2  # noqa: F401
except ImportError as failure:
    raise InstallationError(explanation(failure)) from failure
