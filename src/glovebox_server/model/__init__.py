"""The words of the domain as types: ids, templates, sandboxes, their lifecycle. Pure."""
