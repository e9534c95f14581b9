"""Made-up records of a study, with curves whose readings are known."""

from erw.bench.convergence.study import read_study
from erw.settings import to_dict

SEEDS = (0, 1, 2, 3, 4)
# Final Frechet distance of each variant less what the seed adds, and seconds of its run.
LEVELS = {
    "sit": (4.0, 50.0),
    "repa": (3.0, 52.0),
    "erw": (2.5, 48.0),
    "repa-supervised": (2.4, 52.0),
    "erw-supervised": (2.4, 49.0),
}
LAST_IMAGES = {"sit": 1600, "repa": 1500, "erw": 1550, "repa-supervised": 1500, "erw-supervised": 1550}


def made_up(variants=tuple(LEVELS), seeds=SEEDS, noise=(0.1, -0.1, 0.05, -0.05, 0.0), gap=None) -> dict:
    """A whole record. The Frechet distance halves with each quarter of a run and ends at level + noise[seed].

    ``gap`` maps a variant to what each seed adds to its end beside the noise that all variants share.
    """
    entries = {}
    for name in variants:
        level, seconds = LEVELS[name]
        runs = []
        for index, seed in enumerate(seeds):
            end = level + noise[index] + (gap or {}).get(name, [0.0] * len(seeds))[index]
            points = curve(end, seconds + index, LAST_IMAGES[name])
            accounts = {"phases": {"train": {key: points[-1][key] for key in ("images", "seconds", "flops")}}, "other": {}}
            runs.append({"seed": seed, "commit": "0", "curve": points, "accounts": accounts})
        entries[name] = {"settings": {"teacher": {"name": teacher_of(name)}}, "runs": runs}
    study = to_dict(read_study("digits"))
    return {
        "study": study | {"seeds": list(seeds), "reach": [["erw", "repa"], ["repa", "sit"]]},
        "settings": {"seeds": list(seeds), "variants": list(variants), "share": 1.0, "batch": 10},
        "hardware": {"device": "a processor", "threads": 2},
        "versions": {"torch": "2", "deepspeed": "0"},
        "teachers": {
            "digits-contrastive": {"training_flops": 3.4e11, "training_seconds": 8.0},
            "digits-supervised": {"training_flops": 1.7e11, "training_seconds": 4.0},
        },
        "variants": entries,
    }


def teacher_of(name: str) -> str:
    return "none" if name == "sit" else "digits-supervised" if name.endswith("supervised") else "digits-contrastive"


def curve(end: float, seconds: float, images: int) -> list[dict[str, float]]:
    """Four evaluations, equally far apart, of a distance that halves from each to the next; 1e12 FLOPs in all."""
    return [
        {
            "images": images * k / 4, "flops": 1e12 * k / 4, "seconds": seconds * k / 4,
            "frechet": end * 2 ** (4 - k), "accuracy": 0.2 * k, "memorised": 0.01 * k,
        }
        for k in (1, 2, 3, 4)
    ]  # fmt: skip
