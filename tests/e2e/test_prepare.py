"""From a folder of pictures to a trained model, its samples and their Frechet distance; kills on the way change nothing."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from erw.bench.prepare import write_vae
from erw.build import fit_to_data, open_data
from erw.cli import main
from erw.data.store import StoreDataset
from erw.errors import UserError
from erw.options import parse
from erw.teachers.features import FeatureSource
from launch import environment
from photographs import write_classes
from train_ds import train

pytestmark = [pytest.mark.slow, pytest.mark.dist]
ONE_THREAD = {"OMP_NUM_THREADS": "1"}  # of each process, however many there are
TEACHER = ["--teachers", "efficientnet-lite0"]
SMALL = ["--model.depth", "2", "--model.width", "48", "--model.num_heads", "2", "--method.depth", "1",
         "--method.projection_depth", "2", "--method.projector_width", "32", "--engine.precision", "fp32"]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the processes have that are started here: the number of threads may show in the last bit."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def erw(*arguments) -> None:
    """``erw ARGUMENTS`` in this process."""
    main([str(argument) for argument in arguments])


def trained(*arguments) -> None:
    """``erw train ARGUMENTS`` in this process, whose group it leaves as it is."""
    train(parse([str(argument) for argument in arguments])[0])


def killed(arguments: list, when: Callable[[], bool]) -> None:
    """Start ``python ARGUMENTS`` and kill it (-9) ``when`` it has come so far; all its processes must end."""
    log = environment(**ONE_THREAD)
    process = subprocess.Popen([sys.executable, *map(str, arguments)], stderr=subprocess.PIPE, env=log, start_new_session=True)
    deadline = time.monotonic() + 120
    while not when():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1][-3000:]
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)  # stderr ends when its last holder, a child too, is gone
    assert process.returncode == -signal.SIGKILL


def content(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted(folder.iterdir()) if f.is_file() and f.name != "preparing.jsonl"}


# ---- pixels, a teacher, kills --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pixels(tmp_path_factory):
    """96 crops of 32 pixels with features of the packaged teacher, and the command that prepared them."""
    folder = tmp_path_factory.mktemp("pixels")
    write_classes(folder / "source", 48)
    command = ["prepare", folder / "source", "--size", "32", "--latents", "pixels", *TEACHER, "--shard", "8", "--batch", "8",
               "--teacher-side", "128"]  # fmt: skip
    erw(*command, "--out", folder / "data")
    return folder / "data", command


def test_killed_with_two_processes_and_ended_by_one(pixels, tmp_path):
    """Neither the kill nor the number of processes shows in any byte."""
    whole, command = pixels
    out = tmp_path / "data"
    killed(["-m", "erw.cli", *command, "--out", out, "--processes", "2"],
           lambda: len(list((out / ".work").glob("0*.json"))) >= 3)  # fmt: skip
    assert not (out / "manifest.json").exists()
    finished = {f: f.stat().st_mtime_ns for f in (out / ".work").glob("0*.json")}
    shards = {f"{group}-{int(f.stem):05d}.arrow" for f in finished for group in ("latents", "efficientnet-lite0")}
    before = {name: (out / name).stat().st_mtime_ns for name in shards}
    erw(*command, "--out", out)
    assert {name: (out / name).stat().st_mtime_ns for name in shards} == before and 3 <= len(finished) < 12
    assert content(out) == content(whole)
    StoreDataset(str(out)).verify()


def test_a_killed_training_from_the_store_has_the_losses_of_an_undisturbed_one(pixels, one_rank, tmp_path):
    common = ["cifar10-erw-s2", *SMALL, "--data.path", pixels[0], "--batch", "8", "--images", "96", "--method.warmup_images",
              "32", "--train.log_every", "8", "--train.save_every", "16", "--data.workers", "1"]  # fmt: skip
    trained(*common, "--out", tmp_path / "whole")
    again = [*common, "--out", tmp_path / "again", "--resume", "auto"]
    killed(["-m", "erw.cli", "train", *again], lambda: (tmp_path / "again" / "checkpoints" / "000000000048").exists())
    trained(*again)
    rows = [[json.loads(row) for row in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("whole", "again")]
    losses = [[(row["images"], row["loss"], row["grad_norm"]) for row in found if "loss" in row] for found in rows]
    assert len(losses[0]) == 12 and losses[0] == losses[1]
    assert len((tmp_path / "again" / "starts.jsonl").read_text().splitlines()) == 2


def test_three_commands_from_a_folder_to_samples(pixels, one_rank, tmp_path):
    """The preset takes classes, shape and teacher from the dataset."""
    run = tmp_path / "run"
    trained("folder-erw", *SMALL, "--data.path", pixels[0], "--batch", "8", "--images", "16", "--method.warmup_images",
        "8", "--out", run)  # fmt: skip
    erw("sample", run, "--count", "2", "--steps", "2")
    config = json.loads((run / "config.json").read_text())
    model = {name: config["model"][name] for name in ("num_classes", "in_channels", "input_size")}
    assert model == {"num_classes": 2, "in_channels": 3, "input_size": 32}
    assert config["latents"]["kind"] == "pixels" and config["teacher"]["name"] == "efficientnet-lite0"
    assert np.load(run / "samples-000000000016" / "samples.npz")["arr_0"].shape == (2, 32, 32, 3)


# ---- latents -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moments(tmp_path_factory):
    """(dataset of 24 JPEGs at 256 pixels: moments of a small random autoencoder, features, pixels; the autoencoder)."""
    folder = tmp_path_factory.mktemp("moments")
    write_classes(folder / "source", 12, width=330, height=280)
    write_vae(folder / "vae", (16, 16, 32, 32))
    erw("prepare", folder / "source", "--out", folder / "data", "--vae", folder / "vae", *TEACHER, "--images", "--batch", "8",
        "--precision", "bf16")  # fmt: skip
    return folder / "data", folder / "vae"


def test_the_latent_path_whole(moments, run_erw, tmp_path):
    """JPEGs, AutoencoderKL, store, 20 steps of SiT-S/2 with ERW at 256 tokens under ZeRO-2 on two ranks, samples, distance."""
    data, vae = moments
    run = tmp_path / "run"
    done = run_erw("in256-erw-s2", "--data.path", data, "--data.workers", "1", "--latents.vae", vae, "--teacher.name",
        "efficientnet-lite0", "--batch", "4", "--images", "80", "--method.warmup_images", "40", "--train.log_every", "4",
                   "--out", run, ranks=2)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [row for row in rows if "loss" in row]
    assert [row["phase"] for row in losses] == ["warmup"] * 10 + ["full"] * 10
    assert losses[9]["loss"] < losses[0]["loss"] and all(np.isfinite(row["loss"]) for row in losses)
    erw("sample", run, "--count", "4", "--steps", "2", "--batch", "4")
    assert np.load(run / "samples-000000000080" / "samples.npz")["arr_0"].shape == (4, 256, 256, 3)
    erw("eval", run, "--reference", data, "--features", "efficientnet-lite0", "--allow-few")
    (record,) = (run / "samples-000000000080").glob("eval-*.json")
    assert json.loads(record.read_text())["results"]["efficientnet-lite0"]["frechet"] > 0


def started(*arguments) -> None:
    """What a run does before its first step, as far as settings and dataset go."""
    config, dataset = open_data(parse([str(argument) for argument in arguments])[0])
    config, _ = fit_to_data(config, dataset)
    FeatureSource(config.active_teacher, dataset, torch.device("cpu"), grid=config.model.grid)


def test_a_dataset_of_another_autoencoder_or_teacher_is_refused(moments, tmp_path):
    data, vae = moments
    write_vae(tmp_path / "other", (16, 16, 32, 48))
    lite, right = ["--teacher.name", "efficientnet-lite0"], ["--latents.vae", vae]
    started("in256-repa-s2", "--data.path", data, *right, *lite)
    for arguments, says in [
        (["in256-repa-s2", *lite], f"the dataset was encoded by {vae}, --latents.vae is stabilityai/sd-vae-ft-ema: set"),
        (["in256-sit-s2", "--latents.vae", tmp_path / "other"], f"the dataset was encoded by {vae}, --latents.vae is"),
        (["in256-repa-s2", *right], "caches features of efficientnet-lite0 (width 112, grid 16), --teacher.name dinov2-b"),
        (["in512-sit-s2", *right], "--model.input_size is 64, the data has 32: set --model.input_size 32"),
        (["cifar10-sit-s2"], "the dataset holds moments of a VAE, --latents.kind is pixels: set --latents.kind vae"),
    ]:
        with pytest.raises(UserError) as error:
            started(*arguments, "--data.path", data)
        assert says in str(error.value) and "\n" not in str(error.value)


def test_an_autoencoder_that_moved_is_known_by_its_weights(moments, tmp_path):
    data, vae = moments
    (tmp_path / "elsewhere").symlink_to(vae)
    started("in256-sit-s2", "--data.path", data, "--latents.vae", tmp_path / "elsewhere")
    started("folder-sit", "--data.path", data, "--latents.vae", tmp_path / "elsewhere")
