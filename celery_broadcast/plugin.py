"""Importing this installs the broadcast on the current app.

```python
imports = ("celery_broadcast.plugin", "shop.tasks", "shop.consumers")
```
"""

from __future__ import annotations

from celery._state import get_current_app

from celery_broadcast.installation import install

install(get_current_app())
