"""The subcommands of ``erw``, a file each. A new one is a file with ``run(arguments)`` and one line in ``COMMANDS``."""

COMMANDS = {
    "train": "train a preset: erw train PRESET [--section.field VALUE ...]; the same as python train_ds.py",
    "sample": "sample images from a run or a checkpoint: erw sample runs/demo/erw --count 64",
    "probe": "look inside runs: semantic gap, alignment, progression: erw probe runs/demo/sit runs/demo/repa runs/demo/erw",
    "eval": "FID and its kin, with the protocol: erw eval samples.npz --reference VIRTUAL_imagenet256_labeled.npz",
    "convert": "a .pt file of SiT, DiT or REPA to a run, or back: erw convert FILE.pt --convention sit --out runs/sit",
}
