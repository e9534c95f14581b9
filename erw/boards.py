"""Where curves are drawn besides metrics.jsonl: TensorBoard and Weights & Biases. x is training images everywhere."""

import secrets
from pathlib import Path
from typing import Protocol

from erw.config import TrainConfig
from erw.errors import UserError
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

        self._writer = SummaryWriter(folder, purge_step=start)

    def write(self, images: int, values: dict[str, float]) -> None:
        for key, value in values.items():
            self._writer.add_scalar(key, value, images)

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


def open_boards(config: TrainConfig, start: int) -> list[Board]:
    """The boards that the settings ask for, from image ``start`` on."""
    boards: list[Board] = []
    if config.train.tensorboard:
        boards.append(TensorBoard(Path(config.train.out) / "tensorboard", start))
    if config.train.wandb != "none":
        boards.append(WeightsAndBiases(config.train.wandb, config))
    return boards
