"""Importing this installs the broadcast: for the `imports` of an app's configuration.

```python
imports = ("celery_broadcast.plugin", "shop.tasks", "shop.consumers")
```
"""

from __future__ import annotations

from celery import _state

from celery_broadcast.errors import ConfigurationError
from celery_broadcast.installation import install

# Not the current app: a spawned pool process imports this before it has one
# (celery/concurrency/prefork.py, process_initializer).
_apps = list(_state._get_active_apps())  # type: ignore[attr-defined]  # noqa: SLF001
if not _apps:
    _msg = (
        "celery_broadcast.plugin was imported before there was a Celery app. Name it among the "
        "imports of the app's configuration, or call celery_broadcast.install(app)."
    )
    raise ConfigurationError(_msg)
for _app in _apps:
    install(_app)
