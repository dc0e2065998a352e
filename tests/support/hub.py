"""A model hub on this machine: as much of the Hugging Face hub as a download needs."""

import hashlib
import json
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

COMMIT = "0123456789abcdef0123456789abcdef01234567"
API = "/api/models/"


class Hub:
    """Repositories by name, each a folder.

    Attributes:
        repositories: what it has.
        gated: names whose files it does not give.
        requested: paths it was asked for.
        url: where it listens.
    """

    def __init__(self):
        self.repositories = {}
        self.gated = set()
        self.requested = []
        self.url = ""

    def downloaded(self):
        """The names of the files that were asked for."""
        return {
            path.split(f"/resolve/{COMMIT}/")[1] for path in self.requested if "/resolve/" in path
        }


@contextmanager
def running():
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            hub.requested.append(self.path)
            self.answer(body=True)

        def do_HEAD(self):
            self.answer(body=False)

        def answer(self, body):
            path = self.path.split("?")[0]
            name = "/".join(path.removeprefix(API if path.startswith(API) else "/").split("/")[:2])
            folder = hub.repositories.get(name)
            if folder is None:
                return self.send(401, b"", {"X-Error-Code": "RepoNotFound"}, body)
            files = sorted(p for p in Path(folder).rglob("*") if p.is_file())
            names = [p.relative_to(folder).as_posix() for p in files]
            if path in (f"{API}{name}", f"{API}{name}/revision/main"):
                return self.json(
                    {"id": name, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}, body
                )
            if path.startswith(f"{API}{name}/tree/"):
                return self.json(
                    [
                        {"type": "file", "path": n, "size": f.stat().st_size, "oid": blob(f)}
                        for n, f in zip(names, files, strict=True)
                    ],
                    body,
                )
            if name in hub.gated:
                return self.send(403, b"", {"X-Error-Code": "GatedRepo"}, body)
            file = Path(folder) / path.removeprefix(f"/{name}/resolve/{COMMIT}/")
            headers = {"ETag": f'"{blob(file)}"', "X-Repo-Commit": COMMIT}
            return self.send(200, file.read_bytes(), headers, body)

        def json(self, value, body):
            self.send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, body)

        def send(self, status, content, headers, body):
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def blob(file):
    return hashlib.sha1(file.read_bytes()).hexdigest()
