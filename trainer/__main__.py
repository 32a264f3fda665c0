"""``python -m trainer``."""

from .cli import main

raise SystemExit(main())
