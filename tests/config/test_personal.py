import pytest

from fl_lightning.config import PersonalConfig
from fl_lightning.errors import InputError


@pytest.mark.parametrize("levels", [[], ["department"], ["department", "own"], ["own", "own"], ["own", "team"]])
def test_levels_are_own_and_others_once(levels):
    with pytest.raises(InputError, match="personal.levels: expected own, and after it some of department, cluster"):
        PersonalConfig(levels=levels)
