"""The settings of a run: one frozen tree, each section defined beside what it configures."""

from dataclasses import dataclass, field
from typing import Any, Literal

from erw.align import METHODS, Method
from erw.data import DataConfig
from erw.engine.config import EngineConfig, check_stage
from erw.errors import UserError
from erw.evaluate import EvalConfig
from erw.latents import LatentConfig
from erw.models.sit import SiTConfig
from erw.objectives import OBJECTIVES, Flow, Objective
from erw.optim import OptimConfig
from erw.redact import redacted
from erw.samplers import SampleConfig
from erw.settings import from_dict, leaves, nearest, setting
from erw.teachers import TeacherConfig, teacher_specs
from erw.types import TeacherSpec


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Length, place and bookkeeping of a run. Progress is counted in images everywhere."""

    images: int = setting(102_400_000, "training images in all, both phases of ERW together; the papers' 400K steps")
    batch: int = setting(256, "global batch, whatever the ranks and the accumulation")
    seed: int = setting(0, "decides weights, data order, noise, t and label drop")
    out: str = setting("runs/run", "folder of the run")
    resume: str = setting("none", "none; auto: go on from the newest checkpoint in the run's folder; or a checkpoint")
    init_from: str = setting("none", "none; or start with the weights of a run, a checkpoint or a .pt file of other code")
    init_convention: str = setting("none", "whose code wrote that .pt file: sit, dit or repa")
    save_every: int = setting(12_800_000, "images between checkpoints; 0 saves at the end only")
    keep: int = setting(3, "checkpoints kept; older ones are deleted")
    async_save: bool = setting(
        True, "write checkpoints while training goes on; 16 bytes a parameter of the first rank's host memory"
    )
    max_skipped: int = setting(
        20, "steps in a row skipped for gradients that are not finite, after which the run acts; 0: never"
    )
    on_nonfinite: Literal["stop", "rollback"] = setting(
        "stop", "what it does then: stop; rollback: weights back to a checkpoint before them, with the data that come next"
    )
    log_every: int = setting(25_600, "images between lines of metrics.jsonl")
    progress: Literal["auto", "bar", "line", "none"] = setting(
        "auto", "what is shown meanwhile: a bar; a line a report; auto: a bar on a terminal, else lines"
    )
    prometheus: int = setting(0, "port on which the first rank serves its figures to Prometheus; 0: none")
    prometheus_host: str = setting("127.0.0.1", "address of that port; 0.0.0.0 lets other machines read, unprotected")
    tensorboard: bool = setting(True, "write curves for TensorBoard as well")
    wandb: str = setting("none", "none, or a Weights & Biases project to write curves to")
    deterministic: bool = setting(False, "the same bits from the same start on the same machine, or an error; slower")
    profile: int = setting(0, "steps of each phase to profile, after three of warm-up (docs/profiling.md); 0: none")
    profile_at: int = setting(0, "image from which they are profiled, where a phase reaches it; 0: at once")
    profiler: Literal["torch", "nsight"] = setting(
        "torch", "torch: a trace and a page of figures in the run's folder; nsight: NVTX ranges for nsys and ncu"
    )

    def __post_init__(self):
        for name in ("images", "batch", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise UserError(f"--train.{name} must be at least 1, not {getattr(self, name)}")
        for name in ("seed", "profile", "profile_at", "max_skipped"):
            if getattr(self, name) < 0:
                raise UserError(f"--train.{name} must not be negative, not {getattr(self, name)}")
        if not 0 <= self.prometheus < 65536:
            raise UserError(f"--train.prometheus takes a port, or 0 for none, not {self.prometheus}")
        if self.init_convention != "none" and self.init_from == "none":
            raise UserError(f"--train.init_convention {self.init_convention} needs a .pt file: name it with --train.init_from")


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that decides a run."""

    model: SiTConfig = field(default_factory=SiTConfig)
    method: Method
    objective: Objective = field(default_factory=Flow)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: RunConfig = field(default_factory=RunConfig)
    data: DataConfig = field(default_factory=DataConfig)
    latents: LatentConfig = field(default_factory=LatentConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    sample: SampleConfig = field(default_factory=SampleConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)

    def check(self) -> None:
        """Raise `UserError` where sections contradict each other. Needs no data and no device."""
        for name, _, _, value in leaves(self):
            if isinstance(value, str) and redacted(value) != value:
                raise UserError(
                    f"--{name} holds credentials ({redacted(value)}), and settings are written into the run's folder: give them"
                    " in the environment (AWS_ACCESS_KEY_ID, HF_TOKEN and the like)"
                )
        self.method.check(self.model, self.teacher_specs, self.train.batch)
        self.objective.check(self.model)
        self.sample.check(self.objective)
        check_stage(self.engine)
        for boundary in self.method.boundaries():
            if boundary >= self.train.images:
                raise UserError(
                    f"--train.images {self.train.images} ends before the warm-up does, at {boundary} images: train longer"
                    " or set --method.warmup_images lower"
                )

    @property
    def active_teacher(self) -> TeacherConfig:
        """The teacher's settings; none where the method has no use for one."""
        return self.teacher if self.method.needs_teacher else TeacherConfig()

    @property
    def teacher_specs(self) -> tuple[TeacherSpec, ...]:
        """The shapes of the teachers that the method uses, on the model's token grid."""
        return teacher_specs(self.active_teacher, self.model.grid)


def config_from_dict(data: dict[str, Any]) -> TrainConfig:
    """The inverse of `erw.settings.to_dict` for a `TrainConfig`."""

    def by_name(section: str, known: dict[str, type]):
        def build(entry: dict[str, Any]):
            name = entry.get("name")
            if name not in known:
                raise UserError(f"{section} '{name}' is not known; {nearest(str(name), known)}")
            return from_dict(known[name], entry)

        return build

    return from_dict(TrainConfig, data, {Method: by_name("method", METHODS), Objective: by_name("objective", OBJECTIVES)})
