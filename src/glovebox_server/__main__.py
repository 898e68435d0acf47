"""`python -m glovebox_server`."""

import sys

from glovebox_server import main

sys.exit(main.main())
