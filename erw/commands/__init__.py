"""The subcommands of ``erw``, a file each. A new one is a file with ``run(arguments)`` and one line in ``COMMANDS``."""

COMMANDS = {
    "train": "train a preset: erw train PRESET [--section.field VALUE ...]; the same as python train_ds.py",
    "plan": "what a run needs and costs, before it starts: erw plan in256-repa-xl2 --gpus 8 --gpu h200 --zero 2",
    "doctor": "what is amiss with this machine, its ranks and the run's folder: erw doctor",
    "sample": "sample images from a run or a checkpoint: erw sample runs/demo/erw --count 64",
    "prepare": "crop and encode images once, for training to stream: erw prepare my-images --out data/mine --size 256",
    "encoder": "train a teacher of your own images, without labels: erw encoder data/pixels --out mine.safetensors",
    "import-data": "latents of REPA's or LightningDiT's scripts as a dataset: erw import-data FOLDER --out data/imagenet256",
    "probe": "look inside runs: semantic gap, alignment, progression: erw probe runs/demo/sit runs/demo/repa runs/demo/erw",
    "tune-warmup": "how long and how deep ERW should warm up, from a short pilot: erw tune-warmup digits-erw",
    "eval": "FID and its kin, with the protocol: erw eval samples.npz --reference VIRTUAL_imagenet256_labeled.npz",
    "report": "one page of HTML about runs: erw report runs/demo/sit runs/demo/erw --out report.html",
    "compare": "what differs between two runs: erw compare runs/demo/repa runs/demo/erw",
    "export": "a trained model as a folder, or as a .pt file: erw export runs/demo/erw --out exported/erw",
    "import": "such a folder, or a .pt file of SiT, DiT or REPA, as a run: erw import exported/erw --out runs/erw",
}
