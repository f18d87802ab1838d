"""``python -m circuits`` is the ``circuits`` command."""

from circuits.cli import main

if __name__ == "__main__":
    main()
