"""A plan as a picture: memory of a GPU by kind, speed by number of GPUs."""

from pathlib import Path

from erw.devices import GB
from erw.errors import UserError
from erw.plan.forecast import Forecaster
from erw.plan.network import Network

_KINDS = ("weights", "masters", "moments", "ema", "buffers", "gradients", "buckets", "activations")


def draw(file: Path, forecaster: Forecaster, network: Network, counts: list[int], stages: list[str], batch: int, title: str):
    """Write ``file`` (.png, .svg, .pdf): left bars a stage at ``network``, right images/s at the same images a GPU."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), constrained_layout=True)
    below = [0.0] * len(stages)
    at = [forecaster.at(network, batch=batch, ds_config=stage) for stage in stages]
    main = [forecast.main.memory for forecast in at]
    for kind in _KINDS:
        sizes = [getattr(memory, kind) / GB for memory in main]
        left.bar(stages, sizes, bottom=below, label=kind)
        below = [a + b for a, b in zip(below, sizes, strict=True)]
    left.plot(stages, [memory.peak / GB for memory in main], "k_", markersize=40, label="peak at once")
    if forecaster.rates.memory:
        left.axhline(forecaster.rates.memory / GB, color="grey", linestyle="--", label=forecaster.rates.name)
    left.set_ylabel("GB a GPU")
    left.legend(fontsize=8)
    micro = batch // network.gpus
    for stage in stages:
        speeds = []
        for count in counts:
            one = Network(count, network.per_node, network.link, network.node)
            speeds.append(forecaster.at(one, batch=micro * count, ds_config=stage).images_per_second)
        right.loglog(counts, speeds, marker="o", markersize=4, label=stage)
    ideal = [at[0].images_per_second / network.gpus * count for count in counts]
    right.loglog(counts, ideal, color="grey", linestyle="--", label="proportional")
    right.set_xlabel(f"GPUs, {micro} images each (modelled)")
    right.set_ylabel("images/s")
    right.legend(fontsize=8)
    figure.suptitle(title, fontsize=10)
    try:
        figure.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f"--plot {file} cannot be written: {error}") from None
    finally:
        plt.close(figure)
