"""``erw eval``."""

from pathlib import Path

import torch

from erw.commands.parser import Parser
from erw.errors import UserError
from erw.evaluate.evaluation import JUDGES, Request, evaluate, find_samples, record_path, write_record
from erw.evaluate.features import FEATURES, load_extractor
from erw.evaluate.selfcheck import self_check
from erw.evaluate.statistics import open_reference
from erw.teachers import PREFIXES


def _parser() -> Parser:
    parser = Parser(
        "eval",
        description="FID, sFID, Inception Score, precision, recall and KID of samples, with the protocol they were taken by.\n"
        "Writes a JSON record beside the samples. docs/evaluation.md says what each figure means and which weights to bring.",
        epilog="examples:\n  erw eval samples.npz --reference VIRTUAL_imagenet256_labeled.npz --weights INCEPTION.pth\n"
        "  erw eval runs/demo/erw --features efficientnet-lite0,digits --allow-few\n"
        "  erw eval --reference DATA --features efficientnet-lite0 --save-reference data.npz\n"
        "  erw eval VIRTUAL_imagenet256_labeled.npz --self-check --weights INCEPTION.pth",
    )
    parser.add_argument(
        "samples", type=Path, nargs="?", metavar="SAMPLES", help=".npz (arr_0), folder of images, or a run: its newest samples"
    )
    parser.add_argument(
        "--reference",
        metavar="REF",
        help="what to compare with: statistics or ADM's batch (.npz), images (.npz, folder), digits",
    )
    names = ", ".join([*FEATURES, *(f"{prefix}NAME" for prefix in PREFIXES), *JUDGES])
    parser.add_argument("--features", default="inception", metavar="NAMES", help=f"with commas between: {names}")
    parser.add_argument(
        "--weights", type=Path, metavar="FILE", help="Inception's weights, unless they lie in erw's cache folder"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the JSON record (default: beside the samples)")
    parser.add_argument("--save-reference", type=Path, metavar="FILE", help="write the reference's statistics (.npz) as well")
    parser.add_argument("--allow-few", action="store_true", help="accept fewer images than features")
    parser.add_argument("--self-check", action="store_true", help="compare with what is known of ADM's files, or fail")
    return parser


def run(arguments: list[str]) -> None:
    """``erw eval``."""
    options = _parser().parse_args(arguments)
    features = tuple(part for part in options.features.split(",") if part)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if options.save_reference is not None:
        _save_reference(options, features, device)
    if options.samples is None:
        if options.save_reference is None:
            raise UserError("SAMPLES is missing: an .npz, a folder of images or a run (erw eval --help)")
        return
    if options.self_check:
        print("\n".join(self_check(options.samples, options.reference, options.weights, device)))
        return
    request = Request(
        samples=options.samples,
        features=features,
        reference=str(options.save_reference) if options.save_reference else options.reference,
        weights=options.weights,
        allow_few=options.allow_few,
        progress=True,
    )
    out = options.out or record_path(find_samples(options.samples), features)
    record = evaluate(request, device)
    write_record(record, out)
    for name, figures in record["results"].items():
        print(f"{name}: " + ", ".join(f"{key} {value:.5g}" for key, value in figures.items()))
    print(out)


def _save_reference(options, features: tuple[str, ...], device: torch.device) -> None:
    if options.reference is None:
        raise UserError("--save-reference needs the images to take statistics of: name them with --reference")
    if len(features) != 1 or features[0] in JUDGES:
        raise UserError(f"--save-reference writes statistics of one network: --features takes one of {', '.join(FEATURES)}")
    extractor = load_extractor(features[0], device, options.weights)
    statistics = open_reference(options.reference, extractor, progress=True)
    if "count" not in statistics.protocol or isinstance(statistics.protocol["count"], str):
        raise UserError(f"{options.reference} holds statistics already: use it as it is")
    statistics.save(options.save_reference)
    print(options.save_reference)
