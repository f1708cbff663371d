"""The elements of a DICOM file that an image is made of, as far as they can be found.

In: the path of a file. Out: a pydicom data set with the elements of NEEDED that the file has, pixel data among them.

Only these elements are read: whatever stands in all others cannot matter. Where damage makes the ordinary reader lose
its way (a wrong length, a sequence without end, a frame without delimiter), the missing elements are searched for by
the bytes that they begin with, and that is noticed.
"""

import struct
from io import BytesIO
from pathlib import Path

import pydicom
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset
from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

PIXEL_DATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")

#: Elements without which no pixel can be read.
DESCRIPTION = ("SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored")

#: Elements of a few bytes, which can be found by these.
SHORT = (
    *DESCRIPTION,
    *("PlanarConfiguration", "NumberOfFrames", "HighBit", "PixelRepresentation"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("WindowCenter", "WindowWidth", "RescaleIntercept", "RescaleSlope", "VOILUTFunction"),
)

NEEDED = (
    *SHORT,
    *("ModalityLUTSequence", "VOILUTSequence"),
    *(
        f"{colour}PaletteColorLookupTable{part}"
        for colour in ("Red", "Green", "Blue")
        for part in ("Descriptor", "Data")
    ),
    *(f"Segmented{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *PIXEL_DATA,
)

#: Value representations that a short element may have, by the first bytes of its explicit form.
SHORT_VRS = (b"US", b"SS", b"CS", b"IS", b"DS", b"LO")

#: No short element is longer; more is another pattern of bytes that looks like one.
LONGEST_SHORT = 256

UNDEFINED = 0xFFFFFFFF


def read_elements(path: Path | str, notices: list[str], also: tuple[str, ...] = ()) -> Dataset:
    """Read the elements of NEEDED that a DICOM file has; it may lack preamble, file meta group and transfer syntax.

    also: keywords of further short elements.
    The data set has a file_meta with the transfer syntax, which is guessed from the encoding where the file has none.
    Raises OSError where the file cannot be opened, and what pydicom raises for something that is no DICOM file.
    """
    with open(path, "rb") as stream:
        has_preamble = stream.read(132)[128:] == b"DICM"
    try:
        dataset = pydicom.dcmread(path, force=True, specific_tags=[*NEEDED, *also])
        missing = not any(name in dataset for name in PIXEL_DATA) or any(name not in dataset for name in DESCRIPTION)
    except Exception as error:
        if not has_preamble or (isinstance(error, OSError) and error.errno is not None):  # else it is pydicom's own
            raise
        dataset, missing = None, True
    if missing and has_preamble:
        dataset = _search(Path(path).read_bytes(), dataset, notices, SHORT + also)
    if "TransferSyntaxUID" not in dataset.file_meta:  # then it was read as what its first bytes look like
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return dataset


def _search(content: bytes, found: Dataset | None, notices: list[str], names: tuple[str, ...]) -> Dataset:
    """Add to what was found the elements of these names that can be recognised by the bytes they begin with."""
    pixels = _find_pixels(content)
    header = content[: len(content) if pixels is None else pixels[0]]
    elements = {name: element for name in names if (element := _find_short(header, name))}
    dataset = Dataset() if found is None else found
    added = False
    for name, element in elements.items():
        if name not in dataset:
            dataset.update(element)
            added = True
    if pixels is not None and not any(name in dataset for name in PIXEL_DATA):
        dataset.add_new("PixelData", "OB" if pixels[2] else "OW", content[pixels[1] :][: pixels[3]])
        added = True
    if found is None:
        dataset.file_meta = _find_meta(content)
        implicit = dataset.file_meta.get("TransferSyntaxUID") == ImplicitVRLittleEndian
        dataset.set_original_encoding(implicit, True)
    if added:
        notices.append(
            "its header is damaged: the description of the pixels was searched for, other elements are ignored"
        )
    return dataset


def _find_short(header: bytes, name: str) -> Dataset | None:
    """The first element of this name that the bytes hold, in explicit or implicit form, little endian."""
    tag = tag_for_keyword(name)
    start = struct.pack("<HH", tag >> 16, tag & 0xFFFF)
    position = header.find(start)
    while position >= 0:
        following = header[position + 4 : position + 8]
        explicit = following[:2] in SHORT_VRS
        if len(following) == 4:
            length = struct.unpack("<H", following[2:])[0] if explicit else struct.unpack("<I", following)[0]
            if length <= LONGEST_SHORT and position + 8 + length <= len(header) and length % 2 == 0:
                return read_dataset(BytesIO(header[position : position + 8 + length]), not explicit, True)
        position = header.find(start, position + 1)
    return None


def _find_pixels(content: bytes) -> tuple[int, int, bool, int] | None:
    """Where the element of pixel data begins, where its value does, whether that is encapsulated, and its length.

    Of several (an icon has one too) the one with the longest value. A value may break off with the file.
    """
    candidates = []
    position = content.find(b"\xe0\x7f\x10\x00")
    while position >= 0:
        explicit = content[position + 4 : position + 6] in (b"OB", b"OW", b"UN")
        value = position + (12 if explicit else 8)
        if value <= len(content):
            length = struct.unpack("<I", content[value - 4 : value])[0]
            encapsulated = length == UNDEFINED
            there = len(content) - value if encapsulated else min(length, len(content) - value)
            if encapsulated or explicit or length == there:
                candidates.append((position, value, encapsulated, there))
        position = content.find(b"\xe0\x7f\x10\x00", position + 4)
    return max(candidates, key=lambda candidate: candidate[3], default=None)


def _find_meta(content: bytes) -> FileMetaDataset:
    """The file meta group's transfer syntax, found by its bytes."""
    meta = FileMetaDataset()
    position = content.find(struct.pack("<HH2s", 0x0002, 0x0010, b"UI"), 132, 4096)
    if position >= 0:
        length = struct.unpack("<H", content[position + 6 : position + 8])[0]
        meta.TransferSyntaxUID = content[position + 8 : position + 8 + length].decode("latin-1").strip(" \0")
    return meta
