"""Importing this installs the broadcast: for the `imports` of an app's configuration.

```python
imports = ("celery_broadcast.plugin", "shop.tasks", "shop.consumers")
```
"""

from __future__ import annotations

from typing import Any

from celery import _state

from celery_broadcast.errors import ConfigurationError
from celery_broadcast.installation import install


def _apps_to_install_on() -> list[Any]:
    """Return the apps that name this among their imports, else the current one.

    A spawned pool process imports this before it has a current app
    (celery/concurrency/prefork.py, process_initializer).

    Raises:
        ConfigurationError: there is no app.
    """
    apps: list[Any] = list(_state._get_active_apps())  # type: ignore[attr-defined]  # noqa: SLF001
    if not apps:
        msg = (
            "celery_broadcast.plugin was imported before there was a Celery app. Name it among "
            "the imports of the app's configuration, or call celery_broadcast.install(app)."
        )
        raise ConfigurationError(msg)
    naming = [app for app in apps if app.configured and __name__ in app.loader.default_modules]
    return naming or [_state.get_current_app()]


for _app in _apps_to_install_on():
    install(_app)
