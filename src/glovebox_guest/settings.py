"""What the host has configured for the whole sandbox, and what follows from it for one request."""

import os
from typing import Dict, Optional

from glovebox_guest import parameters, users

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Settings:
    """The global environment, the default user and the default working directory."""

    def __init__(self) -> None:
        self.env: Dict[str, str] = {}
        self.default_user: Optional[str] = None
        self.default_workdir: Optional[str] = None
        self._path = os.environ.get("PATH") or DEFAULT_PATH

    def configure(self, params: parameters.Parameters) -> None:
        """Take over `sandbox.configure`: all of it, or nothing when some of it is wrong."""
        env = parameters.environment(params, "env")
        user = parameters.optional_text(params, "default_user")
        workdir = parameters.optional_text(params, "default_workdir")
        if user is not None:
            users.find(user)
        if workdir is not None and (not workdir.startswith("/") or "\0" in workdir):
            raise parameters.wrong("default_workdir", "must be an absolute path")
        self.env, self.default_user, self.default_workdir = env, user, workdir

    def user(self, params: parameters.Parameters) -> users.User:
        """Whom a request is for."""
        name = parameters.optional_text(params, "user") or self.default_user or users.default_name()
        return users.find(name)

    def path(self, params: parameters.Parameters, name: str, user: users.User) -> str:
        """The absolute path that a request's parameter means."""
        return users.resolve(parameters.text(params, name), user, self.default_workdir)

    def environment_for(self, user: users.User, own: Dict[str, str]) -> Dict[str, str]:
        """The whole environment of a process of `user`; the request's `own` variables win."""
        basis = {"PATH": self._path, "HOME": user.home, "USER": user.name, "LOGNAME": user.name}
        return {**basis, **self.env, **own}
