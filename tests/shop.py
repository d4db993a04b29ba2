"""A small server that answers as the contract of the HTTP interface says, or as badly as it is told to."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Shop(ThreadingHTTPServer):
    """Answers each request for recommendations as `plan` says in turn, the last for ever: ok, 500, garbage or hang."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, plan, *, events_status=202, items=(7, 8)):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan = list(plan)
        self.items = items
        self.events_status = events_status
        self.asked = []
        self.released = threading.Event()
        self.events = []
        self.lock = threading.Lock()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.path == "/v1/recommend" and self.server.plan[0] == "hang":
            self.server.released.wait()
            return
        with self.server.lock:
            if self.path == "/v1/recommend":
                self.recommend(body)
            else:
                self.server.events += body
                self.answer(self.server.events_status, {"accepted": len(body), "errors": []})

    def recommend(self, body):
        self.server.asked.append(body)
        what = self.server.plan.pop(0) if len(self.server.plan) > 1 else self.server.plan[0]
        if what == "500":
            self.answer(500, {})
        elif what == "garbage":
            self.answer(200, None)
        else:
            self.answer(
                200,
                {
                    "request_id": f"r{len(self.server.asked)}",
                    "model_version": "4",
                    "items": [
                        {"item_id": item, "score": 1.0 / place, "position": place}
                        for place, item in enumerate(self.server.items, start=1)
                    ],
                    "freshness": {"feature_age_ms": 10, "model_age_ms": None},
                    "degraded": [],
                },
            )

    def answer(self, status, value):
        body = b"<html>" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@contextmanager
def open_shop(plan, **options) -> Iterator[Shop]:
    """A server for the block; see Shop."""
    server = Shop(plan, **options)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
