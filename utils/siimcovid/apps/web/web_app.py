"""The web application: one page for people, one JSON endpoint for programs.

    GET  /             the page
    POST /             the page with the result (what the form does; the script puts it in place without a reload)
    POST /api/predict  the result as JSON, CSV or COCO (docs/web.md has the fields)
    POST /api/preview  an image as a JPEG, for browsers, which cannot show DICOM
    GET  /healthz      whether it is ready, and how busy

docs/web.md has the result and the errors, too. Nothing a client sends is kept or logged; no path or pickle of
a client is ever used, and names of files only for the client's own answer. A request waits for its place before its
body is taken apart.
"""

import io
import json
import logging
import traceback
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from flask import Flask, Response, jsonify, render_template, request
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from siimcovid import __version__
from siimcovid.apps.web.page_pictures import data_url, preview_jpeg
from siimcovid.apps.web.request_errors import RequestError
from siimcovid.apps.web.request_fields import read_files, read_flag, read_format, read_model, read_threshold
from siimcovid.apps.web.request_queue import RETRY_AFTER, Queue
from siimcovid.apps.web.result_files import MEDIA_TYPES, result_file
from siimcovid.apps.web.study_predictor import box_models, predict_study
from siimcovid.apps.web.uploaded_files import Limits, decode_upload, hold_upload, read_upload
from siimcovid.core.labels import STUDY_COLUMNS, STUDY_LABELS
from siimcovid.core.stage_names import stage_of
from siimcovid.inference.trained_model import RESEARCH_NOTICE, TrainedModel

logger = logging.getLogger(__name__)

MODEL_NAMES = {"rcnn": "Faster R-CNN", "yolo": "YOLO", "retinanet": "RetinaNet", "ensemble": "Ensemble"}

#: Score from which the page shows boxes at first.
THRESHOLD = 0.3

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Service:
    """What the routes work with."""

    model: TrainedModel
    limits: Limits
    queue: Queue


def create_app(model: TrainedModel, limits: Limits | None = None, queue: Queue | None = None) -> Flask:
    """The application around the models of a weights folder.

    It decodes and predicts one blank image, so that the first client need not wait for what is set up once.
    """
    service = Service(model, limits or Limits(), queue or Queue())
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = service.limits.megabytes << 20
    app.json.sort_keys = False
    app.jinja_env.filters["without_pictures"] = without_pictures
    app.jinja_env.filters["downloads"] = downloads
    warm_up(service)
    _add_page(app, service)
    _add_api(app, service)
    app.after_request(add_headers)
    app.register_error_handler(Exception, lambda error: answer_error(service, error))
    return app


def _add_page(app: Flask, service: Service) -> None:
    """The routes for people."""

    @app.get("/")
    def index() -> str:
        return render_page(service)

    @app.post("/")
    def show() -> str:
        with service.queue.place():
            shown = {"threshold": read_threshold(request, THRESHOLD), "heat": read_flag(request, "heat")}
            if model := read_model(request, box_models(service.model)):
                shown["model"] = model
            shown["result"] = predict_files(service, read_files(request), pictures=True)
        return render_page(service, **shown)


def _add_api(app: Flask, service: Service) -> None:
    """The routes for programs and for the page's script."""

    @app.post("/api/predict")
    def predict() -> Response:
        with service.queue.place():
            model, file = read_model(request, box_models(service.model)), read_format(request)
            threshold, pictures = read_threshold(request, 0.0), read_flag(request, "pictures")
            result = predict_files(service, read_files(request), pictures)
        selected = select_boxes(result, model, threshold)
        return Response(result_file(file, selected), mimetype=MEDIA_TYPES[file]) if file else jsonify(selected)

    @app.post("/api/preview")
    def preview() -> Response:
        with service.queue.place():
            with hold_upload(streams(read_files(request)), service.limits) as upload:
                image = next(decode_upload(upload, service.limits))
            return Response(preview_jpeg(image), mimetype="image/jpeg")

    @app.get("/healthz")
    def health() -> dict[str, Any]:
        return {
            "status": "ok",
            "version": __version__,
            "models": list(service.model.models),
            "requests": service.queue.inside,
        }


def warm_up(service: Service) -> None:
    """Start the decoding processes' server, compile the fusion and fill the models' caches with a blank image."""
    gradient = preview_jpeg(np.tile(np.arange(256, dtype=np.uint8), (256, 1)))
    predict_study(service.model, [read_upload(io.BytesIO(gradient), service.limits)], pictures=True)


def render_page(service: Service, **shown: Any) -> str:
    """The page as HTML; `shown` are the template's values that differ from those of the empty page."""
    model = service.model
    offered = box_models(model)
    context = {
        "models": {name: model_title(name, offered) for name in offered},
        "study_columns": dict(zip(STUDY_LABELS, STUDY_COLUMNS, strict=True)),
        "study_model": any(stage_of(name) == "study" for name in model.models),
        "limits": service.limits,
        "notices": [notice for notice in model.notices if notice != RESEARCH_NOTICE],
        "notice": RESEARCH_NOTICE,
        "version": __version__,
        "result": None,
        "error": None,
        "model": offered[-1] if offered else None,
        "threshold": THRESHOLD,
        "heat": False,
    }
    return render_template("index.html", **{**context, **shown})


def predict_files(service: Service, files: list[FileStorage], pictures: bool) -> dict[str, Any]:
    """The result of the images in a request's files, with each image's `name` as the client sent it, and the number
    of `files_left_out` of zips. Raises RequestError."""
    with hold_upload(streams(files), service.limits) as upload:
        result = predict_study(service.model, decode_upload(upload, service.limits), pictures)
    for entry, image in zip(result["images"], upload.images, strict=True):
        entry["name"] = image.name
    return {**result, "files_left_out": upload.left_out}


def model_title(name: str, offered: list[str]) -> str:
    """What the page calls a model; members of a fold ensemble are numbered: "Faster R-CNN 2" for "rcnn.1"."""
    stage, _, number = name.partition(".")
    several = sum(stage_of(other) == stage for other in offered) > 1
    return f"{MODEL_NAMES[stage]} {int(number or 0) + 1}" if several else MODEL_NAMES[stage]


def streams(files: list[FileStorage]) -> list[tuple[BinaryIO, str]]:
    """Each file's bytes and name."""
    return [(file.stream, file.filename or "") for file in files]


def select_boxes(result: dict[str, Any], model: str | None, threshold: float) -> dict[str, Any]:
    """A result with the boxes of one model alone (None: of all) that score `threshold` or more."""
    models = [model] if model else result["models"]
    images = []
    for image in result["images"]:
        boxes = {name: [box for box in image["boxes"][name] if box["score"] >= threshold] for name in models}
        images.append({**image, "none": {name: image["none"][name] for name in models}, "boxes": boxes})
    return {**result, "models": models, "images": images}


def without_pictures(result: dict[str, Any]) -> dict[str, Any]:
    """The result for the page's script and its download: the pictures are in the page already."""
    images = [{k: v for k, v in image.items() if k not in ("preview", "heatmap")} for image in result["images"]]
    return {**result, "images": images}


def downloads(result: dict[str, Any]) -> dict[str, str]:
    """File name -> data: address of each file that the page offers of a result; they need no script."""
    files = {name: (MEDIA_TYPES[name], result_file(name, result)) for name in MEDIA_TYPES}
    whole = json.dumps(without_pictures(result), indent=2, ensure_ascii=False)
    files["result.json"] = "application/json", whole
    return {name: data_url(media_type, text.encode()) for name, (media_type, text) in files.items()}


def add_headers(response: Response) -> Response:
    """Headers that keep the page to itself and out of caches."""
    response.headers.update(HEADERS)
    return response


def answer_error(service: Service, error: Exception) -> tuple[str | Response, int, dict[str, str]]:
    """An exception as an answer: the page where the page was asked for, else JSON."""
    known = as_request_error(error, service.limits)
    if request.path == "/" and known.code != "wrong_method":
        answer = render_page(service, error=known)
    else:
        answer = jsonify({"error": {"code": known.code, "message": known.message}})
    return answer, known.status, {"Retry-After": str(RETRY_AFTER)} if known.code == "busy" else {}


def as_request_error(error: Exception, limits: Limits) -> RequestError:
    """What the client is told. The log gets the place in our code, never the message, which may quote the upload."""
    if isinstance(error, RequestError):
        return error
    if isinstance(error, RequestEntityTooLarge):
        return RequestError("too_large", f"That is too much at once: send at most {limits.megabytes} MB in all.")
    if isinstance(error, HTTPException) and (error.code or 500) < 500:
        if error.code == 404:
            return RequestError("not_found", "There is no such page.")
        if error.code == 405:
            return RequestError("wrong_method", "This address is asked with another method: see docs/web.md.")
        return RequestError("bad_request", "The request cannot be read: send a multipart form.")
    place = traceback.extract_tb(error.__traceback__)[-1]
    logger.error("%s at %s:%s", type(error).__name__, place.filename, place.lineno)
    return RequestError("internal", "The server failed on this image; nothing was kept of it.")
