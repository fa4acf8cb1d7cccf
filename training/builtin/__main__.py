"""`python -m searchkit.training.builtin PAIRS/ OUT/`: trains the built-in model further."""

from searchkit.training.builtin.make import main

main()
