"""``python -I -m taskpass``: the command without its script."""

import sys

from taskpass.cli.entry import main

sys.exit(main())
