"""Images of any number of channels are shown in colours that are said, all of a sheet alike."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unmask.report.false_colour import FalseColour
from unmask.report.figures import reconstruction_sheet
from unmask.report.pixels import shown

STRETCHED = "is stretched from its 1st to its 99th percentile, without which the pictures would be nearly black."


def noise(channels: int, *, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.rand(4, channels, 12, 10, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_rgb_that_are_bright_are_shown_as_they_are(channels: int) -> None:
    images = noise(channels)
    colours = FalseColour.of(images)
    assert torch.equal(colours(images), images.expand(-1, 3, -1, -1))
    assert colours.sentence == ""
    assert colours.captioned("What it is.") == "What it is."


def test_two_channels_are_green_and_magenta_and_grey_where_they_are_equal() -> None:
    images = noise(2)
    colours = FalseColour.of(images)
    assert torch.equal(colours(images), images[:, [1, 0, 1]])
    assert colours.sentence == "Channel 1 of 2 is shown in green, channel 2 in magenta."


@pytest.mark.parametrize(
    ("channels", "chosen", "places", "sentence"),
    [
        (5, None, [0, 1, 2], "Channels 1, 2 and 3 of 5 are shown as red, green and blue."),
        (13, (3, 2, 1), [3, 2, 1], "Channels 4, 3 and 2 of 13 are shown as red, green and blue."),
        (13, (12,), [12, 12, 12], "Shown is channel 13 of 13."),
        (5, (4, 3), [3, 4, 3], "Channel 5 of 5 is shown in green, channel 4 in magenta."),
        (3, (2, 1, 0), [2, 1, 0], "Channels 3, 2 and 1 of 3 are shown as red, green and blue."),
    ],
)
def test_many_channels_are_chosen_and_named(
    channels: int, chosen: tuple[int, ...] | None, places: list[int], sentence: str
) -> None:
    images = noise(channels)
    colours = FalseColour.of(images, chosen)
    assert torch.equal(colours(images), images[:, places])
    assert colours.sentence == sentence


def test_dark_channels_are_stretched_each_by_itself() -> None:
    images = noise(4) * torch.tensor([0.1, 0.02, 1.0, 1.0])[:, None, None]
    colours = FalseColour.of(images)
    seen = colours(images)
    for channel in range(3):
        assert (seen[:, channel] == 0).float().mean() == pytest.approx(0.01, abs=0.01)
        assert seen[:, channel].mean() == pytest.approx(0.5, abs=0.05)
    assert colours.sentence.endswith(f" Each of them {STRETCHED}")
    # What belongs to the images, a reconstruction, is shown by the same stretch.
    low, high = colours.low_S[0], colours.high_S[0]
    middle = torch.full((4, 4, 4), (low + high) / 2)
    torch.testing.assert_close(colours(middle)[0], torch.full((4, 4), 0.5))


def test_dark_rgb_keeps_its_hue() -> None:
    images = noise(3, scale=0.1) * torch.tensor([1.0, 0.5, 0.25])[:, None, None]
    colours = FalseColour.of(images)
    assert len(set(colours.low_S)) == len(set(colours.high_S)) == 1
    assert colours(images).amax(dim=(0, 2, 3)).diff().max() < -0.1
    assert colours.sentence == f"Brightness {STRETCHED}"


def test_images_that_show_nothing_stay_black() -> None:
    for channels in (1, 2, 3, 7):
        colours = FalseColour.of(torch.zeros(2, channels, 4, 4))
        assert not colours(torch.zeros(2, channels, 4, 4)).any()


def test_images_may_differ_in_size() -> None:
    images = [torch.rand(5, 4, 6), torch.rand(5, 9, 3)]
    colours = FalseColour.of(images)
    assert [colours(image).shape for image in images] == [(3, 4, 6), (3, 9, 3)]


@pytest.mark.parametrize(
    ("chosen", "asked"), [((), "none"), ((5,), "6"), ((-1,), "0"), ((0, 1, 2, 3), "1 2 3 4"), ((0, 9), "1 10")]
)
def test_channels_that_are_not_there_are_refused(chosen: tuple[int, ...], asked: str) -> None:
    with pytest.raises(ValueError, match=rf"^pictures show one to three of the channels 1 to 5, not {asked}$"):
        FalseColour.of(noise(5), chosen)


def test_a_sheet_shows_a_reconstruction_as_its_original_and_hidden_patches_in_grey() -> None:
    images = noise(5, scale=0.05)
    mask = torch.tensor([[True, False, False, False]]).expand(4, -1)
    sheet = reconstruction_sheet(images, images, mask, (2, 2))
    for original, masked, reconstructed, pasted in sheet.rows:
        assert original.image == reconstructed.image == pasted.image != masked.image
    grey = FalseColour.of(images)(images[0])
    grey[:, :6, :5] = 0.5
    assert sheet.rows[0][1].image == shown(grey)
    assert "Channels 1, 2 and 3 of 5" in sheet.caption
    assert STRETCHED in sheet.caption
    assert "Channels 5, 4 and 3 of 5" in reconstruction_sheet(images, images, mask, (2, 2), chosen=(4, 3, 2)).caption
