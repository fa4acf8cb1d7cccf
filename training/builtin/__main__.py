"""`python -m searchkit.training.builtin PAIRS/ OUT/`: the recipe of the built-in model (never yet run to its end)."""

from searchkit.training.builtin.make import main

main()
