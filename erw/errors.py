"""What a user did wrong, said in one line."""

import errno
import functools
import os
import sys
from collections.abc import Callable

from erw.redact import redacted


class UserError(Exception):
    """Bad input. The message names the option or file and says how to mend it; the process exits with code 2."""

    code = 2


class RankError(UserError):
    """What went wrong on one rank only, which therefore says it itself: a full disk, numbers that are not finite."""


class Stopped(UserError):
    """A run that was asked to stop before its end, and did: started again, it goes on. Exit code 75 (EX_TEMPFAIL)."""

    code = 75


class RankLost(RankError):
    """Another rank died or hangs, so this one ends too: started again, the run goes on. Exit code 69 (EX_UNAVAILABLE)."""

    code = 69


def say(error: UserError) -> None:
    """One line on stderr, on rank 0 alone unless it is a `RankError`; nothing for an error without words."""
    if str(error) and (os.environ.get("RANK", "0") == "0" or isinstance(error, RankError)):
        kind = "stopped" if isinstance(error, Stopped) else "error"
        many = isinstance(error, RankError) and os.environ.get("WORLD_SIZE", "1") != "1"
        tag = f"[rank {os.environ.get('RANK', '0')}] " * many
        print(f"erw: {kind}: {tag}{redacted(str(error))}", file=sys.stderr, flush=True)


def exits_cleanly(main: Callable[..., None]) -> Callable[..., None]:
    """Turn a `UserError` raised in ``main`` into one line on stderr (rank 0's, unless a `RankError`) and its exit code; so is
    Ctrl-C."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> None:
        try:
            main(*args, **kwargs)
        except UserError as error:
            say(error)
            sys.exit(error.code)
        except KeyboardInterrupt:
            if os.environ.get("RANK", "0") == "0":
                print("erw: interrupted: what was saved before stays", file=sys.stderr, flush=True)
            sys.exit(130)  # 128 + SIGINT, as shells have it
        except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            print(f"erw: error: {error.filename or 'a file'}: {error.strerror}: make room there", file=sys.stderr, flush=True)
            sys.exit(2)

    return wrapped
