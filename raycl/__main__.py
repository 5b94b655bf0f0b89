"""``python -m raycl``."""

from raycl.cli import main

if __name__ == "__main__":
    main()
