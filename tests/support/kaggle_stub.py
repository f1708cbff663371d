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
    """Answers what the client asks; `calls` holds (method name, request), `files` name -> bytes of an upload."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.calls, self.astray, self.files, self.names = [], [], {}, {}
        self.datasets: set[str] = set()  # owner/slug of those that exist
        self.refusals: dict[str, dict] = {}  # method name -> answer instead of the usual one
        self.run_status = {"status": "COMPLETE"}  # of a kernel's last run
        self.output: dict[str, bytes] = {}  # name -> what a kernel's last run left
        self.versions: dict[str, int] = {}  # kernel -> the last version that was pushed
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
            version = self.server.versions[sent["slug"]] = self.server.versions.get(sent["slug"], 0) + 1
            self._answer(200, {"ref": sent["slug"], "url": f"/code/{sent['slug']}", "versionNumber": version})
        elif method == "GetKernelSessionStatus":
            self._answer(200, self.server.run_status)
        elif method == "ListKernelSessionOutput":
            files = [{"url": f"http://localhost/output/{name}", "fileName": name} for name in self.server.output]
            self._answer(200, {"files": files, "log": "what the notebook printed"})
        elif method == "CreateCodeSubmission":
            self._answer(200, {"message": "Successfully submitted to SIIM-FISABIO-RSNA", "ref": 1})
        elif method == "GetSubmissionLimits":
            self._answer(200, {"numAllowedNow": 4})
        else:
            self._answer(404, {"code": 404, "message": f"the stub knows no {method}"})

    def do_PUT(self) -> None:
        body, token = self._body(), urlsplit(self.path).path.rsplit("/", 1)[1]
        self.server.files[self.server.names[token]] = body
        self._answer(200, {})

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        name = url.path.removeprefix("/output/")
        if url.netloc != "localhost" or name not in self.server.output:
            self._astray()
            return
        self._send(200, self.server.output[name], "application/octet-stream")

    def do_HEAD(self) -> None:
        self._astray()

    do_CONNECT = do_HEAD

    def _astray(self) -> None:
        self.server.astray.append(f"{self.command} {self.path}")
        self._answer(403, {})

    def _body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length") or 0))

    def _answer(self, code: int, content: dict) -> None:
        self._send(code, json.dumps(content).encode(), "application/json")

    def _send(self, code: int, data: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *arguments) -> None:
        """Tests are quiet."""
