"""Warnings and errors say which rank they come from."""

import logging
import warnings


def tag_rank(rank: int) -> None:
    """From now on Python's warnings, and log records from WARNING up, begin with ``[rank N]``.

    Uncaught exceptions have a tag of torch.distributed's own.
    """
    tag, form, make = f"[rank {rank}] ", warnings.formatwarning, logging.getLogRecordFactory()

    def formatwarning(*args, **kwargs) -> str:
        return tag + form(*args, **kwargs)

    def record(*args, **kwargs) -> logging.LogRecord:
        made = make(*args, **kwargs)
        if made.levelno >= logging.WARNING and not str(made.msg).startswith(tag):
            made.msg = tag + str(made.msg)
        return made

    warnings.formatwarning = formatwarning
    logging.setLogRecordFactory(record)
