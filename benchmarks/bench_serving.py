"""How long POST /v1/recommend takes, over one socket and over several. Prints one JSON line for each number of them.

python benchmarks/bench_serving.py --url http://127.0.0.1:8000      a running system
python benchmarks/bench_serving.py --front uvicorn                  the routes over servers in memory
python benchmarks/bench_serving.py --front serve                    ... in Ray Serve on its fast path
"""

import argparse
import asyncio
import json
import os
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from rtrec_ray.clock import REAL, monotonic_s
from rtrec_ray.embedded.ports import answers, pick
from rtrec_ray.events import CatalogItem
from rtrec_ray.features.file import load_definitions
from serving.memory import LinearScorer, MemoryServers

ITEMS, USERS = 200, 1_000
DEFINITIONS = load_definitions(Path(__file__).parents[1] / "configs" / "features.yaml")


def in_memory(options=None):
    servers = MemoryServers(DEFINITIONS, clock=REAL)
    servers.put_items(CatalogItem(item_id=i, ts=i, item_type="product", category_id=i % 10) for i in range(ITEMS))
    weights = {"user_5m_view": 1.0, "item_recently_viewed": 1.0, "item_category_clicks_10m": 1.0}
    servers.models["1"] = LinearScorer(version="1", weights=weights)
    servers.champion = "1"
    # Thousands of records a second into a list would measure the list.
    return replace(servers.backends(), connect_producer=NoProducer)


class NoProducer:
    def send(self, topic, *, key, value):
        pass

    def flush(self, *, timeout_s):
        pass

    def close(self):
        pass


@contextmanager
def uvicorn_front() -> Iterator[str]:
    import uvicorn

    from serving.options import ServingOptions
    from serving.replica import Replica

    replica, port = Replica(in_memory(), options=ServingOptions(), clock=REAL), pick()
    replica.start()
    server = uvicorn.Server(uvicorn.Config(replica.app, port=port, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not answers(port):
        thread.join(0.1)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
        replica.close()


@contextmanager
def serve_front() -> Iterator[str]:
    # Serve reads both when it is imported, and its actors when they start.
    os.environ |= {"RAY_SERVE_ENABLE_HA_PROXY": "1", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}
    import ray
    from ray import serve
    from ray.serve.config import HTTPOptions

    from rtrec_ray.kafka.base import KafkaOptions
    from rtrec_ray.postgres.connection import PostgresOptions
    from rtrec_ray.registry.mlflow import RegistryOptions
    from serving.connect import ReplicaOptions
    from serving.deployment import application

    ray.init(address="local", num_cpus=4, include_dashboard=False)
    port = pick()
    serve.start(http_options=HTTPOptions(host="127.0.0.1", port=port))
    options = ReplicaOptions(
        postgres=PostgresOptions(dsn=""),
        kafka=KafkaOptions(),
        registry=RegistryOptions(url=""),
        definitions=DEFINITIONS,
    )
    serve.run(application(options, connect_servers=in_memory), name="rtrec", route_prefix="/")
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()
        ray.shutdown()


async def one_connection(url: str, requests: int) -> list[float]:
    """Seconds of each request, one after another over one socket."""
    place, taken = urlsplit(url), []
    reader, writer = await asyncio.open_connection(place.hostname, place.port)
    token = os.environ.get("RTREC_HTTP_TOKEN", "")
    for _ in range(requests):
        body = json.dumps({"user_id": random.randrange(USERS), "page_id": 1, "k": 10}).encode()
        head = f"POST /v1/recommend HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Length: {len(body)}"
        began_s = monotonic_s()
        writer.write(head.encode() + b"\r\n\r\n" + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        assert answer.startswith(b"http/1.1 200"), answer
        await reader.readexactly(int(answer.split(b"content-length:")[1].split(b"\r\n")[0]))
        taken.append(monotonic_s() - began_s)
    writer.close()
    return taken


async def measure(url: str, *, connections: int, requests: int) -> dict[str, float]:
    began_s = monotonic_s()
    taken = await asyncio.gather(*(one_connection(url, requests // connections) for _ in range(connections)))
    p50, p99 = np.percentile(np.concatenate(taken), [50, 99]) * 1_000
    rps = len(taken) * len(taken[0]) / (monotonic_s() - began_s)
    return {"connections": connections, "p50_ms": round(p50, 2), "p99_ms": round(p99, 2), "rps": round(rps)}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--url")
    arguments.add_argument("--front", choices=("uvicorn", "serve"), default="uvicorn")
    arguments.add_argument("--requests", type=int, default=2_000)
    given = arguments.parse_args()

    def run(url: str, name: str) -> None:
        # The front end takes its routes a moment after the application is ready, and drops connections meanwhile.
        for _ in range(20):
            with suppress(OSError, EOFError, AssertionError):
                asyncio.run(measure(url, connections=1, requests=200))
                break
            threading.Event().wait(0.5)
        for connections in (1, 4):
            print(
                json.dumps(
                    {"front": name} | asyncio.run(measure(url, connections=connections, requests=given.requests))
                )
            )

    if given.url:
        run(given.url, "running")
        return
    with {"uvicorn": uvicorn_front, "serve": serve_front}[given.front]() as url:
        run(url, given.front)


if __name__ == "__main__":
    main()
