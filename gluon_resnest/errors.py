"""The one exception that means "your input, not our bug"."""


class InputError(ValueError):
    """A file, flag or value from outside cannot be used.

    The message names the value, where it came from and the remedy, in one line. The command-line
    tools print it without a traceback and exit with code 2; any other exception is a bug and
    keeps its traceback.

    Parameters
    ----------
    message
        For the user.
    only_here
        Other ranks of a run may not have met this error, so this rank must print it. Otherwise
        every rank has it and rank 0 speaks for all.
    """

    exit_code = 2

    def __init__(self, message: str, only_here: bool = False) -> None:
        super().__init__(message)
        self.only_here = only_here
