"""`python -m unmask.loggers RUN TRACKER`: feeds a tracker; a training starts it, see `unmask.loggers.follow`."""

import sys
from pathlib import Path

from unmask.loggers.follow import main

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
