"""Why a request gets no result: a code, an HTTP status and one sentence for the person who sent it."""

#: code -> HTTP status of every error that a request can end in; docs/web.md explains them.
STATUS = {
    "bad_request": 400,
    "no_image": 400,
    "bad_value": 400,
    "not_found": 404,
    "wrong_method": 405,
    "too_large": 413,
    "too_many_images": 413,
    "too_many_pixels": 413,
    "not_an_image": 415,
    "bad_zip": 422,
    "empty": 422,
    "damaged": 422,
    "too_small": 422,
    "too_slow": 422,
    "internal": 500,
    "busy": 503,
}


class RequestError(Exception):
    """A request that gets no result. code: a key of STATUS. message: one sentence without a word of the upload."""

    def __init__(self, code: str, message: str):
        super().__init__(message)
        self.code, self.message, self.status = code, message, STATUS[code]

    def __reduce__(self):  # it is sent from the decoding process to this one
        return type(self), (self.code, self.message)
