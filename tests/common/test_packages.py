"""The message of shipped code that needs the package."""

import pytest

from modeling_lle.common.packages import raise_missing


@pytest.mark.parametrize("name", ["modeling_lle", "modeling_lle.entries.texts"])
def test_a_missing_module_of_this_package_names_the_remedy(name: str) -> None:
    with pytest.raises(ImportError, match="pip install modeling_lle"):
        raise_missing(ModuleNotFoundError(name=name))


@pytest.mark.parametrize("name", ["modeling_lle_other", "numba", None])
def test_any_other_missing_module_stays_as_it_is(name: str | None) -> None:
    error = ModuleNotFoundError("no such module", name=name)
    with pytest.raises(ModuleNotFoundError) as raised:
        raise_missing(error)
    assert raised.value is error
