"""`python -m searchkit.training.builtin PAIRS/ OUT/`: the command that makes the built-in model."""

from searchkit.training.builtin.make import main

main()
