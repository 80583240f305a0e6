"""python -m ifcsr_lib COMMAND: see cli."""

import sys

from .cli import main
from .start import patient_threads

if __name__ == "__main__":
    patient_threads()  # the command's own torch, and that of notebooks and processes which it starts
    sys.exit(main())
