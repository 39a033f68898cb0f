import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fl_lightning.report.adapter_map import adapter_map
from fl_lightning.report.embedding import map_adapters, principal_components, read_initial_a
from fl_lightning.runs.artifact_reader import read_artifacts

TWO = {"finance": ["a", "b"], "hr": ["c"]}
A, B = "layer.lora_A.weight", "layer.lora_B.weight"


def test_components_keep_distances_in_a_plane():
    corners = np.array([[0, 0, 7], [2, 0, 7], [2, 1, 7], [0, 1, 7]], dtype=float)
    points, shares = principal_components(corners @ corners.T)
    assert shares == pytest.approx((0.8, 0.2))  # variances 4·1² and 4·0.5²
    for i in range(4):
        for j in range(4):
            assert np.linalg.norm(points[i] - points[j]) == pytest.approx(
                np.linalg.norm(corners[i] - corners[j]), abs=1e-5
            )


def test_equal_rows_lie_in_one_point():
    points, shares = principal_components(np.ones((3, 3)))
    assert (points == 0).all()
    assert shares == (0.0, 0.0)


def test_departments_and_newest_clients_are_placed(make_run):
    folder = make_run(TWO, rounds=2)
    old = folder / "client_exports" / "hr" / "round_1_c"
    old.mkdir()
    save_file({A: torch.full((1, 8), 99.0)}, old / "adapter_model.safetensors")
    found = map_adapters(folder)
    assert found.representation == "delta"
    assert found.notes == []
    who = [(p.department, p.client) for p in found.points]
    assert who == [("finance", ""), ("hr", ""), ("finance", "a"), ("finance", "b"), ("hr", "c")]
    assert max(abs(p.x) for p in found.points) < 2  # directions have length one, so 99 would not be that far either
    assert found.points[1].x == pytest.approx(found.points[4].x, abs=0.5)


def test_length_of_a_move_does_not_matter_where_the_start_is_known(make_run):
    folder = make_run(TWO, rounds=1)
    before = map_adapters(folder)
    path = folder / "adapters" / "hr" / "adapter_model.safetensors"
    tensors, start = load_file(path), read_initial_a(folder)[A]
    save_file({**tensors, A: start + 10 * (tensors[A] - start)}, path)
    after = map_adapters(folder)
    for own, other in zip(before.points, after.points, strict=True):
        assert (own.x, own.y) == pytest.approx((other.x, other.y), abs=1e-3)


def test_without_checkpoint_a_itself_is_mapped_and_said(make_run):
    folder = make_run(TWO, rounds=1)
    (folder / "checkpoints" / "round_1" / "state.safetensors").write_bytes(b"torn")
    assert map_adapters(folder).representation == "a"
    assert any("A₀ is unknown" in line for line in adapter_map(read_artifacts(folder)).missing)


def test_links_and_torn_files_are_left_off(make_run, tmp_path):
    folder = make_run(TWO, rounds=1)
    (folder / "client_exports" / "hr" / "round_1_c" / "adapter_model.safetensors").write_bytes(b"torn")
    outside = tmp_path / "outside"
    outside.mkdir()
    save_file({A: torch.ones(1, 8)}, outside / "adapter_model.safetensors")
    (folder / "adapters" / "strange").symlink_to(outside)
    found = map_adapters(folder)
    who = {(p.department, p.client) for p in found.points}
    assert who == {("finance", ""), ("hr", ""), ("finance", "a"), ("finance", "b")}
    assert [note.split(":")[0] for note in found.notes] == ["hr/c is not on the map"]


def test_several_ranks_are_compared_by_their_products(make_run):
    folder = make_run({"one": [], "three": [], "two": []}, rounds=1)
    a, b = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0], [-1.0]])
    other = torch.tensor([[2.0, -1.0]])  # at right angles to a
    factors = {"one": (a, b), "two": (torch.cat([a, a]), torch.cat([b, 2 * b], 1)), "three": (other, b)}
    for name, (down, up) in factors.items():
        save_file({A: down, B: up}, folder / "adapters" / name / "adapter_model.safetensors")
    found = map_adapters(folder)
    assert found.representation == "product"
    places = {p.department: np.array([p.x, p.y]) for p in found.points}
    assert places["one"] == pytest.approx(places["two"], abs=1e-6)  # three times the same update
    assert np.linalg.norm(places["one"] - places["three"]) == pytest.approx(2**0.5)
    assert "B A of each adapter" in adapter_map(read_artifacts(folder)).text[0]


def test_frozen_a_is_passed_over_for_the_products(make_run):
    folder = make_run({"finance": [], "hr": []}, rounds=1)
    start = read_initial_a(folder)
    for name, up in (("finance", [[1.0], [0.0]]), ("hr", [[0.0], [1.0]])):
        save_file({**start, B: torch.tensor(up)}, folder / "adapters" / name / "adapter_model.safetensors")
    found = map_adapters(folder)
    assert found.representation == "product"
    assert [(p.x, p.y) for p in found.points] == [pytest.approx((-(0.5**0.5), 0)), pytest.approx((0.5**0.5, 0))]


def test_adapters_that_are_alike_make_no_map(make_run):
    folder = make_run({"finance": [], "hr": []}, rounds=1)
    for name in ("finance", "hr"):
        save_file(
            {**read_initial_a(folder), B: torch.ones(2, 1)}, folder / "adapters" / name / "adapter_model.safetensors"
        )
    assert map_adapters(folder).notes == ["No map: all adapters are equal."]


def test_fewer_than_two_adapters_make_no_map(make_run):
    folder = make_run({"hr": []}, rounds=1)
    assert map_adapters(folder).points == []
    assert any(line.startswith("No map: there are fewer") for line in adapter_map(read_artifacts(folder)).missing)
