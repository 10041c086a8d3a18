"""Tests for the ruler of sleeves, on garments that are drawn to measure."""

import pytest
import torch

from ddpmlab.metrics import sleeves

LENGTHS = (0.25, 0.5, 0.75, 1.0)


def garment(left, right=None, brightness=0.6, torso=(8, 20), top=2, bottom=26, gap=True):
    """A top of 24 rows: a torso, and sleeves of 4 columns beside it that end after these shares of the height."""
    right = left if right is None else right
    picture = torch.zeros(28, 28)
    picture[top:bottom, torso[0] : torso[1]] = brightness
    for length, columns in ((left, slice(3, 7)), (right, slice(21, 25))):
        picture[top : top + round(length * (bottom - top)), columns] = brightness
    if not gap:
        picture[:, 7] = picture[:, 6]
        picture[:, 20] = picture[:, 21]
    return picture


@pytest.mark.parametrize("brightness", [0.15, 0.5, 1.0])
def test_length_of_drawn_sleeves(brightness):
    pictures = torch.stack([garment(length, brightness=brightness) for length in LENGTHS])
    torch.testing.assert_close(sleeves.sleeve_length(pictures), torch.tensor(LENGTHS))


def test_sides_are_read_apart_and_swapped_by_a_mirror():
    picture = garment(0.25, 0.75)[None]
    torch.testing.assert_close(sleeves.sleeve_lengths(picture), torch.tensor([[0.25, 0.75]]))
    torch.testing.assert_close(sleeves.sleeve_lengths(picture.flip(2)), torch.tensor([[0.75, 0.25]]))
    torch.testing.assert_close(sleeves.sleeve_length(picture), torch.tensor([0.5]))


def test_a_wide_torso_below_short_sleeves_is_no_sleeve():
    """The torso reaches into the outer six columns; the silhouette that narrows tells it from a sleeve."""
    assert float(sleeves.sleeve_length(garment(0.25, torso=(5, 23))[None])) == pytest.approx(0.25)


def test_no_sleeves_and_an_empty_picture_read_zero():
    pictures = torch.stack([garment(0.0), torch.zeros(28, 28)])
    assert sleeves.sleeve_lengths(pictures).tolist() == [[0.0, 0.0], [0.0, 0.0]]


def test_bytes_and_channels_are_the_same_picture():
    picture = (garment(0.5) * 255).round()[None]
    expected = sleeves.sleeve_length(picture / 255)
    assert sleeves.sleeve_length(picture.to(torch.uint8)) == expected
    assert sleeves.sleeve_length((picture / 255)[:, None]) == expected


@pytest.mark.parametrize(
    ("pictures", "words"),
    [
        (torch.zeros(2, 27, 28), r"\(2, 27, 28\).*need \(n, 28, 28\)"),
        (torch.full((1, 28, 28), float("nan")), "NaN"),
        (torch.full((1, 28, 28), -1.0), r"span \[-1, -1\].*to_own_units"),
    ],
)
def test_bad_pictures_are_refused(pictures, words):
    with pytest.raises(ValueError, match=words):
        sleeves.sleeve_length(pictures)


def test_ghost_index_of_opaque_and_of_averaged_sleeves():
    short, long = garment(0.25)[None], garment(1.0)[None]
    torch.testing.assert_close(sleeves.ghost_index(long), torch.ones(1))
    torch.testing.assert_close(sleeves.ghost_index(short), torch.ones(1))
    torch.testing.assert_close(sleeves.ghost_index(0.6 * short + 0.4 * long), torch.tensor([0.4]))
    assert sleeves.ghost_index(garment(0.0)[None]).isnan().all()


def test_torso_distance_sees_the_torso_alone():
    short, long = garment(0.25)[None], garment(1.0)[None]
    assert float(sleeves.torso_distance(short, long)) == 0
    assert float(sleeves.torso_distance(short, garment(0.25, brightness=0.5)[None])) > 0.05


@pytest.mark.parametrize("length", [0.25, 0.5, 0.75, 1.0])
def test_cut_is_read_back_and_regrow_is_cut_of_a_full_sleeve(length):
    long, short = garment(1.0)[None], garment(0.25, brightness=0.3)[None]
    torch.testing.assert_close(sleeves.sleeve_length(sleeves.cut(long, length)), torch.tensor([length]))
    grown = sleeves.regrow(short, long, length)
    torch.testing.assert_close(sleeves.sleeve_length(grown), torch.tensor([length]))
    torch.testing.assert_close(grown, garment(length, brightness=0.3)[None])


def test_a_row_that_is_cut_through_keeps_its_share():
    long = garment(1.0)[None]
    row = 2 + 12  # half of 24 rows
    cut = sleeves.cut(long, 0.5 + 0.25 / 24)
    torch.testing.assert_close(cut[0, row - 1 : row + 2, 5], torch.tensor([0.6, 0.15, 0.0]))
    torch.testing.assert_close(cut[0, :, 8:20], long[0, :, 8:20])


def test_sides_can_be_cut_apart():
    cut = sleeves.cut(garment(1.0)[None], torch.tensor([[0.25, 0.5]]))
    torch.testing.assert_close(sleeves.sleeve_lengths(cut), torch.tensor([[0.25, 0.5]]))
    with pytest.raises(ValueError, match=r"span \[1.5, 1.5\]; need 0 to 1"):
        sleeves.cut(garment(1.0)[None], 1.5)


def test_ladder_bases_need_full_sleeves_and_a_gap():
    pictures = torch.stack([garment(1.0), garment(0.75), garment(1.0, gap=False)])
    assert sleeves.ladder_bases(pictures).tolist() == [True, False, False]


def test_withheld_mask_takes_tops_between_half_and_full():
    pictures = torch.stack([garment(length) for length in (0.25, 0.5, 0.75, 1.0, 0.75)])
    labels = torch.tensor([0, 2, 6, 2, 1])  # the last is no top
    assert sleeves.withheld_mask(pictures, labels).tolist() == [False, True, True, False, False]
    with pytest.raises(ValueError, match="5 pictures and 2 labels"):
        sleeves.withheld_mask(pictures, labels[:2])


def test_committed_ruler_reads_drawn_sleeves_in_order_and_has_a_gradient():
    ruler = sleeves.load_ruler()
    ladder = torch.stack([garment(length) for length in LENGTHS])
    readings = ruler(ladder)
    assert (readings.diff() > 0.1).all()
    assert (readings - torch.tensor(LENGTHS)).abs().max() < 0.12
    torch.testing.assert_close(ruler(ladder.flip(2)), readings)
    torch.testing.assert_close(ruler(ladder / 2), readings, atol=1e-4, rtol=0)  # relative to its own brightness
    picture = ladder[2:3].clone().requires_grad_()
    ruler(picture).sum().backward()
    below = picture.grad[0, 20:26]
    assert float(below[:, 3:7].abs().mean()) > 3 * float(below[:, 10:18].abs().mean())  # it looks at sleeves


def test_fit_ruler_learns_a_ladder_and_is_saved(tmp_path):
    long, short = garment(1.0)[None], garment(0.25)[None]
    options = {"n_steps": 120, "batch_size": 32, "learning_rate": 5e-3, "width": 4}
    ruler, again = (sleeves.fit_ruler(long, short, **options, seed=0) for _ in range(2))
    readings = sleeves.ladder_readings(ruler, long)
    torch.testing.assert_close(sleeves.ladder_readings(again, long), readings, rtol=0, atol=0)
    assert (readings - torch.tensor(sleeves.LADDER)).abs().max() < 0.15
    sleeves.save_ruler(ruler, tmp_path / "ruler.safetensors")
    loaded = sleeves.load_ruler(tmp_path / "ruler.safetensors")
    torch.testing.assert_close(sleeves.ladder_readings(loaded, long), readings, rtol=0, atol=0)
