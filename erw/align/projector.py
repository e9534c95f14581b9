"""The projector between the model's hidden state and the teacher's feature space."""

from torch import nn

from erw.models.sit import init_linear


def build_projector(width: int, hidden: int, out: int) -> nn.Sequential:
    """REPA's three-layer SiLU MLP (REPA, Sec. 3.1): (B, T, width) to (B, T, out). Children 0, 2 and 4 are the Linears."""
    projector = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, out))
    projector.apply(init_linear)
    return projector


class Projectors(nn.Module):
    """One projector for each teacher, under the name that public REPA checkpoints use: ``projectors.0.*``."""

    def __init__(self, width: int, hidden: int, outs: tuple[int, ...]):
        super().__init__()
        self.projectors = nn.ModuleList(build_projector(width, hidden, out) for out in outs)
