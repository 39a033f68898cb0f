import multiprocessing
import os
import signal
import threading

import pytest

from fl_lightning.errors import InputError
from fl_lightning.storage.run_folder import create_run_folder, find_run_folder, is_locked, locked, warn_low_disk

CONFIG = "seed: 1\n"


def test_run_folders_count_from_zero(tmp_path):
    root = tmp_path / "logs"
    assert [create_run_folder(root, CONFIG).name for _ in range(3)] == ["version_0", "version_1", "version_2"]


def test_run_folder_is_one_above_the_highest_not_the_first_gap(tmp_path):
    for name in ("version_2", "version_10", "version_x", "other_99", "version_11_old"):
        (tmp_path / name).mkdir()
    assert create_run_folder(tmp_path, CONFIG).name == "version_11"


def test_a_file_called_version_n_is_not_overwritten(tmp_path):
    (tmp_path / "version_0").write_text("a file")
    assert create_run_folder(tmp_path, CONFIG).name == "version_1"


def test_parallel_runs_get_folders_of_their_own(tmp_path):
    folders = []
    threads = [
        threading.Thread(target=lambda: folders.append(create_run_folder(tmp_path, CONFIG).name)) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(folders) == [f"version_{i}" for i in range(8)]


def test_an_output_that_is_a_file_is_bad_input(tmp_path):
    (tmp_path / "logs").write_text("a file")
    with pytest.raises(InputError, match="output: cannot create a folder in .*logs"):
        create_run_folder(tmp_path / "logs", CONFIG)


def make_run(root, name):
    (root / name).mkdir(parents=True)
    (root / name / "config.yaml").write_text("seed: 1\n")
    return root / name


def test_last_is_the_highest_number_not_the_last_in_the_alphabet(tmp_path):
    for name in ("version_2", "version_10", "version_9"):
        make_run(tmp_path, name)
    (tmp_path / "version_99").write_text("a file")
    assert find_run_folder("last", tmp_path) == tmp_path / "version_10"


def test_last_without_runs_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="run 'last': no version_N folder in .*run 'fit' first"):
        find_run_folder("last", tmp_path)


def test_a_run_is_found_by_path_and_by_name_under_the_root(tmp_path):
    folder = make_run(tmp_path, "version_3")
    assert find_run_folder(str(folder), tmp_path / "elsewhere") == folder
    assert find_run_folder("version_3", tmp_path) == folder


def test_a_folder_without_config_is_not_a_run(tmp_path):
    (tmp_path / "version_0").mkdir()
    with pytest.raises(InputError, match="no config.yaml in it; expected a run folder"):
        find_run_folder(str(tmp_path / "version_0"), tmp_path)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002], ids=oct)
def test_a_run_folder_has_its_config_from_the_first_moment_and_nothing_is_left_beside_it(tmp_path, umask, request):
    before = os.umask(umask)
    request.addfinalizer(lambda: os.umask(before))
    folder = create_run_folder(tmp_path, CONFIG)
    assert (folder / "config.yaml").read_text() == CONFIG
    assert os.listdir(tmp_path) == ["version_0"]
    assert folder.stat().st_mode & 0o777 == 0o777 & ~umask


def test_last_passes_over_a_folder_whose_run_was_killed_before_it_had_a_config(tmp_path):
    folder = make_run(tmp_path, "version_0")
    (tmp_path / "version_1").mkdir()
    assert find_run_folder("last", tmp_path) == folder


def test_a_locked_folder_is_refused_with_the_number_of_the_process_and_free_afterwards(tmp_path):
    with locked(tmp_path), pytest.raises(InputError, match=f"process {os.getpid()}"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass


def _lock(folder, started):
    with locked(folder):
        started.set()
        signal.pause()


def test_the_lock_ends_with_the_process(tmp_path):
    context = multiprocessing.get_context("spawn")
    started = context.Event()
    process = context.Process(target=_lock, args=(tmp_path, started))
    process.start()
    assert started.wait(60)
    with pytest.raises(InputError, match=f"process {process.pid}"), locked(tmp_path):
        pass
    process.kill()
    process.join()
    with locked(tmp_path):
        pass


def test_a_full_disk_is_foretold(tmp_path, log_messages):
    warn_low_disk(tmp_path, 10)
    assert log_messages == []
    warn_low_disk(tmp_path, 2**60)
    assert len(log_messages) == 1
    assert "a run writes about 1073741824.0 GiB" in log_messages[0]
    assert "retention.client_exports" in log_messages[0]


def test_a_locked_folder_is_known_to_be_locked(tmp_path):
    assert not is_locked(tmp_path)
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path):
        assert is_locked(tmp_path)
        with pytest.raises(InputError, match="another process is writing to it"), locked(tmp_path):
            pass
    assert not is_locked(tmp_path)
