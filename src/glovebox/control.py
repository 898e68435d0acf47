"""The control plane, over plain HTTP: list and kill sandboxes, logs, API keys."""

import urllib.parse
from collections.abc import Iterator
from typing import Any

import httpx

from glovebox import connection, errors

_TIMEOUT_S = 30.0
_PAGE = 100
_ERRORS: dict[int, type[errors.GloveboxError]] = {
    400: errors.InvalidRequestError,
    401: errors.AuthenticationError,
    403: errors.PermissionDeniedError,
    404: errors.NotFoundError,
    409: errors.ConflictError,
    422: errors.InvalidRequestError,
    429: errors.QuotaExceededError,
    501: errors.UnsupportedError,
    503: errors.CapacityError,
}


class Control:
    """A client of one server's REST interface. Use it as a context manager."""

    def __init__(self, target: connection.Connection) -> None:
        # A proxy named in the environment is not for a server of one's own.
        self._http = httpx.Client(
            base_url=target.url, headers={"X-API-KEY": target.key}, timeout=_TIMEOUT_S, trust_env=False
        )
        self._url = target.url

    def __enter__(self) -> "Control":
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def is_healthy(self) -> bool:
        """Whether the server answers."""
        try:
            return self._http.get("/health", timeout=2.0).is_success
        except httpx.HTTPError:
            return False

    def sandboxes(self) -> Iterator[dict[str, Any]]:
        """All sandboxes of this key, page by page, newest first."""
        token = ""
        while True:
            query = {"limit": str(_PAGE)} | ({"nextToken": token} if token else {})
            answer = self._request("GET", "/v2/sandboxes", params=query)
            yield from answer.json()
            token = answer.headers.get("X-Next-Token", "")
            if not token:
                return

    def kill(self, sandbox_id: str) -> None:
        """End one sandbox. Raises NotFoundError when there is none."""
        self._request("DELETE", f"/sandboxes/{_segment(sandbox_id)}")

    def logs(self, sandbox_id: str, cursor_ms: int | None = None, limit: int = 1000) -> list[dict[str, Any]]:
        """Log entries from `cursor_ms` (unix milliseconds) on, oldest first."""
        query: dict[str, str] = {"limit": str(limit), "direction": "forward"}
        if cursor_ms is not None:
            query["cursor"] = str(cursor_ms)
        answer = self._request("GET", f"/v2/sandboxes/{_segment(sandbox_id)}/logs", params=query)
        entries: list[dict[str, Any]] = answer.json().get("logs", [])
        return entries

    def keys(self) -> list[dict[str, Any]]:
        """The API keys, without their secrets."""
        listed: list[dict[str, Any]] = self._request("GET", "/api-keys").json()
        return listed

    def create_key(self, name: str) -> dict[str, Any]:
        """A new API key; its secret is in the answer, and nowhere else after."""
        created: dict[str, Any] = self._request("POST", "/api-keys", json={"name": name}).json()
        return created

    def revoke_key(self, key_id: str) -> None:
        """Make a key useless. Raises NotFoundError when there is none."""
        self._request("DELETE", f"/api-keys/{_segment(key_id)}")

    def _request(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            answer = self._http.request(method, path, **options)
        except httpx.TimeoutException as error:
            raise connection.NoServerError(f"the server at {self._url} did not answer in {_TIMEOUT_S:g} s") from error
        except httpx.TransportError as error:
            raise connection.NoServerError(f"no server answers at {self._url}") from error
        if answer.is_success:
            return answer
        raise _ERRORS.get(answer.status_code, errors.GloveboxError)(_message(answer))


def _segment(text: str) -> str:
    """`text` as exactly one segment of a path, whatever is in it."""
    return urllib.parse.quote(text, safe="")


def _message(answer: httpx.Response) -> str:
    try:
        message = answer.json()["message"]
    except (ValueError, KeyError, TypeError):
        message = answer.reason_phrase
    return f"{message} ({answer.status_code})"
