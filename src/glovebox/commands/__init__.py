"""The commands of `glovebox`, one module per subject. Heavy libraries are imported where they are used: help is instant."""
