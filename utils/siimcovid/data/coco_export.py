"""Export of the index to COCO's JSON, the format of listing 1 in the report, section 2.3.

Images keep their original size, and their `file_name` is the DICOM file's path inside the competition folder.
"""

from pathlib import Path

import pandas as pd


def to_coco(images: pd.DataFrame, folder: Path | str) -> dict:
    """The index as a COCO dataset with the one category "opacity"; `folder` is what file names are relative to.

    bbox is [x, y, width, height] and area width * height, in pixels of the original image, to the 5 decimals of the
    competition's CSV. Ids count from 1 in the order of `images`. Images of unknown size are left out. Each image has
    `annotated`, which COCO's own tools ignore: whether its lack of boxes means anything (see competition.py).
    """
    folder = Path(folder).absolute()
    entries, annotations = [], []
    for row in images[(images["rows"] > 0) & (images["columns"] > 0)].itertuples():
        name = Path(row.path or folder / row.split / row.study_id / row.series_id / f"{row.image_id}.dcm")
        entries.append(
            {
                "id": len(entries) + 1,
                "width": int(row.columns),
                "height": int(row.rows),
                "file_name": (name.relative_to(folder) if name.is_relative_to(folder) else name).as_posix(),
                "annotated": bool(row.annotated),
            }
        )
        for x1, y1, x2, y2 in row.boxes:
            x, y = x1 * row.columns, y1 * row.rows
            width, height = (x2 - x1) * row.columns, (y2 - y1) * row.rows
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": len(entries),
                    "category_id": 1,
                    "area": round(width * height, 5),
                    "bbox": [round(number, 5) for number in (x, y, width, height)],
                    "iscrowd": 0,  # not in the listing, but COCO's evaluation asks for it
                }
            )
    return {"images": entries, "annotations": annotations, "categories": [{"id": 1, "name": "opacity"}]}
