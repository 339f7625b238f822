"""`segnas` and `python -m segnas`: runs the command line; a user's error prints one message, a bug its traceback."""

import sys


def main() -> None:
    """Entry point of the console script."""
    from segnas.cli import segnas
    from segnas.errors import SegnasError

    try:
        segnas(prog_name="segnas")
    except SegnasError as error:
        print(f"Error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
