"""What the configuration's tree says by itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from taskpass.config.model import BrokerSettings, Config, People


@pytest.mark.parametrize(
    ("store", "others"),
    [
        ("sqlite:////var/lib/taskpass/taskpass.db", ()),
        ("sqlite:////var/lib/taskpass/deeper/taskpass.db", ()),
        ("sqlite:////srv/store/taskpass.db", (Path("/srv/store"),)),
        ("sqlite:////var/lib/taskpass-2/taskpass.db", (Path("/var/lib/taskpass-2"),)),
    ],
)
def test_a_store_outside_the_broker_s_directory_is_one_more_place_to_hide(store, others):
    config = Config(Path("/var/lib/taskpass"), BrokerSettings("acme.example", store), {}, People({}, {}))
    assert config.other_directories == others
