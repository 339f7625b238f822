"""`segnas` and `python -m segnas`: runs the command line; a user's error prints one message, a bug its traceback."""

import os
import sys


def main() -> None:
    """Entry point of the console script."""
    # Before torch is loaded: a waiting thread spins briefly, then sleeps. Endless spinning, the default, was seen to make a training step 50 times
    # slower on a machine that does anything else besides; sleeping at once costs a fifth on a quiet one.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    from segnas.cli import segnas
    from segnas.errors import SegnasError

    try:
        segnas(prog_name="segnas")
    except SegnasError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
