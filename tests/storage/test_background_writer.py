import json
import threading

import pytest

from fl_lightning.storage.background_writer import MAX_QUEUED, BackgroundWriter


def test_writes_happen_in_order_and_are_done_after_a_flush():
    done, writer = [], BackgroundWriter()
    for number in range(50):
        writer.submit(lambda n=number: done.append(n))
    writer.flush()
    assert done == list(range(50))
    writer.close()


def test_writes_happen_beside_the_caller():
    go, writer, done = threading.Event(), BackgroundWriter(), []
    writer.submit(lambda: done.append(go.wait(10)))
    assert done == []  # a caller that had to wait would find False
    go.set()
    writer.close()
    assert done == [True]


def test_writer_knows_how_long_it_was_busy_and_was_waited_for():
    go, writer = threading.Event(), BackgroundWriter()
    writer.submit(lambda: go.wait(10))
    threading.Timer(0.2, go.set).start()
    writer.flush()
    assert 0.1 < writer.busy < 10
    assert 0.1 < writer.waited < 10
    writer.submit(lambda: None)
    writer.flush()
    assert writer.busy < 10
    writer.close()


def test_queue_is_bounded():
    go, writer, put = threading.Event(), BackgroundWriter(), []

    def ask():
        for number in range(MAX_QUEUED + 5):
            writer.submit(lambda: go.wait(10))
            put.append(number)

    asking = threading.Thread(target=ask)
    asking.start()
    asking.join(0.3)
    assert asking.is_alive()
    assert len(put) in (MAX_QUEUED, MAX_QUEUED + 1)  # the first may be at work already
    go.set()
    asking.join()
    writer.close()
    assert len(put) == MAX_QUEUED + 5


def test_an_error_surfaces_everywhere_and_nothing_is_written_after_it():
    writer, done = BackgroundWriter(), []

    def fail():
        raise OSError(28, "No space left on device")

    writer.submit(fail)
    writer._queue.join()
    for ask in (lambda: writer.submit(lambda: done.append(1)), writer.flush, writer.close):
        with pytest.raises(OSError, match="No space left"):
            ask()
    assert done == []
    writer.submit(lambda: done.append(2))
    writer.close()
    assert done == [2]


def test_json_is_of_the_value_as_it_was(tmp_path):
    go, value, writer = threading.Event(), {"a": [1]}, BackgroundWriter()
    writer.submit(lambda: go.wait(10))
    writer.json(tmp_path / "x.json", value)
    value["a"].append(2)
    go.set()
    writer.close()
    assert json.loads((tmp_path / "x.json").read_text()) == {"a": [1]}


def test_closing_twice_or_unused_is_fine():
    writer = BackgroundWriter()
    writer.close()
    writer.submit(lambda: None)
    writer.close()
    writer.close()
    assert writer._thread is None
