"""`python -m march_search` is `march-search`."""

from march_search.cli import main

raise SystemExit(main())
