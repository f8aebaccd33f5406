"""Answers of the server to requests that it cannot fulfil."""

from __future__ import annotations

from collections.abc import Mapping

LEFT = 499  # status of a request whose client has left, by the convention of nginx
LATE = ("expected an answer within {:g} s; there was none. Send a smaller request, or try again when the server is "
        "less busy")
FAILED = "the server failed to process this request. Its log has the reason"
HEADERS = {  # of every answer, which protect browsers
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob: data:; object-src 'none'; base-uri 'none'; "
                               "form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY"}


class Refused(Exception):
    """A request gets an HTTP error.

    Args:
        status: the HTTP status, 400 to 599.
        text: what was expected, what came, and the next step. It becomes "error" in the answer.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, text: str, headers: Mapping[str, str] | None = None):
        super().__init__(text)
        self.status, self.headers = status, dict(headers or {})


def busy(cause: str, seconds: int) -> Refused:
    """Return the refusal of a request that can be sent again later, with the status 503.

    Args:
        cause: why the server is busy.
        seconds: seconds after which the client may try again, also in Retry-After.
    """
    return Refused(503, f"the server is busy: {cause}. Try again in {seconds} s", {"Retry-After": str(seconds)})
