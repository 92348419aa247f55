"""Entry point of `python -m march_search`; the same as the `march-search` command."""

from march_search.cli import main

raise SystemExit(main())
