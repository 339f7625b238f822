"""What can go wrong for a user, and the exit code that says so.

    SegnasError              1   never raised itself
    ├── UsageError           2   the command line or a recipe asks for something that does not exist
    ├── RequirementError     3   this machine lacks something: a package, a GPU, disk space
    ├── InputError           4   a file, folder or value that was given is no good
    ├── VerificationError    5   a check ran and failed: parity, budget, precision
    └── IncompatibleError    6   an engine or table of another target, version or network

A message says what was given, what is allowed and what to run next. Anything else that is raised is a bug and shows its traceback.
"""


class SegnasError(Exception):
    """Base of every error that is the user's to mend; printed as one message, without a traceback."""

    exit_code = 1


class UsageError(SegnasError):
    """A command, option or recipe key that does not exist or contradicts another."""

    exit_code = 2


class RequirementError(SegnasError):
    """Something that this machine lacks: a package, a GPU, room on the disk."""

    exit_code = 3


class InputError(SegnasError):
    """A file, a folder or a value that cannot be used."""

    exit_code = 4


class VerificationError(SegnasError):
    """A check that ran and failed."""

    exit_code = 5


class IncompatibleError(SegnasError):
    """An engine, a table or a checkpoint that belongs to something else."""

    exit_code = 6
