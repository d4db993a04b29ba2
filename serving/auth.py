"""Who may ask: anybody on loopback, and whoever has the token elsewhere."""

from __future__ import annotations

import hmac
import ipaddress
from typing import Final

from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rtrec_ray.errors import ConfigInvalid

TOKEN_VARIABLE: Final = "RTREC_HTTP_TOKEN"
# Probes of an orchestrator carry no secret, and learn nothing here that is one.
_OPEN_PATHS: Final = ("/healthz", "/readyz")


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address.

    >>> is_loopback("127.0.0.1"), is_loopback("localhost"), is_loopback("0.0.0.0"), is_loopback("::1")
    (True, True, False, True)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_bind(host: str, token: str | None) -> None:
    """Refuse to open a port to others without a token. Raises ConfigInvalid.

    >>> check_bind("0.0.0.0", None)
    Traceback (most recent call last):
    rtrec_ray.errors.ConfigInvalid: serving on 0.0.0.0 needs a token
    """
    if not token and not is_loopback(host):
        raise ConfigInvalid(
            f"serving on {host} needs a token", mend=f"export {TOKEN_VARIABLE}=..., or serve on 127.0.0.1"
        )


class RequireToken:
    """Lets through what carries `Authorization: Bearer <token>`, and probes."""

    def __init__(self, app: ASGIApp, *, token: str) -> None:
        self._app = app
        self._expected = b"Bearer " + token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in _OPEN_PATHS or self._knows(scope):
            await self._app(scope, receive, send)
            return
        refusal = Response(
            b'{"detail":"a bearer token is required"}', 401, {"WWW-Authenticate": "Bearer"}, "application/json"
        )
        await refusal(scope, receive, send)

    def _knows(self, scope: Scope) -> bool:
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        # compare_digest takes the same time however much of the token is right.
        return len(given) == 1 and hmac.compare_digest(given[0], self._expected)
