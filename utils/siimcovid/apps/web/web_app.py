"""The web application: one page for people, one JSON endpoint for programs.

    GET  /             the page
    POST /             the page with the result (what the form does; the script puts it in place without a reload)
    POST /api/predict  the result as JSON: fields `images` (files), `model`, `threshold` (0 to 1), `pictures` (0 or 1)
    POST /api/preview  an image as a JPEG, for browsers, which cannot show DICOM
    GET  /healthz      whether it is ready, and how busy

docs/web.md has the fields, the result and the faults. Nothing a client sends is kept or logged, and no path, pickle or
file name from a client is ever used. A request waits for its place before its body is taken apart.
"""

import io
import logging
import traceback
from collections.abc import Iterator
from typing import Any

import numpy as np
from flask import Flask, Request, Response, jsonify, render_template, request
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge

from siimcovid import __version__
from siimcovid.apps.web.request_queue import RETRY_AFTER, Queue
from siimcovid.apps.web.study_predictor import NOTICE, Models, shrink
from siimcovid.apps.web.uploaded_files import Fault, Limits, read_upload
from siimcovid.core.labels import STUDY_COLUMNS, STUDY_LABELS

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


def create_app(models: Models, limits: Limits | None = None, queue: Queue | None = None) -> Flask:
    """The application around loaded models. It decodes and predicts one blank image, so that the first client need not
    wait for what is set up once."""
    limits, queue = limits or Limits(), queue or Queue()
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = limits.megabytes << 20
    app.json.sort_keys = False
    app.jinja_env.filters["without_pictures"] = _without_pictures
    warm_up(models, limits)

    def page(status: int = 200, **shown: Any) -> tuple[str, int]:
        context = {
            "models": {name: MODEL_NAMES[name] for name in models.choices},
            "study_columns": dict(zip(STUDY_LABELS, STUDY_COLUMNS, strict=True)),
            "study_model": "study" in models.stages,
            "limits": limits,
            "notice": NOTICE,
            "version": __version__,
            "result": None,
            "fault": None,
            "model": models.choices[-1] if models.choices else None,
            "threshold": THRESHOLD,
            "heat": False,
        }
        return render_template("index.html", **{**context, **shown}), status

    @app.get("/")
    def index() -> tuple[str, int]:
        return page()

    @app.post("/")
    def show() -> tuple[str, int]:
        with queue.place():
            shown = {"threshold": threshold(request, THRESHOLD), "heat": flag(request, "heat")}
            if model := choice(request, models):
                shown["model"] = model
            shown["result"] = models.predict(images(request, limits), pictures=True)
        return page(**shown)

    @app.post("/api/predict")
    def predict() -> Response:
        with queue.place():
            model, least = choice(request, models), threshold(request, 0.0)
            result = models.predict(images(request, limits), pictures=flag(request, "pictures"))
        if model:
            result["models"] = [model]
        for image in result["images"]:
            image["none"] = {name: image["none"][name] for name in result["models"]}
            image["boxes"] = {
                name: [box for box in image["boxes"][name] if box["score"] >= least] for name in result["models"]
            }
        return jsonify(result)

    @app.post("/api/preview")
    def preview() -> Response:
        with queue.place():
            image = next(images(request, limits))
            return Response(shrink(image), mimetype="image/jpeg")

    @app.get("/healthz")
    def health() -> dict[str, Any]:
        return {"status": "ok", "version": __version__, "models": list(models.stages), "requests": queue.inside}

    @app.after_request
    def protect(response: Response) -> Response:
        for name, value in HEADERS.items():
            response.headers[name] = value
        return response

    @app.errorhandler(Exception)
    def failed(error: Exception) -> Any:
        fault = as_fault(error, limits)
        if request.path == "/" and fault.code != "wrong_method":
            answer, status = page(fault.status, fault=fault)
        else:
            answer, status = jsonify({"error": {"code": fault.code, "message": fault.message}}), fault.status
        headers = {"Retry-After": str(RETRY_AFTER)} if fault.code == "busy" else {}
        return answer, status, headers

    return app


def warm_up(models: Models, limits: Limits) -> None:
    """Start the decoding processes' server, compile the fusion and fill the models' caches with a blank image."""
    data = io.BytesIO()
    data.write(shrink(np.tile(np.arange(256, dtype=np.uint8), (256, 1))))
    data.seek(0)
    models.predict([read_upload(data, limits)], pictures=True)


def images(form: Request, limits: Limits) -> Iterator[np.ndarray]:
    """The request's images, decoded one after the other. Raises Fault."""
    files = [file for file in form.files.getlist("images") if file.filename]  # no name: none was chosen
    if not files:
        raise Fault("no_image", "No image was sent: choose at least one file.")
    if len(files) > limits.images:
        raise Fault(
            "too_many_images", f"{len(files)} images were sent: send at most {limits.images}, all of one study."
        )
    return _decoded(files, limits)


def _decoded(files: list, limits: Limits) -> Iterator[np.ndarray]:
    for number, file in enumerate(files, 1):
        yield read_upload(file.stream, limits, f"Image {number}" if len(files) > 1 else "The image")


def choice(form: Request, models: Models) -> str | None:
    """The field `model`, None where it is absent or empty. Raises Fault."""
    name = form.form.get("model") or None
    if name is not None and name not in models.choices:
        offered = ", ".join(models.choices) or "none, since this server has no detector"
        raise Fault("bad_value", f"There is no such model here: choose one of {offered}.")
    return name


def threshold(form: Request, default: float) -> float:
    """The field `threshold`. Raises Fault."""
    text = form.form.get("threshold") or str(default)
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise Fault("bad_value", "The threshold must be a number from 0 to 1.")
    return value


def flag(form: Request, name: str) -> bool:
    """A field that is 0 or 1; absent is 0. Raises Fault."""
    text = form.form.get(name) or "0"
    if text not in ("0", "1"):
        raise Fault("bad_value", f"The field {name} must be 0 or 1.")
    return text == "1"


def as_fault(error: Exception, limits: Limits) -> Fault:
    """What the client is told. The log gets the place in our code, never the message, which may quote the upload."""
    if isinstance(error, Fault):
        return error
    if isinstance(error, RequestEntityTooLarge):
        return Fault("too_large", f"That is too much at once: send at most {limits.megabytes} MB in all.")
    if isinstance(error, HTTPException) and (error.code or 500) < 500:
        known = {404: ("not_found", "There is no such page."), 405: ("wrong_method", "That is not how this is asked.")}
        return Fault(*known.get(error.code, ("bad_request", "The request cannot be read: send a multipart form.")))
    place = traceback.extract_tb(error.__traceback__)[-1]
    logger.error("%s at %s:%s", type(error).__name__, place.filename, place.lineno)
    return Fault("internal", "The server failed on this image; nothing was kept of it.")


def _without_pictures(result: dict) -> dict:
    """The result for the page's script and its download: the pictures are in the page already."""
    images = [{k: v for k, v in image.items() if k not in ("preview", "heatmap")} for image in result["images"]]
    return {**result, "images": images}
