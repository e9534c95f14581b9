"""Walks a plan: the most telling rows of every scene, then the rest; what a row's end calls for comes next."""

import sys
from dataclasses import dataclass

from erw.bench._floor import Floor
from erw.bench._ladder import Plan, Row, without_graph
from erw.bench._measure import OUT_OF_MEMORY, Bench, Result, Settings, attempt
from erw.bench._record import Record
from erw.bench._rows import relate, row_of
from erw.bench._scene import PhaseName, Scene


@dataclass(frozen=True)
class Job:
    """One row of one scene."""

    scene: Scene
    row: Row


def jobs(plan: Plan, scenes: list[Scene]) -> list[Job]:
    """References and last rungs of all ``scenes``, then their other rows."""
    first = [Job(scene, row) for scene in scenes for row in plan.telling(scene)]
    rest = [Job(scene, row) for scene in scenes for row in plan.table(scene)]
    return list(dict.fromkeys(first + rest))


class Run:
    """Measures ``jobs`` one after the other into ``content["scenes"]`` and writes ``record`` after each.

    peak           dense bf16 TFLOP/s of the device, where known
    copy_gb_per_s  measured bandwidth of a copy
    floor_rounds   measurements of each part of the floor; 0: there is no floor
    """

    def __init__(self, settings: Settings, plan: Plan, content: dict, record: Record, *, peak: float | None,
                 copy_gb_per_s: float, floor_rounds: int):  # fmt: skip
        self.bench, self.plan, self.content, self.record = Bench(settings), plan, content, record
        self.device, self.deadline, self.peak = settings.device, settings.deadline, peak
        self.copy_gb_per_s, self.floor_rounds = copy_gb_per_s, floor_rounds
        self._floors: dict[tuple[Scene, PhaseName], Floor] = {}
        self._scenes: dict[Scene, dict] = {}

    def __call__(self, waiting: list[Job]) -> None:
        """Measure ``waiting``, and what follows from it."""
        done: list[Job] = []
        while waiting:
            job = waiting.pop(0)
            anchor = self.plan.table(job.scene)[0]
            found = self.bench.measure(job.scene, job.row, anchor)
            done.append(job)
            waiting = self._next(job, found, done, waiting)
            self._note(job, found)
            self.content["finished"] = not waiting
            self.record.write(self.content)
            status = found if isinstance(found, str) else f"{job.scene.batch / found.timing.median:.4g} images/s"
            print(f"{job.scene.model} batch {job.scene.batch}: {job.row.name}: {status}", file=sys.stderr, flush=True)
        self.bench.clear()
        self._look_again()

    def _look_again(self) -> None:
        """Floors once more, long after their first rows, unless time is up; rows are set against what was faster."""
        for (scene, phase), floor in self._floors.items():
            failed = attempt(floor.again) if self.deadline.left() > 0 else None
            if failed is not None:
                print(f"{scene.model} batch {scene.batch}: floor: {failed}", file=sys.stderr, flush=True)
            entry = self._scenes[scene]
            entry["floors"] = [known.as_json() for (at, _), known in self._floors.items() if at == scene]
            for row in entry["rows"]:
                if row.get("times_floor") is not None and row["setup"]["phase"] == phase:
                    row["times_floor"] = row["ms_per_step"]["median"] / 1e3 / floor.seconds(row["setup"]["attention"])
        self.record.write(self.content)

    def _next(self, job: Job, found: Result | str, done: list[Job], waiting: list[Job]) -> list[Job]:
        """``waiting`` after ``job``: half the batch where memory ran out; no graphs where one could not be captured."""
        if found == OUT_OF_MEMORY and job.scene.batch > 1:
            half = job.scene.halved()
            wanted = dict.fromkeys(Job(half, row) for row in (*self.plan.telling(half), job.row))
            return [new for new in wanted if new not in done and new not in waiting] + waiting
        if isinstance(found, str) and found.startswith("failed") and job.row.setup.graph:
            twins = [other for other in (job, *waiting) if other.scene == job.scene and other.row.setup.graph]
            known = [row.setup for row in self.plan.table(job.scene)]
            plain = [Job(other.scene, without_graph(other.row)) for other in twins]
            return [new for new in plain if new.row.setup not in known] + [w for w in waiting if w not in twins]
        return waiting

    def _note(self, job: Job, found: Result | str) -> None:
        """Put the row into its scene's place, in the order of the table."""
        scene, table = job.scene, self.plan.table(job.scene)
        if scene not in self._scenes:
            place = {"model": scene.model, "tokens": scene.config.tokens, "batch": scene.batch, "anchor": table[0].name}
            self._scenes[scene] = place | {"floors": [], "rows": []}
            self.content["scenes"].append(self._scenes[scene])
        entry = self._scenes[scene]
        floor = None if isinstance(found, str) else self._floor(scene, found)
        entry["rows"].append(row_of(job.row, found, scene, self.peak, floor))
        order = [row.name for row in table]
        entry["rows"].sort(key=lambda row: order.index(row["name"]) if row["name"] in order else len(order))
        entry["floors"] = [known.as_json() for (at, _), known in self._floors.items() if at == scene]
        relate(entry)

    def _floor(self, scene: Scene, found: Result) -> float | None:
        """Seconds, None where it could not be measured."""
        if not self.floor_rounds:
            return None
        setup = found.built.setup
        floor = self._floors.get((scene, setup.phase))
        if floor is None:
            floor = Floor(scene, setup.phase, self.device, self.copy_gb_per_s, self.floor_rounds)
        seconds = attempt(lambda: floor.seconds(setup.attention))
        if isinstance(seconds, str):
            print(f"{scene.model} batch {scene.batch}: floor: {seconds}", file=sys.stderr, flush=True)
            return None
        self._floors[scene, setup.phase] = floor
        return seconds
