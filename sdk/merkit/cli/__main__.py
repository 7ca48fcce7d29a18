"""`python -m merkit.cli`."""

import sys

from merkit.cli.commands import main

sys.exit(main())
