"""A small stand-in for the Hugging Face Hub: as much of its HTTP interface as one push and one download need.

Notable: one branch; every commit is a snapshot with its own hash; weights go through the LFS protocol, other files
through the commit itself, as on the real Hub; nothing touches the disk.
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

REPO = r"(?P<repo>[^/]+/[^/]+)"
Answer = tuple[int, dict[str, str], bytes]


def _json(value: Any) -> Answer:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _missing(code: str) -> Answer:
    return 404, {"X-Error-Code": code}, b""


class HubStandIn:
    """Serves on a free port of 127.0.0.1 while the context is open.

    Attributes:
        endpoint: What `HF_ENDPOINT` has to be.
        commits: For each repository its commits, oldest first: hash and files.
        requests: The requests so far, as "METHOD path".
    """

    def __init__(self) -> None:
        self.commits: dict[str, list[tuple[str, dict[str, bytes]]]] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.routes: list[tuple[str, str, Callable[..., Answer]]] = [
            ("POST", "/api/repos/create", self.create),
            ("POST", "/api/validate-yaml", lambda body: _json({"errors": [], "warnings": []})),
            ("POST", f"/api/models/{REPO}/preupload/main", self.preupload),
            ("POST", f"/{REPO}.git/info/lfs/objects/batch", self.lfs_batch),
            ("PUT", "/lfs/(?P<oid>[0-9a-f]{64})", self.lfs_upload),
            ("POST", f"/api/models/{REPO}/commit/main", self.commit),
            ("GET", f"/api/models/{REPO}/tree/.*", lambda body, repo: _missing("EntryNotFound")),
            ("GET", f"/api/models/{REPO}(/revision/(?P<revision>[^/]+))?", self.info),
            ("(GET|HEAD)", f"/{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", self.resolve),
        ]

    def __enter__(self) -> "HubStandIn":
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo: str) -> dict[str, bytes]:
        """The files of the newest commit."""
        return self.commits[repo][-1][1]

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        self.requests.append(f"{method} {path}")
        for verb, pattern, function in self.routes:
            match = re.fullmatch(pattern, path)
            if match and re.fullmatch(verb, method):
                named = match.groupdict()
                if "repo" in named and named["repo"] not in self.commits:
                    return _missing("RepoNotFound")
                return function(body, **named)
        return _missing("EntryNotFound")

    def create(self, body: bytes) -> Answer:
        wanted = json.loads(body)
        repo = f"{wanted['organization']}/{wanted['name']}"
        status = 409 if repo in self.commits else 200
        self.commits.setdefault(repo, [(hashlib.sha1(repo.encode()).hexdigest(), {})])
        return status, {}, json.dumps({"url": f"{self.endpoint}/{repo}"}).encode()

    def preupload(self, body: bytes, repo: str) -> Answer:
        def plan(path: str) -> dict[str, Any]:
            mode = "lfs" if path.endswith(".safetensors") else "regular"
            return {"path": path, "uploadMode": mode, "shouldIgnore": False}

        return _json({"files": [plan(file["path"]) for file in json.loads(body)["files"]]})

    def lfs_batch(self, body: bytes, repo: str) -> Answer:
        objects = [
            {**wanted, "actions": {"upload": {"href": f"{self.endpoint}/lfs/{wanted['oid']}"}}}
            for wanted in json.loads(body)["objects"]
        ]
        return _json({"transfer": "basic", "objects": objects})

    def lfs_upload(self, body: bytes, oid: str) -> Answer:
        if hashlib.sha256(body).hexdigest() != oid:
            return 400, {}, b""
        self.objects[oid] = body
        return 200, {}, b""

    def commit(self, body: bytes, repo: str) -> Answer:
        files = dict(self.files(repo))
        for line in body.splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.objects[value["oid"]]
        sha = hashlib.sha1(body).hexdigest()
        self.commits[repo].append((sha, files))
        return _json({"commitUrl": f"{self.endpoint}/{repo}/commit/{sha}", "commitOid": sha})

    def info(self, body: bytes, repo: str, revision: str | None) -> Answer:
        sha, files = self.commits[repo][-1]
        return _json({"id": repo, "sha": sha, "siblings": [{"rfilename": path} for path in files]})

    def resolve(self, body: bytes, repo: str, revision: str, path: str) -> Answer:
        sha, files = self.commits[repo][-1] if revision == "main" else (revision, dict(self.commits[repo])[revision])
        if path not in files:
            status, headers, content = _missing("EntryNotFound")
        else:
            status, headers, content = 200, {"ETag": f'"{hashlib.sha256(files[path]).hexdigest()}"'}, files[path]
        return status, {"X-Repo-Commit": sha, **headers}, content

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def reply(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                status, headers, content = hub.answer(self.command, unquote(urlsplit(self.path).path), body)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(content))}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(content)

            do_GET = do_HEAD = do_POST = do_PUT = reply  # noqa: N815

            def log_message(self, format: str, *args: Any) -> None:
                pass

        return Handler
