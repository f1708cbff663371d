"""The web page: images in, boxes, study probabilities and a heat map out (report, section 5).

web_app           the routes: page, JSON, health      uploaded_files    a client's file -> pixels, in another process
loaded_models     a weights folder -> models          image_predictor   an image -> what each model predicts on it
study_predictor   a study's images -> the result      grad_cam          the study model's heat map
request_queue     how many requests are worked on     request_fields, request_errors   the form; what goes wrong
page_pictures     previews                            templates/, static/              the page itself
"""
