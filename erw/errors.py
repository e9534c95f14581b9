"""What a user did wrong, said in one line."""

import functools
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input. The message names the option or file and says how to mend it; the process exits with code 2."""


class RankError(UserError):
    """What went wrong on one rank only, which therefore says it itself: a full disk, numbers that are not finite."""


def exits_cleanly(main: Callable[..., None]) -> Callable[..., None]:
    """Turn a `UserError` raised in ``main`` into one line on stderr (rank 0's, unless a `RankError`) and exit code 2."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> None:
        try:
            main(*args, **kwargs)
        except UserError as error:
            if os.environ.get("RANK", "0") == "0" or isinstance(error, RankError):
                print(f"erw: error: {error}", file=sys.stderr, flush=True)
            sys.exit(2)
        except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())

    return wrapped
