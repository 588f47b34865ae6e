import pytest

# What fails there says what was compared.
pytest.register_assert_rewrite(f"{__name__}.runtime", f"{__name__}.model")
