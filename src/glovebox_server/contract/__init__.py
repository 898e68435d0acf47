"""Interfaces where layers meet: what a runtime, a node, a guest, a store and a clock must do for the layer above."""
