"""An HTTP client that many visitors share: a connection pool whose work per request does not grow with the waiting."""

from __future__ import annotations

from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import aiohttp
import orjson

_CONNECTIONS: Final = 64
# Servers close idle connections after some 5 s: one taken up again at that moment would fail through our fault.
_IDLE_S: Final = 2.0
NO_ANSWER: Final = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """`status`: of HTTP; NO_ANSWER without a reply in time, or with a 200 that is not JSON. `body`: of a 200."""

    status: int
    body: Any = None


class Client:
    """An async context manager. `timeout_s`: of a request, wall time, with its wait for a connection."""

    def __init__(self, url: str, *, timeout_s: float) -> None:
        self._url = url
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the pool, in the running loop."""
        connector = aiohttp.TCPConnector(limit=_CONNECTIONS, keepalive_timeout=_IDLE_S)
        headers = {"content-type": "application/json"}
        self._session = aiohttp.ClientSession(self._url, connector=connector, timeout=self._timeout, headers=headers)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close all connections."""
        assert self._session is not None
        await self._session.close()

    async def post(self, path: str, content: object) -> Reply:
        """Send `content` as JSON. A server that fails, hangs or talks rubbish is a reply too, never an error."""
        assert self._session is not None
        try:
            async with self._session.post(path, data=orjson.dumps(content)) as response:
                body = await response.read()
                return Reply(status=response.status, body=orjson.loads(body) if response.status == 200 else None)
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError):
            return Reply(status=NO_ANSWER)
