"""One self-contained HTML page of a run, of a data set, or of both.

In: a run's folder as pipeline.py leaves it (run_folder.py reads it), or an index. Out: sections (blocks.py) of tables,
SVG pictures and images, laid out by templates/report.html. Whatever is missing is said on the page, and the same input
gives the same bytes.
"""

from siimcovid.core import opencv  # noqa: F401  # fails with a sentence where OpenCV cannot be loaded
