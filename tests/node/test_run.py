"""What a node does to its own process when it is ready."""

import gc

from mycelia.node.run import spare_collections


def test_what_a_node_starts_with_is_left_out_of_collections() -> None:
    before = gc.get_threshold()
    gc.unfreeze()
    # another test of this process may have raised it already, by running a node
    gc.set_threshold(700, 10, 10)
    try:
        spare_collections()
        assert len(gc.get_objects()) < 1_000 < gc.get_freeze_count()
        assert gc.get_threshold()[0] > 700
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
