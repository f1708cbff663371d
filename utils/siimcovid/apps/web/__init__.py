"""The web page: images in, boxes, study labels and a heat map out (report, section 5).

app.py        the routes: page, JSON, health          uploads.py    a client's file -> pixels, in another process
inference.py  the models; images -> one result         heatmap.py    where the study model looked
queue.py      how many work, how many wait            templates/, static/   the page itself
"""

from siimcovid.core import opencv  # noqa: F401  # fails with a sentence where OpenCV cannot be loaded
