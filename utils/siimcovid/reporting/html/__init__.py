"""One self-contained HTML page of a run, of a data set, or of both.

In: a run's folder, read by reporting/run_folder.py, or an index. Out: sections (page_blocks.py) of tables, SVG figures
and images, laid out by templates/report.html. The page says what is missing, and the same input gives the same bytes.
"""

from siimcovid.core import opencv  # noqa: F401  # fails with a sentence where OpenCV cannot be loaded
