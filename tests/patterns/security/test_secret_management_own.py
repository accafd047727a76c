"""Proves docs/patterns/security/secret-management.md: the test that it gives its readers."""

# --8<-- [start:own]
from __future__ import annotations

import pytest
from pydantic import SecretStr

from app_settings import AppSettings, SettingsError, settings_from_env


class MySettings(AppSettings):  # import yours instead
    api_key: SecretStr
    port: int = 8000


def test_my_settings_name_what_is_missing_and_show_no_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("API_KEY", raising=False)
    monkeypatch.setenv("PORT", "not-a-port")
    with pytest.raises(SettingsError) as caught:
        settings_from_env(MySettings)
    assert caught.value.names == ("API_KEY", "PORT")
    assert "not-a-port" not in str(caught.value)
    assert "canary" not in repr(settings_from_env(MySettings, api_key="canary", port=1))


# --8<-- [end:own]
