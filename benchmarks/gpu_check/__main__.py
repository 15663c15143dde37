"""`python -m gpu_check`; see `cli`."""

import sys

from gpu_check.cli import main

sys.exit(main())
