"""Lets `python -m pipeline.cli` stand for `trueup`."""

from pipeline.cli import main

if __name__ == "__main__":
    main()
