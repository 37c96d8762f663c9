"""`python -m cpt_kernels table | check | compile | tune`: what can run here, and whether the kernels are right."""

import sys

from cpt_kernels.cli import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
