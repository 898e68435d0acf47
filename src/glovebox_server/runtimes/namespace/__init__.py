"""The `namespace` runtime: sandboxes forked from a warm zygote into Linux namespaces."""
