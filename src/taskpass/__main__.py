"""``python -m taskpass``: what ``bin/taskpass`` starts, isolated."""

from __future__ import annotations

import sys

from taskpass.cli.entry import main

sys.exit(main())
