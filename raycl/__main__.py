"""Entry point of ``python -m raycl``, which does what ``raycl`` does."""

from raycl.cli import main

if __name__ == "__main__":
    main()
