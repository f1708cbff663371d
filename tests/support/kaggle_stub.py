"""A stand-in for Kaggle's API on 127.0.0.1, and the surroundings in which Kaggle's own client talks to it alone.

The client can be told to talk to http://localhost (port 80). Through `http_proxy` that reaches the stub at whatever
port it has; anything that the client would send elsewhere reaches it as well, and is recorded as astray.
"""

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class Stub(ThreadingHTTPServer):
    """Answers what the client asks in an upload; `calls` holds (method name, request), `files` name -> bytes."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls, self.astray, self.files, self.names = [], [], {}, {}
        self.datasets: set[str] = set()  # owner/slug of those that exist
        self.refusals: dict[str, dict] = {}  # method name -> answer instead of the usual one
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def surroundings(self, home: Path, username: str = "somebody") -> dict[str, str]:
        """Environment variables for the client: fake credentials, and no way but to this stub."""
        home.mkdir(parents=True, exist_ok=True)
        address = f"http://127.0.0.1:{self.server_port}"
        proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"), address)
        credentials = {"KAGGLE_USERNAME": username, "KAGGLE_KEY": "0123456789abcdef"} if username else {}
        return {
            "PATH": str(Path(sys.executable).parent),
            "HOME": str(home),
            "KAGGLE_CONFIG_DIR": str(home),
            "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
            "no_proxy": "",
            **proxies,
            **credentials,
        }

    def requests(self, method: str) -> list[dict]:
        """What was sent to a method of the API."""
        return [body for name, body in self.calls if name == method]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: Stub

    def do_POST(self) -> None:
        url, body = urlsplit(self.path), self._body()
        if url.netloc != "localhost" or not url.path.startswith("/api/v1/"):
            self._astray()
            return
        method = url.path.rsplit("/", 1)[1]
        sent = json.loads(body or b"{}")
        self.server.calls.append((method, sent))
        if method in self.server.refusals:
            self._answer(200, self.server.refusals[method])
        elif method == "GetDatasetStatus":
            known = f"{sent['ownerSlug']}/{sent['datasetSlug']}" in self.server.datasets
            self._answer(*((200, {"status": "READY"}) if known else (403, {"code": 403, "message": "Forbidden"})))
        elif method == "StartBlobUpload":
            token = f"token-{len(self.server.names)}"
            self.server.names[token] = sent["name"]
            self._answer(200, {"token": token, "createUrl": f"http://localhost/upload/{token}"})
        elif method in ("CreateDataset", "CreateDatasetVersion"):
            owner = sent.get("ownerSlug"), sent.get("slug") or sent.get("datasetSlug")
            self.server.datasets.add("/".join(owner))
            self._answer(200, {"status": "ok", "url": "/datasets/" + "/".join(owner), "ref": "/".join(owner)})
        elif method == "SaveKernel":
            self._answer(200, {"ref": sent["slug"], "url": f"/code/{sent['slug']}", "versionNumber": 1})
        else:
            self._answer(404, {"code": 404, "message": f"the stub knows no {method}"})

    def do_PUT(self) -> None:
        body, token = self._body(), urlsplit(self.path).path.rsplit("/", 1)[1]
        self.server.files[self.server.names[token]] = body
        self._answer(200, {})

    def do_GET(self) -> None:
        self._astray()

    do_CONNECT = do_HEAD = do_GET

    def _astray(self) -> None:
        self.server.astray.append(f"{self.command} {self.path}")
        self._answer(403, {})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, code: int, content: dict) -> None:
        data = json.dumps(content).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments) -> None:
        """Tests are quiet."""
