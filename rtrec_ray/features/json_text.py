"""Values of views as JSON text."""

from __future__ import annotations

import json
from typing import Any, Final

import orjson

_OPTIONS: Final = orjson.OPT_NON_STR_KEYS | orjson.OPT_SERIALIZE_NUMPY


def json_bytes(content: Any) -> bytes:
    """What holds values of views, as JSON text in UTF-8; a sum may be beyond 64 bits.

    >>> json_bytes({"dwell_ms": 2**64})
    b'{"dwell_ms":18446744073709551616}'
    """
    try:
        return orjson.dumps(content, option=_OPTIONS)
    except orjson.JSONEncodeError:
        # The fast encoders refuse such a number; what is no JSON at all is refused here as well.
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
