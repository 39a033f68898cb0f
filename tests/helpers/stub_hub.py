"""As much of the Hugging Face Hub as create_repo and upload_folder ask for, on the loopback interface.

It keeps repositories in memory, notes every request, and breaks where it is told to.
"""

import base64
import hashlib
import json
import re
import socket
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

TOKEN = "hf_OnlyForTheStub000000000000000000"
DROP = "drop the connection in the middle"
LOSE = "do it, and lose the answer"


@dataclass
class Repository:
    """One repository: its files, and a commit's message for each commit after the first."""

    private: bool
    files: dict[str, bytes] = field(default_factory=lambda: {".gitattributes": b"*.safetensors filter=lfs\n"})
    commits: list[str] = field(default_factory=list)

    @property
    def sha(self):
        """Of the newest commit."""
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()


class StubHub:
    """A server in a thread; `url` is its endpoint.

    Args:
        lfs: whether safetensors go through LFS; otherwise all files are regular.
    """

    def __init__(self, lfs=True):
        self.lfs = lfs
        self.repositories = {}
        self.stored = {}  # {sha256: bytes} of LFS
        self.faults = []  # [(pattern of "METHOD /path", what to do)], each taken once
        self.requests = []  # [(METHOD, path, {header: value}, body)]
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def close(self):
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def breaks(self, pattern, *what):
        """At requests that match: DROP, LOSE, or (status, headers, value of the answer)."""
        self.faults += [(pattern, one) for one in what]

    def asked(self, pattern):
        """How many requests matched."""
        return sum(bool(re.search(pattern, f"{method} {path}")) for method, path, _, _ in self.requests)

    def fault_of(self, line):
        for number, (pattern, what) in enumerate(self.faults):
            if re.search(pattern, line):
                del self.faults[number]
                return what
        return None


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub = None

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer()

    do_POST = do_PUT = do_GET

    def _answer(self):
        path = urlsplit(self.path).path
        fault = self.hub.fault_of(f"{self.command} {path}")
        if fault == DROP:
            self.rfile.read1(100)
            return self._hang_up()
        body = self._body()
        self.hub.requests.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}, body))
        if isinstance(fault, tuple):
            return self._send(*fault)
        status, value = self._route(path, body)
        return self._hang_up() if fault == LOSE else self._send(status, {}, value)

    def _hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        whole = b""
        while size := int(self.rfile.readline(), 16):
            whole += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return whole

    def _send(self, status, headers, value):
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(data)

    def _route(self, path, body):
        hub = self.hub
        if match := re.fullmatch(r"/storage/(\w+)", path):  # its address is the key: no token goes there
            hub.stored[match[1]] = body
            return (200, {}) if hashlib.sha256(body).hexdigest() == match[1] else (400, {})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid credentials in Authorization header"}
        value = json.loads(body) if body and path.split("/")[-2] != "commit" else {}
        if path == "/api/validate-yaml":
            return 200, {"warnings": [], "errors": []}
        if path == "/api/repos/create":
            name = f"{value['organization']}/{value['name']}"
            known = name in hub.repositories
            hub.repositories.setdefault(name, Repository(private=value.get("visibility") == "private"))
            return (409 if known else 200), {"url": f"{hub.url}/{name}"}
        if match := re.fullmatch(r"/(.+)\.git/info/lfs/objects/batch", path):
            return 200, {"transfer": "basic", "objects": [self._place(o) for o in value["objects"]]}
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|preupload|commit)/main)?", path)
        if match is None or match[1] not in hub.repositories:
            return 404, {"error": "not found"}
        repository = hub.repositories[match[1]]
        if match[2] == "preupload":
            return 200, {"files": [self._mode(repository, f["path"]) for f in value["files"]]}
        if match[2] == "commit":
            return self._commit(match[1], repository, [json.loads(line) for line in body.splitlines()])
        info = {"_id": "1", "id": match[1], "sha": repository.sha, "private": repository.private}
        info["siblings"] = [{"rfilename": name} for name in repository.files]
        return 200, info

    def _place(self, wanted):
        known = wanted["oid"] in self.hub.stored
        actions = {} if known else {"actions": {"upload": {"href": f"{self.hub.url}/storage/{wanted['oid']}"}}}
        return {**wanted, **actions}

    def _mode(self, repository, path):
        large = self.hub.lfs and path.endswith(".safetensors")
        data = repository.files.get(path)
        oid = None
        if data is not None:
            git = hashlib.sha1(b"blob %d\0" % len(data) + data)
            oid = hashlib.sha256(data).hexdigest() if large else git.hexdigest()
        return {"path": path, "uploadMode": "lfs" if large else "regular", "shouldIgnore": False, "oid": oid}

    def _commit(self, name, repository, lines):
        for line in lines[1:]:
            value = line["value"]
            data = base64.b64decode(value["content"]) if line["key"] == "file" else self.hub.stored.get(value["oid"])
            if data is None:
                return 422, {"error": f"{value['path']}: not in the storage"}
            repository.files[value["path"]] = data
        repository.commits.append(lines[0]["value"]["summary"])
        return 200, {"commitUrl": f"{self.hub.url}/{name}/commit/{repository.sha}", "commitOid": repository.sha}
