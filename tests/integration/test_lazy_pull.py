"""An image starts before its layers are here: what is fetched by then, and that it runs."""

from __future__ import annotations

import pytest

from tests.integration import recipe
from tests.integration.conftest import References
from tests.integration.harness import Containerd, Layergate, Throttle
from tests.integration.image import RealImage
from tests.integration.lazy import (
    MARGIN,
    incomplete,
    plain_directories,
    lowerdirs,
    read_layout,
    reading,
    snapshots,
    status,
)
from tests.integration.node import Node, running_node

pytestmark = pytest.mark.containerd
