"""`python -m glovebox` is the `glovebox` command."""

from glovebox import main

main.main()
