"""The errors raised on purpose, as a tree: few, and divided by what the caller can do about them.

    GloveboxError
    ├── InvalidRequestError        change the request: it can never work as it is
    ├── AuthenticationError        say who you are: the key or token is missing or wrong
    ├── PermissionDeniedError      ask somebody else: you are known, and may not
    ├── NotFoundError              look again: there is no such thing (or it is not yours)
    │   ├── SandboxNotFoundError
    │   └── TemplateNotFoundError
    ├── ConflictError              look again: the thing is in a state that forbids this
    ├── QuotaExceededError         wait, or ask for more: a limit of yours is reached
    ├── CapacityError              wait: the host is full
    ├── UnsupportedError           give up, or ask for something else: this host or rung cannot do it
    ├── GuestError                 the guest agent refused; `code` says why (see glovebox_guest.wire)
    └── SandboxGoneError           the sandbox ended, or its link was lost, while it was being used
        └── GuestProtocolError     ... because what came from inside broke the protocol

What a program in a sandbox does (exit code, killed for memory, timed out) is a result, never one of these.
"""


class GloveboxError(Exception):
    """The root: everything that Glovebox raises on purpose."""


class InvalidRequestError(GloveboxError):
    """The request can never work as it is; the message names the field and the limit."""


class AuthenticationError(GloveboxError):
    """The API key or the access token is missing, wrong, expired or revoked."""


class PermissionDeniedError(GloveboxError):
    """The caller is known, and may not do this."""


class NotFoundError(GloveboxError):
    """There is no such thing, or it belongs to somebody else: the two look the same on purpose."""


class SandboxNotFoundError(NotFoundError):
    """No such sandbox for this caller."""

    def __init__(self, sandbox_id: str) -> None:
        super().__init__(f"Sandbox \"{sandbox_id}\" doesn't exist or you don't have access to it")
        self.sandbox_id = sandbox_id


class TemplateNotFoundError(NotFoundError):
    """No such template for this caller."""

    def __init__(self, template: str) -> None:
        super().__init__(f"template '{template}' not found")
        self.template = template


class ConflictError(GloveboxError):
    """The thing is in a state that forbids this just now."""


class QuotaExceededError(GloveboxError):
    """A limit of this caller is reached; it may pass later."""


class CapacityError(GloveboxError):
    """The host has no room for this now."""


class UnsupportedError(GloveboxError):
    """This host or this rung cannot do it; the message says what is missing and how to get it."""


class SandboxGoneError(GloveboxError):
    """The sandbox ended, or its link was lost, while it was being used."""


class GuestProtocolError(SandboxGoneError):
    """What came from inside broke the link's protocol; the sandbox is ended for it."""


class GuestError(GloveboxError):
    """The guest agent refused a request.

    `code` is one of `glovebox_guest.wire.ERROR_CODES`; the message is guest text: data, already cut and escaped.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
