"""A stand-in for W&B's server on loopback: takes what a run sends and keeps it in memory.

Knows as much of the protocol of wandb 0.31 as its client needs: runs (GraphQL), history and summary (file stream),
files, artifacts. `python tests/wandb_server.py 0` prints its address and answers until it is killed.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import json
import re
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

KEY = "0123456789abcdef0123456789abcdef01234567"


class WandbServer(ThreadingHTTPServer):
    """`runs`: id -> variables of the upserts put together; `history`: id -> points in the order of their offsets."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.lock = threading.RLock()
        self.runs: dict[str, dict[str, Any]] = {}
        self.lines: dict[str, dict[int, dict[str, Any]]] = {}
        self.arrived: list[tuple[float, str, dict[str, Any]]] = []  # (time, run, point) as they came
        self.events: dict[str, int] = {}
        self.summary: dict[str, dict[str, Any]] = {}
        self.exit_codes: dict[str, int] = {}
        self.files: dict[str, bytes] = {}
        self.artifacts: dict[str, dict[str, Any]] = {}
        self.alerts: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def env(self) -> dict[str, str]:
        return {"WANDB_BASE_URL": self.url, "WANDB_API_KEY": KEY, "WANDB_MODE": "online"}

    def history(self, run: str) -> list[dict[str, Any]]:
        with self.lock:
            return [point for _, point in sorted(self.lines.get(run, {}).items())]

    def config(self, run: str) -> dict[str, Any]:
        return {key: node["value"] for key, node in json.loads(self.runs[run]["config"]).items()}

    def committed(self) -> dict[str, dict[str, Any]]:
        """Name of the artifact's collection -> the last of its versions."""
        return {one["name"]: one for one in self.artifacts.values() if one["state"] == "COMMITTED"}

    def manifest(self, artifact: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.files[f"manifest/{artifact['id']}"])["contents"]
        return found

    def content(self, artifact: dict[str, Any], name: str) -> bytes:
        """A file of an artifact, by its digest."""
        return self.files[f"blob/{self.manifest(artifact)[name]['digest']}"]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: WandbServer

    def handle(self) -> None:
        with contextlib.suppress(ConnectionError):  # the client is gone
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def body(self) -> bytes:
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline().strip(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return gzip.decompress(data) if self.headers.get("Content-Encoding") == "gzip" else data

    def answer(self, value: Any, code: int = 200) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.answer({})

    def do_PUT(self) -> None:
        with self.server.lock:
            self.server.files[self.path.removeprefix("/upload/")] = self.body()
        self.answer({})

    def do_POST(self) -> None:
        data = self.body()
        with self.server.lock:
            if self.path.startswith("/graphql"):
                asked = json.loads(data)
                name = asked.get("operationName") or ""
                variables = asked.get("variables") or {}
                variables = variables.get("input") or variables
                answer = getattr(self, name or next(iter(NAME.findall(asked["query"])), ""), None)
                found = answer(variables) if answer else {}
                self.answer({"data": found})
            else:
                self.stream(self.path.split("/")[-2], json.loads(data))
                self.answer({})

    def stream(self, run: str, sent: dict[str, Any]) -> None:
        for name, part in (sent.get("files") or {}).items():
            if name == "wandb-history.jsonl":
                for place, text in enumerate(part["content"], part["offset"]):
                    point = json.loads(text)
                    self.server.lines.setdefault(run, {})[place] = point
                    self.server.arrived.append((time.time(), run, point))
            elif name == "wandb-events.jsonl":
                self.server.events[run] = self.server.events.get(run, 0) + len(part["content"])
            elif name == "wandb-summary.json":
                self.server.summary[run] = json.loads(part["content"][-1])
        if sent.get("complete"):
            self.server.exit_codes[run] = sent.get("exitcode", 0)

    # -- GraphQL, by the name of the operation -------------------------------------------------------------------------

    def Viewer(self, _: dict[str, Any]) -> dict[str, Any]:
        return {"viewer": {"id": "u", "entity": "me", "username": "me", "email": "", "flags": "{}",
                           "teams": {"edges": []}}}  # fmt: skip

    def UpsertBucket(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = asked["name"]
        inserted = run not in self.server.runs
        known = self.server.runs.setdefault(run, {})
        known |= {key: value for key, value in asked.items() if value is not None}
        project = known.get("project") or "uncategorized"
        entity = {"id": "e", "name": known.get("entity") or "me"}
        bucket = {"id": run, "name": run, "displayName": known.get("displayName") or run, "description": None,
                  "config": known.get("config"), "sweepName": None, "project": {"id": "p", "name": project,
                  "entity": entity}, "historyLineCount": len(self.server.lines.get(run, {}))}  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def RunResumeStatus(self, asked: dict[str, Any]) -> dict[str, Any]:
        run = asked["name"]
        if run not in self.server.runs:
            return {"model": {"bucket": None}}
        history = self.server.history(run)
        bucket = {
            "name": run, "summaryMetrics": json.dumps(self.server.summary.get(run, {})), "displayName": run,
            "logLineCount": 0, "historyLineCount": len(history), "eventsLineCount": 0,
            "historyTail": json.dumps([json.dumps(point) for point in history[-1:]]), "eventsTail": "[]",
            "config": self.server.runs[run].get("config", "{}"), "tags": self.server.runs[run].get("tags") or [],
            "wandbConfig": self.server.runs[run].get("config", "{}"),
        }  # fmt: skip
        return {"model": {"id": "p", "name": "p", "entity": {"id": "e", "name": "me"}, "bucket": bucket}}

    def CreateRunFiles(self, asked: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": self.upload(f"{asked['run']}/{name}")} for name in asked["files"]]
        return {"createRunFiles": {"runID": asked["run"], "uploadHeaders": [], "files": files}}

    def upload(self, name: str) -> str:
        return f"{self.server.url}/upload/{name}"

    def CreateArtifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        name = asked.get("artifactCollectionName") or (asked.get("artifactCollectionNames") or ["?"])[0]
        number = f"a{len(self.server.artifacts)}"
        self.server.artifacts[number] = {"id": number, "name": name, "state": "PENDING",
                                         "type": asked.get("artifactTypeName")}  # fmt: skip
        latest = {"id": "s", "latestArtifact": None}
        return {"createArtifact": {"artifact": {"id": number, "state": "PENDING", "artifactSequence": latest}}}

    def CreateArtifactManifest(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self.manifest_of("createArtifactManifest", asked["artifactID"])

    def UpdateArtifactManifest(self, asked: dict[str, Any]) -> dict[str, Any]:
        return self.manifest_of("updateArtifactManifest", asked.get("artifactID") or asked["artifactManifestID"])

    def manifest_of(self, answer: str, artifact: str) -> dict[str, Any]:
        artifact = artifact.removesuffix("-m")
        file = {"id": "f", "name": "m", "displayName": "m", "uploadUrl": self.upload(f"manifest/{artifact}"),
                "uploadHeaders": [], "storagePath": ""}  # fmt: skip
        return {answer: {"artifactManifest": {"id": f"{artifact}-m", "file": file}}}

    def CreateArtifactFiles(self, asked: dict[str, Any]) -> dict[str, Any]:
        edges = []
        for spec in asked["artifactFiles"]:
            digest = base64.b64encode(bytes(base64.b64decode(spec["md5"]))).decode()
            node = {"id": "f", "name": spec["name"], "displayName": spec["name"],
                    "uploadUrl": self.upload(f"blob/{digest}"), "uploadHeaders": [], "storagePath": "",
                    "uploadMultipartUrls": None, "artifact": {"id": spec["artifactID"]}}  # fmt: skip
            edges.append({"node": node})
        return {"createArtifactFiles": {"files": {"edges": edges}}}

    def CommitArtifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.server.artifacts[asked["artifactID"]]["state"] = "COMMITTED"
        return {"commitArtifact": {"artifact": {"id": asked["artifactID"], "digest": "d"}}}

    def UseArtifact(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"useArtifact": {"artifact": {"id": asked["artifactID"], "digest": "d", "description": None,
                                             "state": "COMMITTED", "createdAt": "", "metadata": None}}}  # fmt: skip

    def NotifyScriptableRunAlert(self, asked: dict[str, Any]) -> dict[str, Any]:
        self.server.alerts.append(asked)
        return {"notifyScriptableRunAlert": {"success": True}}

    def ArtifactType(self, asked: dict[str, Any]) -> dict[str, Any]:
        return {"project": {"artifact": None}}


NAME = re.compile(r"(?:query|mutation)\s+(\w+)")


@contextmanager
def wandb_server() -> Iterator[WandbServer]:
    server = WandbServer()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    lost = WandbServer(int(sys.argv[1]))
    print(lost.url, flush=True)
    lost.serve_forever()
