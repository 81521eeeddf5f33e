"""A stand-in for the Hugging Face hub on loopback: repositories of one branch, kept in memory."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TOKEN = "hf_standin"
SHA = "0123456789abcdef0123456789abcdef01234567"


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}

    def env(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """For a process that shall know no other hub."""
        found = {"HF_ENDPOINT": f"http://127.0.0.1:{self.server_address[1]}", "HF_HOME": str(home),
                 "HF_HUB_OFFLINE": "", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "1"}  # fmt: skip
        return found | ({"HF_TOKEN": token} if token else {})


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def answer(self, data: bytes, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def say(self, value: Any, code: int = 200, **headers: str) -> None:
        self.answer(json.dumps(value).encode(), code, Content_Type="application/json", **headers)

    def not_found(self, code: str = "RepoNotFound") -> None:
        self.say({"error": "not found"}, 404, X_Error_Code=code, X_Error_Message="not found")

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "models"]:
            name = "/".join(parts[2:4])
            if name not in self.server.repos:
                return self.not_found()
            if parts[4:5] == ["tree"]:
                listed = [{"type": "file", "path": path, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}
                          for path, data in self.server.repos[name].items()]  # fmt: skip
                return self.say(listed)
            files = [{"rfilename": path} for path in self.server.repos[name]]
            return self.say({"_id": "x", "id": name, "modelId": name, "sha": SHA, "siblings": files, "tags": [],
                             "private": False, "downloads": 0, "likes": 0})  # fmt: skip
        repo, path = "/".join(parts[:2]), "/".join(parts[4:])
        data = self.server.repos.get(repo, {}).get(path)
        if parts[2:3] != ["resolve"] or data is None:
            return self.not_found("EntryNotFound" if repo in self.server.repos else "RepoNotFound")
        return self.answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=SHA)

    def do_POST(self) -> None:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = self.path.partition("?")[0].strip("/").split("/")
        if self.path.endswith("/validate-yaml"):
            return self.say({"errors": [], "warnings": []})
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.say({"error": "no token"}, 401)
        if parts[-1] == "create":
            asked = json.loads(data)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.server.repos.setdefault(name, {})
            self.server.private[name] = asked.get("private") is True or asked.get("visibility") == "private"
            return self.say({"url": f"http://127.0.0.1:{self.server.server_address[1]}/{name}", "name": name})
        name = "/".join(parts[2:4])
        if parts[4] == "preupload":
            files = [{"path": each["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                     for each in json.loads(data)["files"]]  # fmt: skip
            return self.say({"files": files})
        for line in map(json.loads, data.splitlines()):
            if line["key"] == "file":
                self.server.repos[name][line["value"]["path"]] = base64.b64decode(line["value"]["content"])
        return self.say({"success": True, "commitOid": SHA, "commitUrl": f"http://127.0.0.1/{name}/commit/{SHA}",
                         "hookOutput": ""})  # fmt: skip


@contextmanager
def hub_server() -> Iterator[HubServer]:
    server = HubServer()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
