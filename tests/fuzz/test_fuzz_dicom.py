"""Whatever a DICOM file holds, there is a picture or one line that says why not.

A decoder that crashes or hangs ends the run; the file that did it is the last one in pytest's temporary folder.
"""

import faulthandler

import numpy as np

from siimcovid.data.dicom_headers import read_header
from siimcovid.data.dicom_image import DicomError, read_image_with_notices
from support.fuzzing import fuzz
from support.strategies_dicom import files

#: Seconds after which reading an image of a few pixels hangs.
HANGS = 60


def test_any_file_is_a_picture_or_a_reason(tmp_path):
    path, pictures = tmp_path / "fuzzed.dcm", 0

    def is_picture_or_reason(content: bytes) -> None:
        nonlocal pictures
        path.write_bytes(content)
        faulthandler.dump_traceback_later(HANGS, exit=True)
        try:
            pixels, notices = read_image_with_notices(path)
        except DicomError as error:
            lines = [error.reason]
        else:
            assert (pixels.dtype, pixels.ndim) == (np.uint8, 2)
            assert pixels.size > 0
            pictures, lines = pictures + 1, notices
        finally:
            faulthandler.cancel_dump_traceback_later()
        assert all(line and line.isprintable() and len(line) < 400 for line in lines), lines

    tried = fuzz(is_picture_or_reason, content=files())
    assert pictures > tried / 3  # else it is the strategy that is broken


def test_any_header_has_a_size_or_a_fault(tmp_path):
    path = tmp_path / "fuzzed.dcm"

    def has_size_or_fault(content: bytes) -> None:
        path.write_bytes(content)
        header = read_header(path)
        assert bool(header.fault) == (header.rows == 0 and header.columns == 0)
        assert header.fault.isprintable() or not header.fault

    fuzz(has_size_or_fault, content=files())
