"""`python -m rcp` is `rcp`."""

import sys

from rcp.cli import main

sys.exit(main())
