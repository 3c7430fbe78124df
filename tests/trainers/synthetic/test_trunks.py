"""What is added to a label map of organs before it is painted."""

import numpy as np

from satunet.trainers.synthetic import trunks


def organs() -> np.ndarray:
    """(80, 80, 20) ids at 3 mm in RAS: liver 1 on the right and in the upper half, aorta 2 near the middle."""
    ids = np.zeros((80, 80, 20), np.int64)
    ids[46:66, 36:60, 4:16] = 1
    ids[36:42, 44:50, :] = 2
    return ids


def test_the_spine_lies_behind_the_aorta_and_covers_no_organ():
    ids = organs()
    found = trunks.add_spine(ids, (2,), (3.0, 3.0, 3.0))
    assert (found[ids > 0] == ids[ids > 0]).all()
    bone = np.argwhere(found == trunks.BONE)
    canal = np.argwhere(found == trunks.CANAL)
    assert bone[:, 1].max() < 46
    assert abs(bone[:, 0].mean() - 38.5) < 3
    assert canal[:, 1].mean() < 44 - 10


def test_lungs_lie_above_the_liver_and_cover_no_organ():
    ids = organs()
    hull = trunks.hull_of_slices(ids > 0, (3.0, 3.0, 3.0))
    found = trunks.add_lungs(ids, 1, hull, (3.0, 3.0, 3.0))
    assert (found[ids > 0] == ids[ids > 0]).all()
    air = np.argwhere(found == trunks.AIR)
    assert len(air)
    assert air[:, 2].min() >= 3


def test_depth_is_zero_in_the_hull_and_grows_in_millimetres():
    ids = organs()
    hull = trunks.hull_of_slices(ids > 0, (3.0, 3.0, 3.0))
    assert hull[ids > 0].all()
    depth = trunks.depth_outside(hull, (3.0, 3.0, 3.0))
    assert (depth[hull] == 0).all()
    edge = int(np.flatnonzero(hull[:, 47, 10]).max())
    assert [int(d) for d in depth[edge + 1 : edge + 4, 47, 10]] == [3, 6, 9]


def test_a_map_without_vessels_or_liver_stays_as_it_is():
    nothing = np.zeros((5, 5, 5), np.int64)
    assert (trunks.add_spine(nothing, (2,), (3.0, 3.0, 3.0)) == 0).all()
    assert (trunks.add_lungs(nothing, 1, nothing > 0, (3.0, 3.0, 3.0)) == 0).all()


def test_a_sheet_lies_between_two_structures_at_its_distances():
    ids = np.full((40, 20, 20), 5, np.int64)
    ids[:10], ids[16:18], ids[30:] = 1, 2, 3  # one, and another far from it
    found = trunks.between(ids, 5, 1, 2, (1.0, 1.0, 1.0))
    # The last voxel of the one is 9: those at 2 and 3 mm, at most 5 mm from 16.
    assert sorted(set(np.argwhere(found)[:, 0].tolist())) == [11, 12]
    assert not trunks.between(ids, 5, 1, 3, (1.0, 1.0, 1.0)).any()
    assert not trunks.between(ids, 5, 9, 2, (1.0, 1.0, 1.0)).any()
    assert sorted(set(np.argwhere(trunks.between(ids, 5, 1, 2, (0.5, 1.0, 1.0)))[:, 0].tolist())) == [12, 13, 14, 15]
