"""Runs that die anywhere and are resumed: the same bytes as a run that was left alone.

Processes are forked from one that has done the imports. A life ends by SIGKILL just before its n-th call that changes
the disk, so every step of every write is a place to die at; `benchmarks/systems/chaos.py` kills at random moments.
"""

import contextlib
import ctypes
import errno
import gc
import os
import random
import resource
import signal
import sys
from pathlib import Path

import pytest

from benchmarks.systems import chaos, equal_runs
from fl_lightning.cli import main

CALLS = ("fsync", "replace", "mkdir", "unlink", "rmdir", "truncate")
SMALL = "--clients-per-dept 2 --learning-rate 5e-3 --device-map cpu --retention.client_exports=1 --logging.samples 1"

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("forked")]


@pytest.fixture(scope="module")
def small(cut_departments, micro_base, tmp_path_factory):
    """Arguments of a run on four bundled departments, two clients each, 4 training and 2 held-out records."""
    data = cut_departments(tmp_path_factory.mktemp("departments"), 2, 4, 2)
    return ["fit", *SMALL.split(), "--model.name_or_path", micro_base, "--data", str(data)]


def interfere(arguments, log, call, *, trouble):
    """A life in whose `call`-th change of the disk something happens; ends with the command's exit code."""
    count = 0

    def watched(change):
        def instead(*args, **kwargs):
            nonlocal count
            count += 1
            if count == call and trouble == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if trouble == "full disk" and count >= call and change is not rmdir and change is not unlink:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(args[0]))
            return change(*args, **kwargs)

        return instead

    rmdir, unlink = os.rmdir, os.unlink
    for name in CALLS:
        setattr(os, name, watched(getattr(os, name)))
    chaos.live(arguments, 1, log)


def plain(arguments, log):
    """A life in peace."""
    chaos.live(arguments, 1, log)


@pytest.fixture
def life(tmp_path):
    """Function that lives one life and gives its exit code; -9 where it was killed. `life.log` is what they print."""
    context = chaos.lives()

    def lives(target, *args, **kwargs):
        process = context.Process(target=target, args=args, kwargs=kwargs)
        process.start()
        process.join(400)
        assert process.exitcode is not None, "hangs"
        return process.exitcode

    lives.log = str(tmp_path / "log")
    return lives


@pytest.fixture(scope="module")
def straight(small, tmp_path_factory):
    """Function: the results of a run by its options that nothing happens to."""
    known = {}

    def results(*options):
        if options not in known:
            output = tmp_path_factory.mktemp("straight")
            assert main([*small, "--output", str(output), *options]) == 0
            known[options] = equal_runs.results(output / "version_0")
        return known[options]

    return results


NOISE_IN_SHARES = (
    *("--rounds", "2", "--num-clusters", "1", "--federation.secure_aggregation=true", "--federation.guard.name=dp"),
    *("--federation.weighting=uniform", "--federation.masking.min_clients=2", "--federation.privacy.noise_seed=5"),
    "--retention.client_exports=0",
)


@pytest.mark.parametrize("options", [("--rounds", "2"), ("--rounds", "2", "--federation.share=a"), NOISE_IN_SHARES])
def test_a_run_that_is_killed_at_every_turn_ends_with_the_same_bytes(small, straight, life, tmp_path, options):
    draw, kills, code = random.Random(1), 0, -9
    folder = tmp_path / "out" / "version_0"
    while code != 0:
        resume = ["--resume", "last"] if (folder / "config.yaml").exists() else []
        argv = [*small, "--output", str(tmp_path / "out"), *options, *resume]
        call = draw.randint(1, 150 if kills < 4 else 400)  # a round changes the disk about 220 times
        code = life(interfere, argv, life.log, call, trouble="kill")
        assert code in (0, -9), Path(life.log).read_text()
        kills += code == -9
        equal_runs.check_whole(folder)
        assert kills < 40, "gets nowhere"
    assert kills >= 4
    assert equal_runs.differences(straight(*options), equal_runs.results(folder)) == []
    assert [p.name for p in folder.rglob(".*")] == [".lock"]
    assert list(folder.glob("checkpoints/*journal")) == []


def one_line(log):
    """The only line that says how the last life ended."""
    text = Path(log).read_text()
    assert "Traceback" not in text, text
    (line,) = [line for line in text.splitlines() if line.startswith(("failed: ", "error: "))]
    return line


@pytest.mark.parametrize("call", [4, 30, 100, 170])
def test_a_disk_that_fills_up_is_one_line_and_the_run_resumes(small, straight, life, tmp_path, call):
    argv = [*small, "--output", str(tmp_path / "out"), "--rounds", "2"]
    code = life(interfere, argv, life.log, call, trouble="full disk")
    line = one_line(life.log)
    folder = tmp_path / "out" / "version_0"
    assert "No space left on device" in line
    if not folder.exists():
        assert (code, call) == (2, 4)
        return
    assert code == 1
    assert f"fl-lightning fit --resume {folder}" in line
    equal_runs.check_whole(folder)
    assert main([*argv, "--resume", "last"]) == 0
    assert equal_runs.differences(straight("--rounds", "2"), equal_runs.results(folder)) == []


def limited(arguments, log, size):
    """A life in which no file may grow beyond `size` bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    chaos.live(arguments, 1, log)


def test_a_limit_on_the_size_of_files_is_one_line_and_the_run_resumes(small, straight, life, tmp_path):
    argv = [*small, "--output", str(tmp_path / "out"), "--rounds", "2"]
    assert life(limited, argv, life.log, 60_000) == 1  # a journal entry has more, an adapter less
    assert "File too large" in one_line(life.log)
    folder = tmp_path / "out" / "version_0"
    equal_runs.check_whole(folder)
    assert main([*argv, "--resume", "last"]) == 0
    assert equal_runs.differences(straight("--rounds", "2"), equal_runs.results(folder)) == []


def test_an_output_that_may_not_be_written_is_bad_input_and_a_run_in_it_stays(small, life, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    output.chmod(0o555)
    argv = [*small, "--output", str(output), "--rounds", "1"]
    try:
        code = life(as_nobody, argv, life.log)
    finally:
        output.chmod(0o755)
    assert code == 2
    assert "is not writable" in Path(life.log).read_text()
    assert list(output.iterdir()) == []


def as_nobody(arguments, log):
    """A life without root's rights, which has imported all that it needs: root's files may be closed to it."""
    assert main(["fit", "--data", "/nowhere", "--output", str(Path(log).parent / "other")]) == 2
    Path(log).touch()
    Path(log).chmod(0o666)
    for folder in (Path(log).parent, *Path(log).parent.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    chaos.live(arguments, 1, log)


def test_a_run_can_be_resumed_by_one_process_at_a_time(small, life, tmp_path):
    from fl_lightning.storage.run_folder import locked

    argv = [*small, "--output", str(tmp_path / "out"), "--rounds", "1"]
    assert main(argv) == 0
    with locked(tmp_path / "out" / "version_0"):
        assert life(plain, [*argv, "--resume", "last"], life.log) == 2
    assert f"another process is writing to it (process {os.getpid()})" in one_line(life.log)


def rss_of_rounds(arguments, log, path):
    """A life that notes its resident memory after each round."""
    from fl_lightning.callbacks import memory_monitor

    plain = memory_monitor.MemoryMonitor.on_round_end

    def noting(self, *, trainer):
        plain(self, trainer=trainer)
        trainer.writer.flush()
        gc.collect()
        with contextlib.suppress(OSError, AttributeError):  # glibc alone: what is free goes back and is not counted
            ctypes.CDLL("libc.so.6").malloc_trim(0)
        with open(path, "a") as file:
            file.write(f"{memory_monitor.resident_mib()}\n")

    memory_monitor.MemoryMonitor.on_round_end = noting
    chaos.live(arguments, 1, log)


def test_thirty_rounds_need_no_more_memory_than_ten(small, life, tmp_path):
    argv = [*small, "--output", str(tmp_path / "out"), "--rounds", "30"]
    argv += ["--max-records", "2"]
    assert life(rss_of_rounds, argv, life.log, tmp_path / "rss") == 0
    rss = [float(line) for line in (tmp_path / "rss").read_text().split()]
    assert len(rss) == 30
    early, late = sorted(rss[5:10])[2], sorted(rss[25:])[2]
    assert late < 1.01 * early, rss


if sys.platform == "darwin":
    pytest.skip("fork after Objective-C initialisation is not safe", allow_module_level=True)
