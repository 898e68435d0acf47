"""Errors as answers: the one table from what we raise to HTTP statuses, slugs and Connect codes."""

import dataclasses

from glovebox import errors


@dataclasses.dataclass(frozen=True)
class Problem:
    """How one kind of error looks to a caller."""

    status: int
    slug: str  # `error_code` in the control plane's error bodies
    code: str  # the Connect protocol's code


#: Found by the first class of an error's `__mro__` that is here: a subclass may stand without a line of its own.
PROBLEMS: dict[type[errors.GloveboxError], Problem] = {
    errors.GloveboxError: Problem(500, "internal", "internal"),
    errors.InvalidRequestError: Problem(400, "invalid_request", "invalid_argument"),
    errors.AuthenticationError: Problem(401, "unauthenticated", "unauthenticated"),
    errors.PermissionDeniedError: Problem(403, "permission_denied", "permission_denied"),
    errors.NotFoundError: Problem(404, "not_found", "not_found"),
    errors.SandboxNotFoundError: Problem(404, "sandbox_not_found", "not_found"),
    errors.TemplateNotFoundError: Problem(404, "template_not_found", "not_found"),
    errors.ConflictError: Problem(409, "conflict", "aborted"),
    errors.QuotaExceededError: Problem(429, "quota_exceeded", "resource_exhausted"),
    errors.CapacityError: Problem(503, "no_capacity", "unavailable"),
    errors.UnsupportedError: Problem(501, "unsupported", "unimplemented"),
    errors.GuestError: Problem(500, "guest_error", "internal"),
    errors.SandboxGoneError: Problem(502, "sandbox_gone", "unavailable"),
    errors.GuestProtocolError: Problem(502, "sandbox_gone", "unavailable"),
}

#: What a GuestError's own code says, in place of its class's line.
GUEST_PROBLEMS: dict[str, Problem] = {
    "invalid_argument": Problem(400, "invalid_request", "invalid_argument"),
    "unauthenticated": Problem(401, "unauthenticated", "unauthenticated"),
    "permission_denied": Problem(403, "permission_denied", "permission_denied"),
    "not_found": Problem(404, "not_found", "not_found"),
    "already_exists": Problem(409, "already_exists", "already_exists"),
    "failed_precondition": Problem(400, "failed_precondition", "failed_precondition"),
    "resource_exhausted": Problem(429, "resource_exhausted", "resource_exhausted"),
    "no_space": Problem(507, "no_space", "resource_exhausted"),
    "deadline_exceeded": Problem(504, "deadline_exceeded", "deadline_exceeded"),
    "canceled": Problem(499, "canceled", "canceled"),
    "unavailable": Problem(502, "unavailable", "unavailable"),
    "unimplemented": Problem(501, "unsupported", "unimplemented"),
    "internal": Problem(500, "guest_error", "internal"),
}


def of(error: errors.GloveboxError) -> Problem:
    """The problem that an error is."""
    if isinstance(error, errors.GuestError):
        return GUEST_PROBLEMS.get(error.code, PROBLEMS[errors.GuestError])
    for cls in type(error).__mro__:
        if (problem := PROBLEMS.get(cls)) is not None:
            return problem
    raise AssertionError("every GloveboxError has GloveboxError among its classes")


def body(status: int, message: str, slug: str | None = None) -> dict[str, object]:
    """An error body as the control plane and envd's HTTP routes write it."""
    found: dict[str, object] = {"code": status, "message": message}
    if slug is not None:
        found["error_code"] = slug
    return found
