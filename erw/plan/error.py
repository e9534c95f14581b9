"""How far forecasts were off where they were measured: a record that ``python -m erw.bench.plan --measure`` writes."""

import json
from dataclasses import dataclass
from pathlib import Path

from erw.devices import device_called
from erw.errors import UserError

NAME = "plan-error.json"


@dataclass(frozen=True)
class ErrorRecord:
    """Rows of measured figures and their forecasts, by device."""

    content: dict

    def words(self, gpu: str) -> str:
        """One line for ``--gpu``: the largest errors on such a device, or that there is none, and on what there is."""
        device = self.content["environment"]["device"]
        known = device_called(device)
        same = gpu == "cpu" if self.content["device_type"] == "cpu" else known is not None and known.name == gpu
        named = {"peak": "a step's memory", "saved": "activations", "optimizer": "optimizer state", "seconds": "time"}
        parts = "; ".join(filter(None, (self._worst(key, name) for key, name in named.items())))
        where = f"on {device}, {len(self.content['rows'])} settings, one machine"
        where += ", small models" * (self.content["device_type"] == "cpu")
        if same:
            return f"the model's own error {where}: {parts}"
        return f"the model's own error: not measured on {gpu}; {where}: {parts}"

    def _worst(self, key: str, name: str) -> str:
        errors = [row["forecast"][key] / row["measured"][key] - 1 for row in self.content["rows"] if key in row["measured"]]
        return f"{name} {min(errors):+.1%} to {max(errors):+.1%}" if errors else ""


def read_error(folder: Path) -> ErrorRecord | None:
    """The record in ``folder``, None where there is none."""
    file = folder / NAME
    if not file.exists():
        return None
    try:
        return ErrorRecord(json.loads(file.read_text(encoding="utf-8")))
    except ValueError:
        raise UserError(f"{file} is not JSON: write it again with python -m erw.bench.plan --measure") from None
