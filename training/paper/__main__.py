"""`python -m searchkit.training.paper`."""

from searchkit.training.paper.command import main

if __name__ == "__main__":
    main()
