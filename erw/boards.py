"""Where figures go besides metrics.jsonl: TensorBoard, Weights & Biases, Prometheus. x is training images everywhere."""

import re
import secrets
from pathlib import Path
from typing import Protocol

from erw.config import TrainConfig
from erw.errors import UserError
from erw.evaluate.anchors import Anchor, anchors_for, short
from erw.settings import to_dict


class Board(Protocol):
    """A place for curves."""

    def write(self, images: int, values: dict[str, float]) -> None:
        """Add a point to each named curve."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


class TensorBoard:
    """Event files in ``folder``; points later than image ``start`` (of a killed run) are hidden."""

    def __init__(self, folder: Path, start: int):
        from torch.utils.tensorboard import SummaryWriter

        self._folder, self._writer = folder, SummaryWriter(folder, purge_step=start)

    def write(self, images: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, images)

    def draw_published(self, anchors: list[Anchor], until: int) -> None:
        """Published figures as runs of their own, which TensorBoard draws into the charts of our evaluations.

        A curve of those up to image ``until``; a level line for a method whose figures all come later.
        """
        from torch.utils.tensorboard import SummaryWriter

        for name in dict.fromkeys(a.name for a in anchors):
            mine = [a for a in anchors if a.name == name]
            within = [a for a in mine if a.images <= until]
            label = f"published {name}" if within else f"published {name} at {short(mine[0].steps)} steps"
            folder = self._folder / label.replace("/", "-")
            if folder.exists():  # a resumed run's
                continue
            writer = SummaryWriter(folder)
            for anchor in within or mine[:1]:
                for image in [anchor.images] if within else [0, until]:
                    writer.add_scalar(f"eval/{anchor.metric}", anchor.value, image)
            writer.close()

    def close(self) -> None:
        self._writer.close()


class WeightsAndBiases:
    """A run of ``project`` named after its folder; a resumed run goes on in the same one. WANDB_* variables are obeyed."""

    def __init__(self, project: str, config: TrainConfig):
        try:
            import wandb
        except ImportError:
            raise UserError("--train.wandb needs wandb: pip install 'erw[wandb]'") from None
        folder = Path(config.train.out)
        # The run's id lives in its folder: a resumed run finds it there, another run of the same name has its own.
        known = folder / "wandb" / "id"
        known.parent.mkdir(parents=True, exist_ok=True)
        if not known.exists():
            known.write_text(secrets.token_hex(4), encoding="utf-8")
        self._run = wandb.init(
            project=project,
            name=folder.resolve().name,
            id=known.read_text(encoding="utf-8"),
            resume="allow",
            dir=str(folder),
            config=to_dict(config),
        )
        self._run.define_metric("*", step_metric="images")

    def write(self, images: int, values: dict[str, float]) -> None:
        self._run.log({"images": images, **values})

    def close(self) -> None:
        self._run.finish()


class Prometheus:
    """Figures as gauges ``erw_NAME`` on http://HOST:PORT/metrics; what has a slash in its name has the rest as a label."""

    def __init__(self, host: str, port: int):
        try:
            from prometheus_client import CollectorRegistry, Gauge, start_http_server
        except ImportError:
            raise UserError("--train.prometheus needs prometheus_client: pip install 'erw[prometheus]'") from None
        self._registry, self._gauge, self._gauges = CollectorRegistry(), Gauge, {}
        try:
            self._server, self._thread = start_http_server(port, host, registry=self._registry)
        except OSError as error:
            raise UserError(f"--train.prometheus {port}: {host}:{port} cannot be served: {error.strerror}") from None

    def write(self, images: int, values: dict[str, float]) -> None:
        for key, value in {"images": images, **values}.items():
            name, _, part = key.partition("/")
            name = "erw_" + re.sub(r"\W", "_", name)
            if name not in self._gauges:
                self._gauges[name] = self._gauge(name, f"erw: {key}", ["part"] if part else [], registry=self._registry)
            gauge = self._gauges[name]
            (gauge.labels(part) if part else gauge).set(value)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def open_boards(config: TrainConfig, start: int) -> list[Board]:
    """The boards that the settings ask for, from image ``start`` on."""
    boards: list[Board] = []
    if config.train.tensorboard:
        boards.append(TensorBoard(Path(config.train.out) / "tensorboard", start))
        if config.eval.name != "none":
            boards[-1].draw_published(anchors_for(config), config.train.images)
    if config.train.prometheus:
        boards.append(Prometheus(config.train.prometheus_host, config.train.prometheus))
    if config.train.wandb != "none":
        boards.append(WeightsAndBiases(config.train.wandb, config))
    return boards
