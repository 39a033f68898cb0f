from fl_lightning.storage import run_layout as layout


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def test_files_are_found_by_the_names_they_are_written_under_in_the_order_of_rounds(tmp_path):
    rounds = (10, 2, 1)
    touch(tmp_path, *(layout.cluster_file(r, "similarity") for r in rounds), layout.cluster_file(3, "aggregation"))
    touch(tmp_path, *(f"{layout.checkpoint(r)}/{layout.CHECKPOINT_FACTS}" for r in rounds))
    touch(tmp_path / layout.CHECKPOINTS, *(f"{layout.journal(r)}/entry" for r in rounds))
    checkpoints = tmp_path / layout.CHECKPOINTS
    assert list(layout.cluster_files(tmp_path, "similarity")) == [1, 2, 10]
    assert layout.cluster_files(tmp_path, "aggregation") == {3: tmp_path / "cluster_metadata/round_3_aggregation.json"}
    assert layout.round_folders(checkpoints) == {r: checkpoints / f"round_{r}" for r in sorted(rounds)}
    assert layout.journals(checkpoints) == {r: checkpoints / f"round_{r}_journal" for r in sorted(rounds)}


def test_other_names_are_no_rounds(tmp_path):
    touch(
        tmp_path,
        *(f"checkpoints/{name}/x" for name in ("round_x", "round_", "round_1_old", "round_²", "round_" + "9" * 10)),
    )
    assert layout.round_folders(tmp_path / layout.CHECKPOINTS) == {}
    assert layout.round_folders(tmp_path / "nowhere") == {}


def test_an_export_is_parsed_back_to_what_it_was_named_after():
    folder = layout.client_export("hr", "round_1_x", 12)
    assert folder == "client_exports/hr/round_12_round_1_x"
    assert layout.parse_client_export(folder.rsplit("/", 1)[1]) == (12, "round_1_x")
