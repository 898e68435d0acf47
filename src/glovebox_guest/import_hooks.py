"""Something to do once a module has been imported, whenever that is; nothing is imported for it."""

import importlib.machinery
import sys
from types import ModuleType
from typing import Any, Callable, Dict, Optional, Sequence

Hook = Callable[[ModuleType], None]


class _Finder:
    """Finds what is waited for by the ordinary way, and has the hook called when it has been executed."""

    def __init__(self) -> None:
        self.hooks: Dict[str, Hook] = {}

    def find_spec(
        self, name: str, path: Optional[Sequence[str]] = None, target: Optional[ModuleType] = None
    ) -> Optional[importlib.machinery.ModuleSpec]:
        """Part of importlib's protocol of meta path finders."""
        if name not in self.hooks:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            self._extend(spec.loader, name)
        return spec

    def _extend(self, loader: Any, name: str) -> None:
        # The loader stays what it is (importlib.resources asks for its class); only this instance does one thing more.
        execute = loader.exec_module

        def exec_module(module: ModuleType) -> None:
            execute(module)
            hook = self.hooks.pop(name, None)
            if hook is not None:
                hook(module)

        loader.exec_module = exec_module


_finder = _Finder()


def after_import(name: str, hook: Hook) -> None:
    """Call `hook` with the module `name`: now if it is there, else when it gets imported, once."""
    if name in sys.modules:
        hook(sys.modules[name])
        return
    _finder.hooks[name] = hook
    finder: Any = _finder
    if finder not in sys.meta_path:
        sys.meta_path.insert(0, finder)
