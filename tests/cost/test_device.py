"""The roofline, and what the table of devices must say."""

from __future__ import annotations

import pytest

from rcp.cost.device import DEVICES, Device, device_named, own_device
from rcp.cost.work import Work
from rcp.types import UserError

PLAIN = Device("plain", memory=100.0, bandwidth=10.0, peak={"float32": 1000.0}, source="here")


def test_the_slower_of_the_two_decides():
    assert PLAIN.seconds(Work(2000, 0, 10), "float32") == 2.0
    assert PLAIN.bound(Work(2000, 0, 10), "float32") == "compute"
    assert PLAIN.seconds(Work(900, 100, 50), "float32") == 5.0
    assert PLAIN.bound(Work(900, 100, 50), "float32") == "memory"


def test_without_a_published_peak_there_is_no_time():
    assert PLAIN.seconds(Work(1, 0, 1), "bfloat16") is None
    assert PLAIN.bound(Work(1, 0, 1), "bfloat16") is None


def test_what_fits():
    assert PLAIN.holds(100) and not PLAIN.holds(101)


@pytest.mark.parametrize("name", list(DEVICES))
def test_every_device_has_a_source_and_numbers_of_the_right_size(name):
    device = device_named(name)
    assert device.source.startswith("https://")
    assert 1e10 <= device.memory <= 1e12 and 1e11 <= device.bandwidth <= 1e13
    assert all(1e13 <= peak <= 1e15 for peak in device.peak.values())
    assert set(device.peak) <= {"float32", "bfloat16"}


def test_an_unknown_device_names_the_known_ones():
    with pytest.raises(UserError, match=r"no device 'h101' is known; known: .*h100-sxm.*--memory-gb"):
        device_named("h101")


def test_a_device_of_ones_own():
    device = own_device(2, 25, 0.2, "float32")
    assert (device.memory, device.bandwidth, device.peak) == (2e9, 25e9, {"float32": 0.2e12})
    with pytest.raises(UserError, match="--bandwidth-gbs is 0"):
        own_device(2, 0, 0.2, "float32")
