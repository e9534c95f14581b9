"""What a prepared dataset says of itself, and what is too bad to become one."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from erw.data.store import TeacherEntry
from erw.errors import UserError
from erw.files import json_bytes, kept
from erw.prepare.encode import column_of
from erw.prepare.listing import Listing
from erw.prepare.outcome import Outcome
from erw.prepare.workplace import Workplace


def check_share(place: Workplace, listing: Listing, outcomes: Iterable[Outcome], share: float) -> None:
    """Raise `UserError` as soon as more than ``share`` of all images is left out; the list of them is written then."""
    left_out = all_left_out(listing, outcomes)
    total = len(listing.names) + len(listing.left_out)
    if len(left_out) <= share * total:
        return
    file = place.folder / "left-out.json"
    with kept(file) as stream:
        stream.write(json_bytes({"left_out": left_out}))
    name, reason = left_out[0]
    raise UserError(
        f"{len(left_out):,} of {total:,} images cannot be used, more than --max-bad-share {share:g} allows; {name}: {reason}"
        f" (all in {file}); mend or remove them, or allow more: finished shards are kept"
    )


def all_left_out(listing: Listing, outcomes: Iterable[Outcome]) -> list[tuple[str, str]]:
    """(name, reason) by name, those seen in the listing too."""
    return sorted([*listing.left_out, *(pair for outcome in outcomes for pair in outcome.left_out)])


def facts(asked: dict[str, Any], listing: Listing, outcomes: list[Outcome]) -> dict[str, Any]:
    """The manifest's part about how the dataset was made. The same images and options give the same facts."""
    if not any(outcome.rows for outcome in outcomes):
        name, reason = outcomes[0].left_out[0]
        raise UserError(f"no image can be used; {name}: {reason}")
    encoders = [outcome.encoder for outcome in outcomes]
    if any(encoder != encoders[0] for encoder in encoders):
        raise UserError(
            "the weights of the autoencoder or of a teacher changed while the dataset was prepared: name another --out and"
            " prepare it anew"
        )
    counts, converted = Counter(), Counter()
    for outcome in outcomes:
        counts.update(outcome.classes)
        converted.update(outcome.converted)
    classes = [{"name": name, "images": counts[str(label)]} for label, name in enumerate(listing.classes)]
    return {
        "asked": asked,
        **encoders[0],
        "classes": classes,
        "converted": dict(sorted(converted.items())),
        "left_out": all_left_out(listing, outcomes),
        "other_files": listing.others,
    }


def teacher_entries(made: dict[str, Any]) -> list[TeacherEntry]:
    """What the store keeps about each teacher of `facts`."""
    with_token = made["asked"]["class_token"]
    return [
        TeacherEntry(
            name=teacher["name"],
            width=teacher["width"],
            grid=teacher["grid"],
            flops=teacher["flops_per_image"],
            tokens=column_of(teacher["name"]),
            cls=f"{column_of(teacher['name'])}.cls" if with_token and teacher["has_class_token"] else "",
            digest=teacher.get("digest", ""),
        )
        for teacher in made["teachers"]
    ]
