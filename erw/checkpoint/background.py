"""Checkpoints written while training goes on.

The ranks put full tensors together as ever, and the first keeps all of them in host memory, 16 bytes a parameter; a thread
of it writes, checksums, syncs and renames. There is one copy: a second save waits for the first to be written.
"""

import threading
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from erw.checkpoint.layout import KEYS, Meta, folder_name, found
from erw.checkpoint.write import save

Read = Callable[[str], dict[str, Tensor]]


class Saver:
    """Writes one run's checkpoints, keeping the newest ``keep``; on ranks that do not write it only takes part in reading.

    A disk that does not take one ends nothing: the checkpoint before stays, a line says so, and the next is tried again.
    """

    def __init__(self, folder: Path, keep: int, writes: bool, background: bool):
        self.folder, self.keep, self.writes, self.background = folder, keep, writes, background
        self._thread: threading.Thread | None = None
        self._lines: list[str] = []
        self._bug: BaseException | None = None
        self.failed = ""  # why the last one was not written

    def save(self, meta: Meta, read: Read, buffers: dict[str, Tensor]) -> None:
        """Save the state that ``read(key)`` gives, a collective for each of `KEYS`. In the background: returns when it is
        in host memory, and the lines about it come from a later `poll`."""
        self.wait()
        if not self.background:
            self._write(meta, read, buffers)
            return
        held = {key: read(key) for key in KEYS}
        if self.writes:
            # Not a daemon: an interpreter that ends for any other reason waits for it, too.
            self._thread = threading.Thread(target=self._write, args=(meta, held.pop, buffers), name="checkpoint writer")
            self._thread.start()

    def _write(self, meta: Meta, read: Read, buffers: dict[str, Tensor]) -> None:
        try:
            path = save(self.folder, meta, read, buffers, keep=self.keep, writes=self.writes)
            self._lines.append(f"saved {path}")
            self.failed = ""
        except OSError as error:
            before = found(self.folder)
            stays = f"{before[-1].name} stays the newest" if before else "there is none before it"
            place = self.folder / folder_name(meta.images)
            self.failed = f"checkpoint {place} was not written ({error.strerror or error}), {stays}"
            self._lines.append(f"WARNING: {self.failed}; training goes on")
        except BaseException as error:  # of the thread: raised where the run sees it
            self._bug = error

    def wait(self, limit: float | None = None) -> None:
        """Return when nothing is being written, or after ``limit`` seconds."""
        if self._thread is not None:
            self._thread.join(limit)

    def poll(self) -> list[str]:
        """Lines about what was written since the last call. Raises what a writer died of, other than of the disk."""
        if self._thread is not None:
            if self._thread.is_alive():
                return []
            self._thread = None
        if self._bug is not None:
            bug, self._bug = self._bug, None
            raise bug
        lines, self._lines = self._lines, []
        return lines
