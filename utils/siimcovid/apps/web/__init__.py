"""The web page: images or a zip of them in; boxes, study probabilities and a heat map out (report, section 5).

web_app           the routes: page, JSON, health        request_fields, request_errors   the form; what goes wrong
request_queue     how many requests are worked on       listening_sockets                where the page is served
uploaded_files    a client's files -> pixels, in another process; uploaded_zip for those in a zip
study_predictor   a study's images -> the result, by the models that siimcovid.load loads
result_files      the result as CSV and COCO
grad_cam          the study model's heat map            page_pictures     previews; templates/ and static/ are the page
"""

from siimcovid.core import opencv  # noqa: F401  # fails with a sentence where OpenCV cannot be loaded
