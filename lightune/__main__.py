"""`python -m lightune` is `lightune`: what `accelerate launch -m lightune` runs."""

import sys

from lightune.cli import main

sys.exit(main())
