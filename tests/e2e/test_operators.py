"""What an operator sees of a job on two ranks: figures, lines, Prometheus, doctor; and what nobody may see: tokens."""

import json
import re
import threading
import urllib.request

import pytest

from erw.bench._lives import free_port

pytestmark = [pytest.mark.slow, pytest.mark.dist]

TOKENS = {"HF_TOKEN": "hf_secretsecret", "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
          "AWS_SECRET_ACCESS_KEY": "aws/secret+secret", "AWS_ACCESS_KEY_ID": "AKIASECRETSECRET"}  # fmt: skip


@pytest.fixture(scope="module")
def watched(run_erw, tmp_path_factory):
    """(run's folder, what the process said, pages that Prometheus got) of a job with every board and tokens around it."""
    out, port, pages = tmp_path_factory.mktemp("watched") / "run", free_port(), []

    def scrape(stop: threading.Event) -> None:
        while not stop.wait(0.1):
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=2) as page:
                    pages.append(page.read().decode())
            except OSError:
                continue

    stop = threading.Event()
    reader = threading.Thread(target=scrape, args=(stop,))
    reader.start()
    try:
        done = run_erw("digits-erw", "--out", out, "--images", "640", "--method.warmup_images", "160", "--eval.name", "none",
                       "--train.log_every", "160", "--train.prometheus", port, "--train.wandb", "erw-test", ranks=2,
                       env={**TOKENS, "WANDB_MODE": "offline", "WANDB_SILENT": "true"})  # fmt: skip
    finally:
        stop.set()
        reader.join()
    assert done.returncode == 0, done.stderr[-3000:]
    return out, done, pages


def test_reports_hold_what_operators_watch(watched):
    rows = [json.loads(row) for row in (watched[0] / "metrics.jsonl").read_text().splitlines()]
    reports = [row for row in rows if "images_per_second" in row]
    assert reports
    for row in reports:
        assert row["images_per_second_recent"] > 0 and 0 <= row["data_wait"] <= 1 and 0 < row["communication"] <= 1
        assert 0.1 < row["memory_gib"] < 20 and "mfu" not in row  # a CPU's peak is not in the table
    accounts = json.loads((watched[0] / "accounts.json").read_text())
    assert reports[-1]["gpu_hours/full"] == pytest.approx(accounts["phases"]["full"]["device_seconds"] / 3600, rel=0.2)
    assert reports[-1]["gpu_hours/warmup"] > 0


def test_a_line_instead_of_a_bar_where_there_is_no_terminal(watched):
    said = watched[1].stderr
    assert re.search(r"^\d\d:\d\d:\d\d  full  640/640 images \(100.0%\)  .* images/s .* left 0 s$", said, re.MULTILINE)
    assert "img/s" not in said  # tqdm's


def test_prometheus_reads_the_same_figures(watched):
    pages = [page for page in watched[2] if "erw_loss" in page]
    assert pages, "no page had figures"
    assert re.search(r"^erw_images_per_second_recent [\d.e+]+$", pages[-1], re.MULTILINE)
    assert re.search(r'^erw_gpu_hours\{part="(warmup|full)"\} ', pages[-1], re.MULTILINE)


def test_no_file_of_a_run_and_no_line_holds_a_token(watched):
    out, done, pages = watched
    files = [path for path in out.rglob("*") if path.is_file()]
    assert any("wandb" in str(path) for path in files) and any(path.suffix == ".safetensors" for path in files)
    for token in TOKENS.values():
        assert not [str(path) for path in files if token.encode() in path.read_bytes()]
        assert token not in done.stdout + done.stderr + "".join(pages)


def test_doctor_on_two_ranks(run_erw, tmp_path):
    done = run_erw("doctor", "--out", tmp_path / "run", ranks=2, program="-m erw.cli")
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^ok +ranks +2 ranks on 1 machine", done.stdout, re.MULTILINE)
    assert re.search(r"^ok +gloo +all-reduce of 32 MiB [\d.]+ GB/s", done.stdout, re.MULTILINE)
    assert done.stdout.count("versions") == 1  # one rank speaks for what is alike
