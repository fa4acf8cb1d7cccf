"""Make the built-in model: python -m searchkit.training.builtin PAIRS/ OUT/."""

from searchkit.training.builtin.make import main

main()
