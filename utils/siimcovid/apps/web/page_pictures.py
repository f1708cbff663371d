"""Pictures for the page: a small JPEG of an image, and bytes as an address that needs no request."""

import base64

import cv2
import numpy as np

from siimcovid.data import image_cache

#: Longer side in pixels of the picture that the page shows.
PREVIEW_SIDE = 1024


def preview_jpeg(image: np.ndarray) -> bytes:
    """A uint8 image (rows, columns) as a JPEG of at most PREVIEW_SIDE pixels a side."""
    picture = image_cache.fit(image, PREVIEW_SIDE)
    return cv2.imencode(".jpg", picture, (cv2.IMWRITE_JPEG_QUALITY, 90))[1].tobytes()


def data_url(media_type: str, data: bytes) -> str:
    """Bytes as a data: address."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
