"""What every reader and every front has to keep, whichever server it is."""

import pytest

pytest.register_assert_rewrite("contracts.front", "contracts.reader")
